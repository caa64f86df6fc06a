"""Walk a decoder one layer at a time: what a model does, in the memory of one layer.

The model is transformers' own class on the meta device. Its own ``forward`` is run with
every layer standing in for itself (it records how it is called and passes the hidden
states on), which gives the first layer's inputs and each layer's masks, positions and
rotary tables, whatever the model makes of them. Then each layer is loaded, run over all
windows, and dropped; the next one's weights are read meanwhile. For logits the model's
own ``forward`` is run once more, its last layer standing in with what the walk found.

Calibration changes a layer's weights before it is run; scoring runs it as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantkit.activations import ROOM_BYTES, Activations, Nearby, Rooms
from quantkit.calls import Call, does_not_run, same
from quantkit.errors import UnsupportedModelError, explained
from quantkit.heap import blocks_reused
from quantkit.layer import Layer
from quantkit.shell import Fill, Load, Shell, assign
from quantkit.skeleton import layer_names

#: Ids of a text, or of several of one length, run side by side.
Window = Sequence[int] | Sequence[Sequence[int]]


class _Reached(BaseException):  # no Exception, which a model's own code might catch
    """The forward has come as far as it is needed."""


class _WantsTuple(BaseException):  # no Exception either
    """The model takes the first of what a layer returns."""


class Sweep:
    """A walk over ``windows`` of ids through ``model``. Use as a context manager.

    Args:
        model: on the meta device, buffers real (:func:`quantkit.skeleton.build_empty`).
        load: gives weights by their names in memory, in any data type.
        windows: of ids; windows of one shape must call the layers in one way.
        scratch: a folder for activations that outgrow ``room`` bytes.
        dtype: what everything is computed in.
        fill: puts what ``load`` gives into a module; quantized modules need their own.
        to_logits: whether :meth:`logits` will be asked for. If not, the output head is never
            loaded, and the last layer is not run for what it gives.

    Raises:
        UnsupportedModelError: no layers found, or a layer is told of the ids themselves.
    """

    def __init__(
        self,
        model: Any,
        load: Load,
        windows: Sequence[Window],
        scratch: Path,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        room: int = ROOM_BYTES,
        fill: Fill | None = None,
        to_logits: bool = True,
    ) -> None:
        self._to_logits = to_logits
        self._fill = fill or assign
        self.model, self.windows = model, windows
        self._load, self._device, self._dtype = load, torch.device(device), dtype
        self._names = layer_names(model)
        self._shell = Shell(model, self._names, load, self._fill, dtype, self._device)
        self._calls: dict[torch.Size, list[Call]] = {}
        self._returns_tuple, self._scratch, self._room = False, scratch, room

    @property
    def names(self) -> Sequence[str]:
        """The layers, by name, in order."""
        return self._names

    def __enter__(self) -> Sweep:
        self._reader = ThreadPoolExecutor(1, "read-layer")
        self._shapes = [self._ids(at).shape for at in range(len(self.windows))]
        self._lengths = [shape.numel() for shape in self._shapes]
        nearby = Nearby(self._device) if self._device.type == "cuda" else None
        self._rooms = Rooms(self._lengths, self._dtype, self._scratch, self._room, nearby)
        with torch.inference_mode():
            self._shell.fill(head=self._to_logits)
            first = self._enter_window(0)
            self._states = self._rooms.new(first.shape[-1])
            self._states[0] = first
            for at in range(1, len(self.windows)):
                self._states[at] = self._enter_window(at)
        if not self._to_logits:
            self.let_go()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._rooms.close()

    def let_go(self) -> None:
        """Of all outside the layers, now that the windows have entered."""
        self._shell.empty()

    def layers(self) -> Iterator[Layer]:
        """Each layer in turn, filled; it is run over all windows when the next is asked for.

        Nothing else of the model is in memory meanwhile.
        """
        self.let_go()
        coming = [self._reader.submit(self._weights, self._names[0])]
        for index, name in enumerate(self._names):
            layer = Layer(
                index,
                name,
                self._build(name, coming.pop().result()),
                self._lengths,
                partial(self._run, index),
                self._rooms.lend,
            )
            try:
                yield layer
                if index + 1 < len(self._names):  # not before: a change to the layer takes memory
                    coming.append(self._reader.submit(self._weights, self._names[index + 1]))
                elif not self._to_logits:
                    return
                with torch.inference_mode(), blocks_reused():
                    for window in layer.windows:
                        self._states[window] = layer.run(window)
            finally:
                layer.close()
            del layer  # before the next is built

    def copy_states(self, windows: Sequence[int]) -> Activations:
        """A copy of what the coming layer is given in ``windows``, to be walked on its own."""
        made = self._rooms.new(self._states[windows[0]].shape[-1])
        for window in windows:
            made[window] = self._states[window]
        return made

    def _run(
        self, index: int, module: nn.Module, window: int, states: Activations | None
    ) -> Tensor:
        """``module`` on the hidden states of ``window``, called as the model calls a layer."""
        shape = self._shapes[window]
        hidden = (self._states if states is None else states)[window].to(self._device)
        hidden = hidden.view(*shape, hidden.shape[-1])
        call = self._calls[shape][index]
        with explained(partial(does_not_run, self.model)):
            made = module(hidden, *call.args, **call.kwargs)
        # where there is one layer alone, the forward that recorded calls has not shown it
        self._returns_tuple |= len(self._names) == 1 and isinstance(made, tuple | list)
        output: Tensor = made[0] if isinstance(made, tuple | list) else made
        return output

    def logits(self, window: int) -> Tensor:
        """What the model makes of one text's last states: (tokens, vocabulary)."""
        with torch.inference_mode():
            self._shell.fill_for_logits()
            logits = self._logits(window)
            if not self._shell.has_embedding and bool(logits.isnan().any()):
                self._shell.fill()  # the model made them of its embeddings too, or of NaN anyway
                logits = self._logits(window)
            return logits

    def _logits(self, window: int) -> Tensor:
        last = len(self._names) - 1

        def stand_in(index: int, hidden: Tensor, call: Call) -> Tensor:
            return self._states[window].to(self._device) if index == last else hidden

        with self._shell.entered(), self._standing_in(stand_in):
            logits: Tensor = self._forward(self._ids(window)).logits[0]
            return logits

    # the model's own forward

    def _forward(self, ids: Tensor) -> Any:
        with explained(partial(does_not_run, self.model)):
            return self.model(input_ids=ids.to(self._device), use_cache=False)

    def _ids(self, window: int) -> Tensor:
        ids = torch.tensor(self.windows[window])
        return ids.view(-1, ids.shape[-1])

    def _enter_window(self, window: int) -> Tensor:
        """The first layer's input; on the way, how layers are called for its shape."""
        shape, ids = self._shapes[window], self._ids(window)
        if shape not in self._calls:
            self._calls[shape] = self._learn(ids)
        first, _ = self._follow(ids, whole=False)
        if first.numel() != shape.numel() * first.shape[-1]:
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its layers are given {tuple(first.shape)}, expected "
                "(texts, tokens, width); quantkit cannot walk it layer by layer"
            )
        return first

    def _learn(self, ids: Tensor) -> list[Call]:
        """How layers are called for ids of this shape; other ids must not change it."""
        try:
            _, calls = self._follow(ids, whole=True)
        except _WantsTuple:
            self._returns_tuple = True
            _, calls = self._follow(ids, whole=True)
        others = (ids + 1) % self.model.get_input_embeddings().weight.shape[0]
        if not same(calls, self._follow(others, whole=True)[1]):
            raise UnsupportedModelError(
                f"{type(self.model).__name__}: its layers are told of the token ids themselves; "
                "quantkit cannot walk it layer by layer"
            )
        return calls

    def _follow(self, ids: Tensor, *, whole: bool) -> tuple[Tensor, list[Call]]:
        calls: list[Call] = []
        first: list[Tensor] = []

        def record(index: int, hidden: Tensor, call: Call) -> Tensor:
            if index and hidden.dim() < first[0].dim():
                raise _WantsTuple
            first.append(hidden)
            calls.append(call)
            if len(calls) == len(self._names) or not whole:
                raise _Reached
            return hidden

        with self._standing_in(record), suppress(_Reached):
            self._forward(ids)
        return first[0], calls

    @contextmanager
    def _standing_in(self, act: Callable[[int, Tensor, Call], Tensor]) -> Iterator[None]:
        """Every layer's ``forward`` replaced by ``act``; attributes that models read stay."""
        layers = [*map(self.model.get_submodule, self._names)]
        for index, layer in enumerate(layers):
            layer.forward = self._stand_in(index, act)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    def _stand_in(
        self, index: int, act: Callable[[int, Tensor, Call], Tensor]
    ) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, *rest = args or (kwargs.pop("hidden_states"),)
            made = act(index, hidden, Call(tuple(rest), kwargs))
            return (made,) if self._returns_tuple else made

        return forward

    def _weights(self, name: str) -> Mapping[str, Tensor]:
        layer = self.model.get_submodule(name)
        names = [each for each, _ in layer.named_parameters()]
        held = self._load([f"{name}.{each}" for each in names])
        return {each.removeprefix(f"{name}."): value for each, value in held.items()}

    def _build(self, name: str, weights: Mapping[str, Tensor]) -> nn.Module:
        """A copy of the empty layer, filled; the model's own stays empty."""
        empty = self.model.get_submodule(name)
        # weights that have no bytes are shared, not copied: bitsandbytes' own refuse it
        shared = {id(each): each for each in empty.parameters()}
        layer: nn.Module = copy.deepcopy(empty, shared)
        self._fill(layer, weights, self._dtype, self._device)
        return layer.to(self._device)
