"""The one pass: read -> hash -> quantize -> write, in bounded memory.

``convert`` executes exactly the plan. Each weight file is read once, in order; each
piece goes to the digests and to the encoder of its tensor, whose output is written by
position into the staged shards. What is held at any moment is a few segments; of weights
stored transposed or strided, one and the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from quantkit.checkpoint.reading import same_values
from quantkit.checkpoint.shards import ShardWriter, write_index
from quantkit.checkpoint.stream import (
    Consumer,
    Segment,
    element_or_whole,
    stream_checkpoint,
    stream_tensors,
)
from quantkit.checkpoint.writing import WriteQueue
from quantkit.companions import write_companions
from quantkit.elements import Array, count_nonfinite, row_major
from quantkit.errors import NonFiniteError, SourceError
from quantkit.formats import Encoder, Format, Write, format_of
from quantkit.heap import small_blocks_stay
from quantkit.kernels.casting import cast
from quantkit.plans import Plan, TensorPlan
from quantkit.recipe import Recipe
from quantkit.registry import Registry
from quantkit.source import Source
from quantkit.types import (
    ITEM_BYTES,
    Digested,
    Listener,
    TensorRecord,
    counted,
    silent,
)

#: The output bytes of a weight that a calibration has quantized.
Ready = Callable[[TensorPlan], Iterator[Write]]


@dataclass(frozen=True)
class Converted:
    """What the pass found out, beside the files that it wrote.

    ``source`` are the digests of the weight files and of their tensors, ``underflows`` the
    number of non-zero values that a cast turned into zero, by tensor, ``tokenizer`` how its
    files came about, ``written`` SHA-256 of the files that were digested as they were written.
    """

    source: Digested
    underflows: Mapping[str, int]
    tokenizer: str
    written: Mapping[str, str] = field(default_factory=dict)


def run(
    plan: Plan,
    source: Source,
    recipe: Recipe,
    registry: Registry,
    folder: Path,
    *,
    ready: Ready | None = None,
    proven: Digested | None = None,
    device: str = "cpu",
    listener: Listener = silent,
) -> Converted:
    """Execute ``plan`` into ``folder``.

    ``ready`` gives the quantized weights where a calibration has made them; the pass then leaves
    out what they came from. ``proven`` are the source's digests where they were taken already:
    only what is streamed is then read, of files that have not changed since.

    Raises:
        CheckpointError: the source cannot be read to its end.
        NonFiniteError: a weight holds NaN or infinity, or overflows its new data type.
        SourceError: a tied copy differs from the weight that it is tied to.
        OSError: the disk cannot take the output.
    """
    small_blocks_stay()
    with ExitStack() as stack:
        writers = [
            stack.enter_context(closing(ShardWriter(folder, shard))) for shard in plan.shards
        ]
        form = format_of(recipe.method)
        queue = stack.enter_context(closing(WriteQueue(writers)))
        left_out = ("drop",) if ready is None else ("drop", "quantize")
        streamed = [each for each in plan.tensors if each.action not in left_out]
        worker = _Worker(streamed, form, device, queue)
        if proven is not None:
            _stream_again(source, streamed, worker, listener)
        digested = proven or _stream(source, registry, worker, listener)
        _check_ties(plan, source)
        if ready is not None:
            for each in chain.from_iterable(map(ready, plan.with_action("quantize"))):
                queue.put(each.name, each.offset, each.data)
        queue.drain()
        digests = {writer.file: writer.finish() for writer in writers}
    written = {name: digest for name, digest in digests.items() if digest is not None}
    write_index(folder, plan.shards)
    tokenizer = write_companions(plan, source, folder)
    return Converted(digested, worker.underflows, tokenizer, written)


def _stream(source: Source, registry: Registry, worker: _Worker, listener: Listener) -> Digested:
    """Read every weight file once, for its digests, its tensors' and the conversion."""
    return stream_checkpoint(
        source.folder,
        source.checkpoint,
        md5=registry.needs_md5,
        unit=worker.unit,
        consume=worker,
        recall=True,
        progress=counted(listener, "convert", source.weight_bytes),
    )


def _stream_again(
    source: Source, streamed: Sequence[TensorPlan], worker: _Worker, listener: Listener
) -> None:
    """Read what is converted here, and no more, of files that were digested before."""
    records = [each.source for each in streamed]
    tell = counted(listener, "convert", sum(each.nbytes for each in records))
    stream_tensors(
        source.folder, source.checkpoint, records, unit=worker.unit, consume=worker, progress=tell
    )


def _unit(item: TensorPlan, form: Format) -> int:
    """How many bytes an encoder must be given together: all where they must be rearranged."""
    if _is_rearranged(item):
        return max(1, item.source.nbytes)
    unit = ITEM_BYTES[item.source.dtype]
    return unit * form.unit(item.shape) if item.shape is not None else unit


def _is_rearranged(item: TensorPlan) -> bool:
    return item.transposed or item.source.stride is not None


class _Worker:
    """Gives pieces, in file order, to the encoders, and queues what they make; on one thread.

    ``underflows`` is complete when all pieces were given.
    """

    def __init__(
        self, streamed: Sequence[TensorPlan], form: Format, device: str, queue: WriteQueue
    ) -> None:
        self._items = {each.source.name: each for each in streamed}
        self._form, self._device, self._queue = form, device, queue
        self._encoders: dict[str, Encoder] = {}
        self.underflows: dict[str, int] = {}

    def unit(self, record: TensorRecord) -> int:
        """How many bytes of a tensor it wants at once."""
        item = self._items.get(record.name)
        return element_or_whole(record) if item is None else _unit(item, self._form)

    def __call__(self, segment: Segment, data: memoryview) -> None:
        item = self._items.get(segment.tensor or "")
        if item is None:  # dropped, or made by a calibration: it is only digested
            return
        encoder = self._encoders.get(item.source.name) or self._start(item)
        for each in encoder.feed(self._cast(item, _elements(item, data))):
            self._queue.put(each.name, each.offset, each.data)
        if segment.last:
            for each in encoder.finish():
                self._queue.put(each.name, each.offset, each.data)
            del self._encoders[item.source.name]

    def _start(self, item: TensorPlan) -> Encoder:
        if item.shape is None:
            encoder: Encoder = _Copy(item)
        else:
            encoder = self._form.encoder(item.source.name, item.shape, item.dtype, self._device)
        self._encoders[item.source.name] = encoder
        return encoder

    def _cast(self, item: TensorPlan, values: Array) -> Array:
        """``values`` in the plan's data type; what a cast loses is counted."""
        if item.dtype == item.source.dtype:
            return values
        made = cast(values, item.dtype)
        lost = int(np.count_nonzero(values)) - int(np.count_nonzero(made))
        if lost:
            name = item.source.name
            self.underflows[name] = self.underflows.get(name, 0) + lost
        return made


class _Copy:
    """The encoder of a tensor that is kept: its elements, as they are."""

    def __init__(self, item: TensorPlan) -> None:
        self._item = item
        self._at = 0

    def feed(self, piece: Array) -> Iterator[Write]:
        _refuse_nonfinite(self._item, piece)
        copied = piece.copy()  # the segment's buffer is reused before the write has happened
        for output in self._item.outputs:
            yield Write(output.name, self._at, copied)
        self._at += piece.nbytes

    def finish(self) -> Iterator[Write]:
        return iter(())


def nonfinite_guard(plan: Plan) -> Consumer:
    """A consumer that stops, before long work, at a value that ``plan``'s data type cannot hold
    (NonFiniteError)."""
    items = {each.source.name: each for each in plan.tensors if each.action != "drop"}

    def look(segment: Segment, data: memoryview) -> None:
        item = items.get(segment.tensor or "")
        if item is not None:
            stored = item.source  # never turned round, unlike in _elements: these are pieces
            values = row_major(data, stored.dtype, stored.shape, stored.stride)
            same = item.dtype == stored.dtype
            _refuse_nonfinite(item, values if same else cast(values, item.dtype))

    return look


def _refuse_nonfinite(item: TensorPlan, piece: Array) -> None:
    if count := count_nonfinite(piece):
        raise NonFiniteError(
            f"{item.source.name}: {count} values are NaN or infinite as {item.dtype}; the source "
            f"is damaged or overflows it (stored as {item.source.dtype}; "
            "try --set method.dtype=bfloat16)"
        )


def _elements(item: TensorPlan, data: memoryview) -> Array:
    """A segment's bytes as elements: 1-D, row-major, rows outermost."""
    record = item.source
    values = row_major(data, record.dtype, record.shape, record.stride)
    if not item.transposed:
        return values
    return np.ascontiguousarray(values.reshape(record.shape).T).reshape(-1)


def _check_ties(plan: Plan, source: Source) -> None:
    """A tied copy may be left out only if it holds the same values."""
    records = {each.source.name: each.source for each in plan.tensors}
    for item in plan.tensors:
        if item.tied_to is None:
            continue
        copy, own = item.source, records[item.tied_to]
        one_range = replace(copy, name=own.name) == own
        if not one_range and not same_values(source.folder, copy, own):
            raise SourceError(
                f"{copy.name}: config.json ties it to {own.name}, and the checkpoint holds other "
                "values; set tie_word_embeddings to false in config.json if both are meant"
            )
