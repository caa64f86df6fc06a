"""A sentencepiece model file, read into frozen dataclasses.

The file is one protocol buffer message, ``ModelProto``, whose fields sentencepiece
documents in ``src/sentencepiece_model.proto``. Its wire format (protobuf.dev, "Encoding")
is four rules: a varint key of field number and wire type, then a varint, eight bytes, a
length with that many bytes, or four bytes. A reader of these is shorter than the
baggage of a protobuf runtime, whose generated modules also clash when transformers and
sentencepiece both bring theirs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from quantkit.errors import SourceError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_Field = int | bytes


class PieceType(IntEnum):
    """``ModelProto.SentencePiece.Type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class ModelType(IntEnum):
    """``TrainerSpec.ModelType``."""

    UNIGRAM = 1
    BPE = 2
    WORD = 3
    CHAR = 4


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class TrainerSpec:
    """What of the trainer's settings matters after training."""

    model_type: ModelType
    byte_fallback: bool
    treat_whitespace_as_suffix: bool
    bos_piece: str
    eos_piece: str
    pad_piece: str
    unk_surface: str


@dataclass(frozen=True)
class NormalizerSpec:
    precompiled_charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


@dataclass(frozen=True)
class SentencePieceModel:
    pieces: tuple[Piece, ...]
    trainer: TrainerSpec
    normalizer: NormalizerSpec
    denormalizer: NormalizerSpec

    def ids_of(self, *types: PieceType) -> list[int]:
        return [index for index, piece in enumerate(self.pieces) if piece.type in types]

    def texts_of(self, *types: PieceType) -> list[str]:
        return [piece.text for piece in self.pieces if piece.type in types]

    @property
    def unk_id(self) -> int:
        """The unknown piece's id; sentencepiece loads no model without exactly one."""
        found = self.ids_of(PieceType.UNKNOWN)
        if len(found) != 1:
            raise SourceError(f"sentencepiece model: {len(found)} unknown pieces, expected one")
        return found[0]


def read_model(path: Path) -> SentencePieceModel:
    """The model in ``path``.

    Raises:
        SourceError: the file cannot be read or is no sentencepiece model.
    """
    try:
        return parse_model(path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error


def parse_model(data: bytes) -> SentencePieceModel:
    """The message in ``data``.

    Raises:
        SourceError: it is no ``ModelProto``.
    """
    try:
        pieces = tuple(_piece(_inner(value)) for number, value in _fields(data) if number == 1)
        top = dict(_fields(data))
        model = SentencePieceModel(
            pieces=pieces,
            trainer=_trainer(_inner(top.get(2, b""))),
            normalizer=_normalizer(_inner(top.get(3, b""))),
            denormalizer=_normalizer(_inner(top.get(5, b""))),
        )
    except (ValueError, struct.error, IndexError) as error:
        raise SourceError(f"not a sentencepiece model: {error}") from error
    if not pieces:
        raise SourceError("not a sentencepiece model: it holds no pieces")
    return model


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    return Piece(
        text=_text(fields, 1, ""),
        score=struct.unpack("<f", _inner(fields.get(2, b"\0\0\0\0")))[0],
        type=PieceType(_number(fields, 3, PieceType.NORMAL)),
    )


def _trainer(data: bytes) -> TrainerSpec:
    fields = dict(_fields(data))
    return TrainerSpec(
        model_type=ModelType(_number(fields, 3, ModelType.UNIGRAM)),
        byte_fallback=bool(_number(fields, 35, 0)),
        treat_whitespace_as_suffix=bool(_number(fields, 24, 0)),
        bos_piece=_text(fields, 46, "<s>"),
        eos_piece=_text(fields, 47, "</s>"),
        pad_piece=_text(fields, 48, "<pad>"),
        unk_surface=_text(fields, 44, " \u2047 "),
    )


def _normalizer(data: bytes) -> NormalizerSpec:
    fields = dict(_fields(data))
    return NormalizerSpec(
        precompiled_charsmap=_inner(fields.get(2, b"")),
        add_dummy_prefix=bool(_number(fields, 3, 1)),
        remove_extra_whitespaces=bool(_number(fields, 4, 1)),
        escape_whitespaces=bool(_number(fields, 5, 1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, _Field]]:
    """Each field's number and value; of a field that repeats, the last one counts."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"field {number} ends after the file")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits before byte {at}")


def _inner(value: _Field) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes are expected")
    return value


def _number(fields: dict[int, _Field], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no number")
    return value


def _text(fields: dict[int, _Field], number: int, default: str) -> str:
    return _inner(fields[number]).decode() if number in fields else default
