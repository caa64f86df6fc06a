"""Integers of 2, 3, 4 or 8 bits as a stream of bits in little-endian 32-bit words.

The stream runs down a column: 32 values fill exactly ``bits`` words, the first value in the
lowest bits of the first word. That is AutoGPTQ's layout for 2, 4 and 8 bits, and for 3 bits
too, where values 10 and 21 of each 32 lie across two words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Values that fill whole words, whatever the bits.
CHUNK = 32


def pack(values: Tensor, bits: int) -> Tensor:
    """uint8 (n, columns), ``n`` a multiple of 32 -> int32 (n * bits / 32, columns)."""
    import torch

    chunks = values.reshape(-1, CHUNK, values.shape[1])
    shape = chunks.shape[0], bits, chunks.shape[2]
    words = torch.zeros(shape, dtype=torch.int32, device=values.device)
    for at in range(CHUNK):
        word, shift = divmod(at * bits, 32)
        value = chunks[:, at].to(torch.int32)
        words[:, word] |= value << shift  # what passes the top is cut off, as it should be
        if shift + bits > 32:
            words[:, word + 1] |= value >> (32 - shift)
    return words.flatten(0, 1)


def unpack(words: Tensor, bits: int) -> Tensor:
    """The inverse: int32 (n * bits / 32, columns) -> uint8 (n, columns)."""
    import torch

    grouped = words.reshape(-1, bits, words.shape[1]).to(torch.int64) & 0xFFFFFFFF
    values = []
    for at in range(CHUNK):
        word, shift = divmod(at * bits, 32)
        value = grouped[:, word] >> shift
        if shift + bits > 32:
            value = value | grouped[:, word + 1] << (32 - shift)
        values.append((value & ((1 << bits) - 1)).to(torch.uint8))
    return torch.stack(values, dim=1).flatten(0, 1)
