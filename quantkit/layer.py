"""One decoder layer in memory: run it, change it, and have what is final kept.

A layer that is quantized module by module is run again for each; what its finished modules
give is kept (:meth:`Layer.keep`), a tensor a window, so that none is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from quantkit.activations import Activations

#: Bytes of a layer's kept outputs, in files; windows beyond that are computed again.
KEPT_BYTES = 8 << 30

#: A layer's output for a window, on the walk's own hidden states or on others.
Run = Callable[[nn.Module, int, Activations | None], Tensor]


@dataclass(frozen=True)
class Layer:
    """One layer in memory, and its inputs.

    ``module`` may be changed until the walk goes on; what it then computes is what the
    next layer sees. ``lengths`` are the windows' tokens.
    """

    index: int
    name: str
    module: nn.Module
    lengths: Sequence[int]
    _run: Run = field(repr=False)
    _lend: Callable[[int], AbstractContextManager[Activations]] = field(repr=False)
    _open: ExitStack = field(default_factory=ExitStack, repr=False)
    _kept: set[str] = field(default_factory=set, repr=False)
    _now: _RunState = field(default_factory=lambda: _RunState(KEPT_BYTES), repr=False)

    @property
    def windows(self) -> range:
        return range(len(self.lengths))

    def run(self, window: int, states: Activations | None = None) -> Tensor:
        """The layer's output (texts, tokens, hidden) of a window, on other ``states`` if given."""
        self._now.window = window
        return self._run(self.module, window, states)

    def weight(self, name: str) -> Tensor:
        """A module's weight (out, in), whatever way round the module keeps it."""
        module = self.module.get_submodule(name)
        weight = module.get_parameter("weight").data
        return weight if isinstance(module, nn.Linear) else weight.T

    def room(self, width: int) -> Activations:
        """Room for one tensor of ``width`` a token, until the walk goes on."""
        return self._open.enter_context(self._lend(width))

    def keep(self, final: Collection[str], changing: Collection[str]) -> None:
        """From now on run modules whose weights are ``final`` once a window, and keep the outputs.

        Where no module inside a parent is still ``changing``, the parent's output is kept: an
        attention block is run once more, and then never. On a CUDA device only parents are kept:
        a single product is sooner done than fetched.
        """
        on_device = next(self.module.parameters()).device.type != "cpu"
        for name in {_largest(name, changing) for name in final} - self._kept:
            if on_device and name in final:
                continue
            self._kept.add(name)
            self._keep(self.module.get_submodule(name))

    def _keep(self, module: nn.Module) -> None:
        compute, now = module.forward, self._now
        states: Activations | None = None
        kept: dict[int, Callable[[Tensor], Any]] = {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            nonlocal states
            if states is not None and now.window in kept:
                return kept[now.window](states[now.window])
            made = compute(*args, **kwargs)
            tensor, again = _taken_apart(made)
            if tensor is not None and self._fits(tensor):
                states = states or self.room(tensor.shape[-1])
                if states.worth_keeping(now.window):
                    states[now.window] = tensor
                    kept[now.window] = again
            return made

        module.forward = forward
        self._open.callback(delattr, module, "forward")  # a cycle otherwise

    def _fits(self, tensor: Tensor) -> bool:
        width, tokens = tensor.shape[-1], self.lengths[self._now.window]
        return tensor.numel() == tokens * width and self._now.take(tensor)

    def close(self) -> None:
        """Let go of all that was kept."""
        self._open.close()


def _largest(name: str, changing: Collection[str]) -> str:
    """The largest module around ``name`` in which nothing is still ``changing``."""
    parts = name.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next(
        (each for each in around if not any(f"{c}.".startswith(f"{each}.") for c in changing)), name
    )


def _taken_apart(made: Any) -> tuple[Tensor | None, Callable[[Tensor], Any]]:
    """The one tensor in a module's output (``None`` if it is not one), and how to give it again."""
    if isinstance(made, Tensor):
        return made, lambda kept, shape=made.shape: kept.view(shape)
    if isinstance(made, tuple) and made and all(each is None for each in made[1:]):
        tensor, again = _taken_apart(made[0])
        rest = made[1:]  # not `made`: the tensor is to be let go
        return tensor, lambda kept: (again(kept), *rest)
    return None, lambda kept: kept


@dataclass
class _RunState:
    """Which window is run, and how many bytes may still be kept."""

    left: int
    window: int = 0

    def take(self, made: Tensor) -> bool:
        self.left -= made.nbytes
        return self.left >= 0
