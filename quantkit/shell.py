"""All of a model but its layers: embeddings, norms, the head.

A walk holds it only while windows enter and while logits are made. Between them lie the
layers, and the embedding and the head may weigh as much as many of those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

#: Names in memory -> tensors. Called from a second thread.
Load = Callable[[Sequence[str]], Mapping[str, Tensor]]

#: Puts weights into a module: the values by name, the data type, the device.
Fill = Callable[[nn.Module, Mapping[str, Tensor], torch.dtype, torch.device], None]


class Shell:
    """What is outside the ``layers`` of ``model``, which is on the meta device until it is filled.

    ``load`` gives its weights, ``fill`` puts them in place, in ``dtype`` on ``device``.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[str],
        load: Load,
        fill: Fill,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._model, self._load, self._fill = model, load, fill
        self._dtype, self._device = dtype, device
        self._inside = tuple(f"{name}." for name in layers)
        names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
        self._names = [name for name in names if not name.startswith(self._inside)]
        # by module, as the weight of a tied pair is in both
        owners, head = (
            {each: owner_of(model, each) for each in names},
            model.get_output_embeddings(),
        )
        self._embeddings = {name for name in names if owners[name] is self._embedding}
        self._heads = {name for name in names if owners[name] is head}

    @property
    def _embedding(self) -> Any:
        return self._model.get_input_embeddings()

    @property
    def has_embedding(self) -> bool:
        """Whether ids can enter."""
        return not self._embedding.weight.is_meta

    def fill(self, *, head: bool = True) -> None:
        """Read it, with the output head or without."""
        self._read(set() if head else self._heads)
        buffers, state = dict(self._model.named_buffers()), self._model.state_dict()
        stored = self._load([name for name in buffers if name in state])  # as Gemma 4's scalars
        for name, value in buffers.items():
            if name in stored or not name.startswith(self._inside):
                made = stored.get(name, value).to(self._device, value.dtype)
                owner_of(self._model, name)._buffers[name.rpartition(".")[2]] = made

    def fill_for_logits(self) -> None:
        """Read it again without the embedding, through which nothing is to enter any more."""
        self._read(self._embeddings)

    def empty(self) -> None:
        """Let go of its weights; what layers hold beside weights stays, for their copies."""
        for name, value in [*self._model.named_parameters(remove_duplicate=False)]:
            if not name.startswith(self._inside):
                nothing = torch.empty(value.shape, dtype=value.dtype, device="meta")
                owner, leaf = owner_of(self._model, name), name.rpartition(".")[2]
                owner._parameters[leaf] = nn.Parameter(nothing, requires_grad=False)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """An embedding that is not there gives NaN, which would show in whatever is made of it."""
        if self.has_embedding:
            yield
            return
        embedding, width = self._embedding, self._embedding.weight.shape[-1]

        def forward(ids: Tensor) -> Tensor:
            return torch.full((*ids.shape, width), nan, dtype=self._dtype, device=self._device)

        embedding.forward = forward
        try:
            yield
        finally:
            del embedding.forward

    def _read(self, without: set[str]) -> None:
        """Those of its weights that are not in memory."""
        values = dict(self._model.named_parameters(remove_duplicate=False))
        names = [each for each in self._names if values[each].is_meta and each not in without]
        self._fill(self._model, self._load(names), self._dtype, self._device)


def assign(
    module: nn.Module, values: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> None:
    """Put ``values`` in the place of parameters, as ``dtype``."""
    for name, value in values.items():
        owner, leaf = owner_of(module, name), name.rpartition(".")[2]
        owner._parameters[leaf] = nn.Parameter(value.to(device, dtype), requires_grad=False)


def owner_of(module: nn.Module, name: str) -> nn.Module:
    """The module that holds the parameter or buffer of this name."""
    return module.get_submodule(name.rpartition(".")[0])
