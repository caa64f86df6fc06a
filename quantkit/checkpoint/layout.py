"""Arithmetic of shapes and strides. All counts are elements, not bytes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import TypeGuard

#: More dimensions than torch supports (64) cannot be read back.
MAX_DIMENSIONS = 64

#: torch counts elements in signed 64-bit integers.
MAX_COUNT = 2**63 - 1


def is_count(value: object) -> TypeGuard[int]:
    """Whether ``value`` is an integer that can count elements (``True`` is none)."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_counts(values: Iterable[object]) -> bool:
    return all(is_count(value) for value in values)


def is_shape(values: tuple[object, ...]) -> TypeGuard[tuple[int, ...]]:
    """Whether ``values`` is a shape that torch can hold.

    Zeros count as ones in the product: torch multiplies strides out even where
    another dimension is empty, and must not overflow there.
    """
    if len(values) > MAX_DIMENSIONS or not is_counts(values):
        return False
    return prod(max(value, 1) for value in values if isinstance(value, int)) <= MAX_COUNT


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Row-major without gaps. A dimension of one element may have any stride, and so may every
    dimension of an empty tensor."""
    if 0 in shape:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1:
            if step != expected:
                return False
            expected *= size
    return True


def touched_elements(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Length of the range from the first element of a view to its last."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def overlaps(ranges: Iterable[tuple[int, int]]) -> bool:
    """Whether any two of the half-open ``(begin, end)`` ranges share a position."""
    filled = sorted(span for span in ranges if span[0] < span[1])
    return any(before[1] > after[0] for before, after in pairwise(filled))
