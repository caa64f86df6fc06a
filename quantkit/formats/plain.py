"""No quantization: only the data type and the container change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.formats.base import Encoder, Kept
from quantkit.methods import PlainMethod
from quantkit.types import OutputTensor


@dataclass(frozen=True)
class Plain:
    """Every tensor is copied or cast; nothing reaches an encoder."""

    method: PlainMethod

    calibrated = False

    def unfit(self, weight: str, shape: tuple[int, int], kind: str) -> None:
        return None

    def outputs(self, weight: str, shape: tuple[int, int], dtype: str) -> tuple[OutputTensor, ...]:
        raise AssertionError(f"{weight}: the plain format quantizes nothing")

    def unit(self, shape: tuple[int, int]) -> int:
        return 1

    def encoder(self, weight: str, shape: tuple[int, int], dtype: str, device: str) -> Encoder:
        raise AssertionError(f"{weight}: the plain format quantizes nothing")

    def quantization_config(self, kept: Kept, quantized: Sequence[str]) -> None:
        return None
