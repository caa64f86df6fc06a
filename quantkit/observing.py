"""What the modules of one layer are given: their inputs' Hessians, gathered while it runs.

Modules that are given the very same tensor (a layer's queries, keys and values) share one
Hessian. Which do is seen in the first window's run.

Beside it the same layer may be run on what the unquantized model would give it
(:class:`Unquantized`): what a module's output then lacks, for the layers before it are
quantized already, is gathered too, and can be made good (:func:`kernels.gptq.make_good`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.activations import Activations
from quantkit.kernels.gptq import accumulate
from quantkit.sweep import Layer


class _SeenAll(Exception):  # noqa: N818 - no error
    """The last module that is watched has been given its input; what follows is not needed."""


@dataclass(frozen=True)
class Unquantized:
    """The model as it was before any of it was quantized: one layer, and its inputs."""

    module: nn.Module
    states: Activations

    def run(self, layer: Layer, window: int) -> Tensor:
        """The output of the layer for one window, which the next layer will be given."""
        return layer.run(window, self.module, self.states)

    def advance(self, layer: Layer) -> None:
        """Turn the layer's inputs into its outputs."""
        with torch.inference_mode():
            for window in layer.windows:
                self.states[window] = self.run(layer, window)


@dataclass(frozen=True)
class Shared:
    """Modules of a layer, by their names in it, that are given the same input.

    ``hessian``: float32 (columns, columns), the upper triangle of the sum of ``x x^T`` over
    ``tokens`` inputs. ``lacking``: of each module float32 (rows, columns), the sum of
    ``(y - y~) x^T``, where ``y`` is its output in the unquantized model and ``y~`` the one
    that it has on ``x``; empty where that was not asked for.
    """

    modules: tuple[str, ...]
    hessian: Tensor
    tokens: int
    lacking: Mapping[str, Tensor] = field(default_factory=dict)


def shared_inputs(layer: Layer, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """``names`` grouped by the input that they are given, in the order in which they run.

    Modules that the first window does not reach are left out.
    """
    seen: dict[int, list[str]] = {}
    alive: list[Tensor] = []  # an id is the tensor's own only as long as it lives

    def note(name: str, given: Tensor, _: Tensor | None) -> None:
        alive.append(given)
        seen.setdefault(id(given), []).append(name)

    with _watched(layer.module, names, note), torch.inference_mode():
        layer.run(0)
    return tuple(tuple(group) for group in seen.values())


def gather(
    layer: Layer,
    groups: Sequence[Sequence[str]],
    progress: Callable[[int], None],
    unquantized: Unquantized | None = None,
    *,
    last: bool = True,
) -> Iterator[Shared]:
    """Run the layer over all windows, and sum up what each group is given.

    ``groups`` are in the order in which they run; a run ends with what is seen last.
    ``unquantized`` is run beside it, and goes on to the next layer if this is the ``last``
    run. Each result is let go as the next is asked for.
    """
    sums = _Sums(groups)
    with torch.inference_mode():
        for window in layer.windows:
            if unquantized is not None:
                with _watched(unquantized.module, sums.modules, sums.want, after=True):
                    output = unquantized.run(layer, window)
                if last:
                    unquantized.states[window] = output
                with _watched(layer.module, sums.modules, sums.see, after=True), suppress(_SeenAll):
                    layer.run(window)
            else:
                with _watched(layer.module, sums.firsts, sums.add), suppress(_SeenAll):
                    layer.run(window)
            progress(window + 1)
    yield from sums.results()


class _Sums:
    """What is gathered while a layer runs, by module."""

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self._groups = groups
        self.firsts = [group[0] for group in groups]
        self.modules = [name for group in groups for name in group]
        self._hessians: dict[str, Tensor] = {}
        self._tokens = dict.fromkeys(self.firsts, 0)
        self._lacking: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}

    def add(self, name: str, given: Tensor, made: Tensor | None = None) -> None:
        """A group's input; nothing after the last one's is needed."""
        inputs = _rows(given)
        held = self._hessians.get(name)
        if held is None:
            held = self._hessians[name] = inputs.new_zeros(inputs.shape[-1], inputs.shape[-1])
        accumulate(held, inputs)
        self._tokens[name] += inputs.shape[0]
        if made is None and name == self.firsts[-1]:
            raise _SeenAll

    def want(self, name: str, given: Tensor, made: Tensor | None) -> None:
        """A module's output in the unquantized model."""
        assert made is not None
        self._wanted[name] = made

    def see(self, name: str, given: Tensor, made: Tensor | None) -> None:
        """A module's input and output; nothing after the last one's is needed."""
        assert made is not None
        if name in self._tokens:
            self.add(name, given, made)
        inputs, lacks = _rows(given), _rows(self._wanted.pop(name) - made)
        held = self._lacking.get(name)
        if held is None:
            held = self._lacking[name] = inputs.new_zeros(lacks.shape[-1], inputs.shape[-1])
        held.addmm_(lacks.T, inputs)
        if name == self.modules[-1]:
            raise _SeenAll

    def results(self) -> Iterator[Shared]:
        for group in self._groups:
            if group[0] in self._hessians:
                lacking = {n: self._lacking.pop(n) for n in group if n in self._lacking}
                hessian = self._hessians.pop(group[0])
                yield Shared(tuple(group), hessian, self._tokens[group[0]], lacking)


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1]).float()


@contextmanager
def _watched(
    module: nn.Module,
    names: Sequence[str],
    see: Callable[[str, Tensor, Tensor | None], None],
    *,
    after: bool = False,
) -> Iterator[None]:
    """``see`` is called with each named module's input before it runs, or its output too after."""

    def before_hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, given: see(name, given[0], None)

    def after_hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        return lambda _, given, made: see(name, given[0], made)

    watched = [(name, module.get_submodule(name)) for name in names]
    handles = [
        each.register_forward_hook(after_hook(name))
        if after
        else each.register_forward_pre_hook(before_hook(name))
        for name, each in watched
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
