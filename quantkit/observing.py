"""What the modules of one layer are given: their inputs' Hessians, gathered while it runs.

Modules that are given the very same tensor (a layer's queries, keys and values) share one
Hessian. Which do is seen in the first window's run.

Some windows also go through the unquantized model (:func:`advance`): what a module's output
then lacks, for the layers before it are quantized already, is gathered beside the Hessian,
and can be made good (:func:`kernels.gptq.make_good`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.activations import Activations
from quantkit.heap import blocks_reused
from quantkit.kernels.hessian import accumulate
from quantkit.layer import Layer

#: One of so many windows (a batch of texts is one) goes through the unquantized model too.
FEEDBACK_EVERY = 4

#: So many tokens, or one longer window, go through a layer side by side.
_TOGETHER = 1024


class _SeenAll(BaseException):  # no Exception, which a model's own code might catch
    """The last module that is watched has been given its input; what follows is not needed."""


@dataclass(frozen=True)
class Shared:
    """Modules of a layer, by their names in it, that are given the same input.

    ``hessian``: float32 (columns, columns), the upper triangle of the sum of ``x x^T`` over
    ``tokens`` inputs. ``lacking``: of each module float32 (rows, columns), the sum of
    ``(y - y~) x^T``, where ``y`` is its output in the unquantized model and ``y~`` the one
    that it has on ``x``. Where that is less work for all of them, ``crossed`` instead: float32
    (columns, columns), and a module's weight times it is what the module lacks. Both come from
    ``n`` tokens of some windows, and are scaled to all and by ``n / (n + columns)``, as few tokens
    tell little. Both are left out where nothing asked for them.
    """

    modules: tuple[str, ...]
    hessian: Tensor
    tokens: int
    lacking: dict[str, Tensor] = field(default_factory=dict)
    crossed: Tensor | None = None


def side_by_side(windows: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Neighbours of one length together: a matrix product of few rows is a slow one."""
    batches: list[list[Sequence[int]]] = []
    for window in windows:
        last = batches[-1] if batches else []
        fits = len(window) * (len(last) + 1) <= _TOGETHER
        if last and len(last[0]) == len(window) and fits:
            last.append(window)
        else:
            batches.append([window])
    return batches


@dataclass
class SharedInputs:
    """Which modules share an input, and what the unquantized model gives them in some windows.

    ``groups`` are in the order in which they run; modules that are not reached are in none.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    _held: dict[str, Activations] = field(default_factory=dict)
    _windows: set[tuple[str, int]] = field(default_factory=set)

    def put(self, layer: Layer, name: str, window: int, given: Tensor) -> None:
        rows = _rows(given)
        if rows.shape[0] == layer.lengths[window]:
            if name not in self._held:
                self._held[name] = layer.room(rows.shape[-1])
            self._held[name][window] = rows
            self._windows.add((name, window))

    def get(self, name: str, window: int) -> Tensor | None:
        """(tokens, columns), or nothing."""
        return self._held[name][window][0] if (name, window) in self._windows else None


class _Inputs:
    """Modules grouped by the very tensor that they are given."""

    def __init__(self) -> None:
        self._seen: dict[int, list[str]] = {}
        self._alive: list[Tensor] = []  # an id is the tensor's own only as long as it lives

    def note(self, name: str, given: Tensor) -> bool:
        """Put ``name`` into a group; whether it is the first there."""
        self._alive.append(given)
        group = self._seen.setdefault(id(given), [])
        group.append(name)
        return len(group) == 1

    def groups(self) -> tuple[tuple[str, ...], ...]:
        self._alive.clear()
        return tuple(tuple(group) for group in self._seen.values())


def shared_inputs(layer: Layer, names: Sequence[str]) -> SharedInputs:
    """``names`` grouped by the input that they are given in the first window."""
    inputs = _Inputs()
    with _watched(layer.module, names, inputs.note), torch.inference_mode():
        layer.run(0)
    return SharedInputs(inputs.groups())


@blocks_reused()
def advance(layer: Layer, states: Activations, names: Sequence[str] = ()) -> SharedInputs:
    """Run a layer, not quantized yet, on the unquantized model's ``states``: now its outputs.

    ``states`` holds every ``FEEDBACK_EVERY``-th window. What ``names`` are given is noted, unless
    it is wider than all these windows have tokens: it would help little, at the price of two large
    products and a solution for each column.
    """
    some = layer.windows[::FEEDBACK_EVERY]
    widest = sum(layer.lengths[window] for window in some)
    inputs, wanted = _Inputs(), SharedInputs()
    for window in some:

        def note(name: str, given: Tensor, window: int = window) -> None:
            first = bool(window) or inputs.note(name, given)
            if first and given.shape[-1] <= widest:
                wanted.put(layer, name, window, given)

        watched = [group[0] for group in wanted.groups] if window else names
        with _watched(layer.module, watched, note), torch.inference_mode():
            states[window] = layer.run(window, states)
        wanted.groups = wanted.groups or inputs.groups()
    return wanted


def gather(
    layer: Layer,
    groups: Sequence[Sequence[str]],
    wanted: SharedInputs,
    progress: Callable[[int], None],
) -> Iterator[Shared]:
    """Run the layer over all windows, and sum up what each group is given.

    ``groups`` are in the order in which they run; a run ends with what the last is given.
    Each result is let go as the next is asked for.
    """
    sums = {group[0]: _Sum(layer, tuple(group)) for group in groups}
    _sum_up(layer, sums, wanted, progress)
    for name in [*sums]:
        shared = sums.pop(name).result()
        if shared is not None:
            yield shared


@blocks_reused()
def _sum_up(
    layer: Layer, sums: Mapping[str, _Sum], wanted: SharedInputs, progress: Callable[[int], None]
) -> None:
    last = [*sums][-1]
    for window in layer.windows:

        def see(name: str, given: Tensor, window: int = window) -> None:
            sums[name].add(_rows(given), wanted.get(name, window))
            if name == last:
                raise _SeenAll

        with _watched(layer.module, sums, see), suppress(_SeenAll), torch.inference_mode():
            layer.run(window)
        progress(window + 1)


class _Sum:
    """What is gathered for one group of modules.

    ``(y - y~) x^T`` is ``W (x' - x) x^T``, with ``x'`` as the unquantized model has it: where
    that is less work, ``(x' - x) x^T`` is summed up, for each weight to be multiplied by.
    """

    def __init__(self, layer: Layer, modules: tuple[str, ...]) -> None:
        self._modules = modules
        self._weights = {name: layer.weight(name) for name in modules}
        self._hessian: Tensor | None = None
        self._crossed: Tensor | None = None
        self._lacking: dict[str, Tensor] = {}
        self._tokens = self._compared = 0

    def add(self, inputs: Tensor, wanted: Tensor | None) -> None:
        """Inputs (tokens, columns), and those in the unquantized model if they are known."""
        columns = inputs.shape[-1]
        if self._hessian is None:
            self._hessian = inputs.new_zeros(columns, columns)
        accumulate(self._hessian, inputs)
        self._tokens += inputs.shape[0]
        if wanted is not None and wanted.shape == inputs.shape:
            # not in place: on a CPU what is wanted may be the walk's own hidden states
            self._compare(inputs, wanted.to(inputs.device) - inputs)

    def _compare(self, inputs: Tensor, missing: Tensor) -> None:
        self._compared += inputs.shape[0]
        columns = inputs.shape[-1]
        if 2 * sum(each.shape[0] for each in self._weights.values()) < columns:
            for name, weight in self._weights.items():
                held = self._lacking.setdefault(name, torch.zeros_like(weight))
                held.addmm_((missing @ weight.T).T, inputs)
        else:
            if self._crossed is None:
                self._crossed = inputs.new_zeros(columns, columns)
            self._crossed.addmm_(missing.T, inputs)

    def result(self) -> Shared | None:
        if self._hessian is None:
            return None
        made = [*self._lacking.values(), *([] if self._crossed is None else [self._crossed])]
        for each in made:  # scaled to all tokens, and down where few were compared
            each.mul_(self._tokens / (self._compared + self._hessian.shape[0]))
        return Shared(self._modules, self._hessian, self._tokens, self._lacking, self._crossed)


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1]).float()


@contextmanager
def _watched(
    module: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], object]
) -> Iterator[None]:
    """``see`` is called with each named module's input before it runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def before(_: nn.Module, given: tuple[Any, ...]) -> None:
            see(name, given[0])

        return before

    handles = [module.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
