"""Packed integers: one bit stream, checked bit by bit in plain Python."""

from __future__ import annotations

import pytest
import torch

from quantkit.kernels.packing import pack, unpack


def stream(values: list[int], bits: int) -> list[int]:
    """One column's words, by one long Python integer."""
    whole = sum(value << (bits * at) for at, value in enumerate(values))
    words = [(whole >> (32 * at)) & 0xFFFFFFFF for at in range(len(values) * bits // 32)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_column_is_a_stream_of_bits(bits: int) -> None:
    values = torch.randint(0, 1 << bits, (96, 5), dtype=torch.uint8)
    packed = pack(values, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (96 * bits // 32, 5)
    for column in range(5):
        assert packed[:, column].tolist() == stream(values[:, column].tolist(), bits)
    assert torch.equal(unpack(packed, bits), values)
