"""Every half-precision bit pattern becomes the float32 of the same value, either way."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from quantkit.kernels.loops import floats


@njit
def by_hand(bits, words):
    for at in range(bits.size):
        words[at] = floats.float16_word_by_hand(bits[at])


@njit
def as_used(bits, words):
    for at in range(bits.size):
        words[at] = floats.float16_to_word(bits[at])


@pytest.mark.parametrize("widen", [by_hand, as_used])
def test_all_patterns(widen) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    words = np.zeros(bits.size, np.uint32)
    widen(bits, words)
    wanted = bits.view(np.float16).astype(np.float32)
    nan = np.isnan(wanted)
    assert np.array_equal(words[~nan], wanted.view(np.uint32)[~nan])
    assert np.isnan(words.view(np.float32)[nan]).all()
    assert nan.sum() == 2 * 1023
