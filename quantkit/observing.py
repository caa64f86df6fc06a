"""What the modules of one layer are given: their inputs' Hessians, gathered while it runs.

Modules that are given the very same tensor (a layer's queries, keys and values) share one
Hessian. Which do is seen in the first window's run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.kernels.gptq import accumulate
from quantkit.sweep import Layer


class _SeenAll(Exception):  # noqa: N818 - no error
    """The last module that is watched has been given its input; what follows is not needed."""


@dataclass(frozen=True)
class Shared:
    """Modules of a layer, by their names in it, that are given the same input.

    ``hessian``: float32 (columns, columns), the upper triangle of the sum of ``x x^T`` over
    ``tokens`` inputs.
    """

    modules: tuple[str, ...]
    hessian: Tensor
    tokens: int


def shared_inputs(layer: Layer, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """``names`` grouped by the input that they are given, in the order in which they run.

    Modules that the first window does not reach are left out.
    """
    seen: dict[int, list[str]] = {}
    alive: list[Tensor] = []  # an id is the tensor's own only as long as it lives

    def note(name: str, given: Tensor) -> None:
        alive.append(given)
        seen.setdefault(id(given), []).append(name)

    with _watched(layer.module, names, note), torch.inference_mode():
        layer.run(0)
    return tuple(tuple(group) for group in seen.values())


def gather(
    layer: Layer, groups: Sequence[Sequence[str]], progress: Callable[[int], None]
) -> tuple[Shared, ...]:
    """Run the layer over all windows, and sum up what each group is given.

    ``groups`` are in the order in which they run; a run ends with the last one's input.
    """
    firsts = {group[0]: at for at, group in enumerate(groups)}
    hessians: list[Tensor | None] = [None] * len(groups)
    tokens = [0] * len(groups)

    def add(name: str, given: Tensor) -> None:
        at = firsts[name]
        inputs = given.reshape(-1, given.shape[-1]).float()
        held = hessians[at]
        if held is None:
            held = hessians[at] = inputs.new_zeros(inputs.shape[-1], inputs.shape[-1])
        accumulate(held, inputs)
        tokens[at] += inputs.shape[0]
        if at == len(groups) - 1:
            raise _SeenAll

    with _watched(layer.module, list(firsts), add), torch.inference_mode():
        for window in layer.windows:
            with suppress(_SeenAll):
                layer.run(window)
            progress(window + 1)
    return tuple(
        Shared(tuple(group), hessian, count)
        for group, hessian, count in zip(groups, hessians, tokens, strict=True)
        if hessian is not None
    )


@contextmanager
def _watched(
    module: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """``see`` is called with each named module's input, before the module runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, given: see(name, given[0])

    handles = [module.get_submodule(each).register_forward_pre_hook(hook(each)) for each in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
