"""Shapes and ranges at their edges."""

from __future__ import annotations

import pytest

from quantkit.checkpoint.layout import MAX_COUNT, is_count, is_shape, overlaps


@pytest.mark.parametrize(
    ("value", "counts"),
    [(0, True), (MAX_COUNT, True), (MAX_COUNT + 1, False), (-1, False), (True, False),
     (False, False), (1.0, False), ("1", False), (None, False)],
)  # fmt: skip
def test_what_counts_elements(value: object, counts: bool) -> None:
    assert is_count(value) is counts


@pytest.mark.parametrize(
    ("shape", "holds"),
    [
        ((), True),
        ((1,) * 64, True),
        ((1,) * 65, False),
        ((MAX_COUNT,), True),
        ((1, MAX_COUNT, 1), True),
        ((2**62, 2), False),
        ((2**31, 2**31), True),
        ((0, 2**62, 2), False),  # a zero counts as one
        ((0, MAX_COUNT), True),
        ((2, True), False),
    ],
)
def test_what_torch_can_hold(shape: tuple[object, ...], holds: bool) -> None:
    assert is_shape(shape) is holds


@pytest.mark.parametrize(
    ("ranges", "share"),
    [
        ([], False),
        ([(0, 4), (4, 8)], False),
        ([(4, 8), (0, 5)], True),
        ([(0, 10), (5, 5)], False),  # nothing lies there
        ([(0, 10), (5, 5), (9, 12)], True),
        ([(0, 4), (0, 4)], True),
    ],
)
def test_ranges_that_share_a_position(ranges: list[tuple[int, int]], share: bool) -> None:
    assert overlaps(ranges) is share
