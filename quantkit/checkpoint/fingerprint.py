"""A checkpoint's fingerprint: which tensors it holds, whatever files they lie in.

Every tensor gets two BLAKE3 digests: of its bytes as stored (row-major), and of its values in
the narrowest data type that holds every one of them exactly, tried in the order float16,
bfloat16, float32, float64. That type follows from the values alone, so a float16 tensor
and its cast to float32, or a bfloat16 one and its cast to float16 where that lost nothing,
have one digest. The second costs nothing for float16, and for the others as long as a
narrower type still holds what was read so far.

The digests, sorted, make the :class:`~quantkit.types.Fingerprint`: container, shards and
order play no part. It recognizes what was repacked, not what was changed: one other bit in
one weight is another model.

BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs) because these bytes are digested a second
time, beside the files' SHA-256, and a second SHA-256 is slower.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from quantkit.elements import Array, bits, row_major
from quantkit.kernels.casting import cast
from quantkit.types import Fingerprint, TensorRecord

#: The scheme's version, digested too, so that fingerprints of two never match. Manifests name it.
FORM = "quantkit fingerprint 2"

#: The same for a file's content, which never leaves this machine.
CONTENT = "quantkit content 1"

#: By stored data type: the others that may hold its values exactly, in the order they are tried.
_NARROWER: dict[str, tuple[str, ...]] = {
    "float16": (),
    "bfloat16": ("float16",),
    "float32": ("float16", "bfloat16"),
    "float64": ("float16", "bfloat16", "float32"),
}

#: How many elements are tried first: they give most tensors away that do not fit.
_PROBE = 4096


@dataclass(frozen=True)
class TensorDigest:
    """One tensor: digest of its stored bytes, and of its values in ``exact_dtype``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    exact_dtype: str
    exact_digest: str


@dataclass
class _Open:
    """A tensor whose bytes are coming in."""

    stored: blake3 = field(default_factory=blake3)
    narrower: dict[str, blake3] = field(default_factory=dict)


class TensorDigests:
    """Digests of the tensors of one file, fed with pieces of each in order.

    A piece is a whole number of elements, and a strided tensor is one piece.
    """

    def __init__(self, records: Iterable[TensorRecord]) -> None:
        self._records = {each.name: each for each in records}
        self._open: dict[str, _Open] = {}
        self._between = blake3()

    def feed(self, name: str | None, data: memoryview) -> None:
        """Take the next bytes of the tensor ``name``, or of what is no tensor's; runs on one
        thread."""
        if name is None:
            self._between.update(data)
            return
        record = self._records[name]
        state = self._state(record)
        if record.stride is None and not state.narrower:
            state.stored.update(data)
            return
        values = row_major(data, record.dtype, record.shape, record.stride)
        state.stored.update(_bytes_of(values))
        for dtype in tuple(state.narrower):
            narrow = _exactly(values, dtype)
            if narrow is None:
                del state.narrower[dtype]
            else:
                state.narrower[dtype].update(_bytes_of(narrow))

    def _state(self, record: TensorRecord) -> _Open:
        """What has come in of a tensor; made when it is first asked for."""
        if record.name not in self._open:
            narrower = {each: blake3() for each in _NARROWER.get(record.dtype, ())}
            self._open[record.name] = _Open(narrower=narrower)
        return self._open[record.name]

    def result(self) -> tuple[TensorDigest, ...]:
        """Each tensor's digests, also of empty ones, which were never fed."""
        return tuple(self._finish(each) for each in self._records.values())

    @property
    def see_all(self) -> bool:
        """Whether every byte goes into a digest: a strided tensor may leave some out."""
        return all(each.stride is None for each in self._records.values())

    def content(self, nbytes: int) -> str | None:
        """One digest of every byte of the file, which is ``nbytes`` long, once all were fed. It
        covers the tensors, their places, and what is between. ``None`` unless ``see_all``."""
        if not self.see_all:
            return None
        records = sorted(self._records.values(), key=lambda each: (each.offset, each.name))
        rows = [(r.offset, r.nbytes, self._state(r).stored.hexdigest()) for r in records]
        told = [CONTENT, nbytes, self._between.hexdigest(), rows]
        return blake3(json.dumps(told, separators=(",", ":")).encode()).hexdigest()

    def _finish(self, record: TensorRecord) -> TensorDigest:
        state = self._state(record)
        stored = state.stored.hexdigest()
        exact, digest = record.dtype, stored
        if state.narrower:  # the narrowest that is left comes first
            exact, narrow = next(iter(state.narrower.items()))
            digest = narrow.hexdigest()
        return TensorDigest(record.name, record.dtype, record.shape, stored, exact, digest)


def fingerprint(tensors: Sequence[TensorDigest]) -> Fingerprint:
    """The fingerprint of a whole checkpoint with these tensors."""
    matrices = [each for each in tensors if len(each.shape) == 2 and each.dtype in _NARROWER]
    return Fingerprint(
        tensors=_combine("tensors", [(t.name, t.dtype, t.shape, t.digest) for t in tensors]),
        values=_combine(
            "values", [(t.name, t.exact_dtype, t.shape, t.exact_digest) for t in tensors]
        ),
        matrices=_combine(
            "matrices", {(t.exact_dtype, t.shape, t.exact_digest) for t in matrices or tensors}
        ),
    )


def _combine(kind: str, rows: Iterable[tuple[object, ...]]) -> str:
    lines = sorted(json.dumps(row, separators=(",", ":")) for row in rows)
    return blake3("\n".join([FORM, kind, *lines]).encode()).hexdigest()


def _exactly(values: Array, dtype: str) -> Array | None:
    """``values`` as ``dtype``, or nothing where a single bit would be lost.

    Bit patterns are compared: a negative zero is no zero, and a NaN equals itself.
    """
    if len(values) > _PROBE and _exactly(values[:_PROBE], dtype) is None:
        return None
    narrow = cast(values, dtype)
    back = cast(narrow, values.dtype.name)
    return narrow if np.array_equal(bits(back), bits(values)) else None


def _bytes_of(values: Array) -> memoryview:
    return values.view(np.uint8).data if values.size else memoryview(b"")
