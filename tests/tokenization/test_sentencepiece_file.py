"""The reader of model files against sentencepiece's own protobuf module and normalizer."""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from pathlib import Path

import pytest
import sentencepiece
from spm_training import RULES, proto, train
from tokenizers.normalizers import NFKC

from quantkit.errors import SourceError
from quantkit.tokenization.charsmap import decode_charsmap
from quantkit.tokenization.proto import parse_model, read_model


@pytest.fixture(scope="module")
def data() -> bytes:
    return train(
        model_type="unigram",
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="nmt_nfkc",
        user_defined_symbols=["<sep>"],
        unk_surface="?!",
    )


def test_every_field_is_what_protobuf_reads(data: bytes) -> None:
    ours, theirs = parse_model(data), proto(data)
    assert [(each.text, each.score, int(each.type)) for each in ours.pieces] == [
        (each.piece, each.score, each.type) for each in theirs.pieces
    ]
    for name in ("model_type", "byte_fallback", "pad_piece", "unk_surface"):
        assert getattr(ours.trainer, name) == getattr(theirs.trainer_spec, name)
    for name in ("precompiled_charsmap", "add_dummy_prefix", "escape_whitespaces"):
        assert getattr(ours.normalizer, name) == getattr(theirs.normalizer_spec, name)


def test_defaults_are_protobufs() -> None:
    message = proto(b"")
    message.pieces.add(piece="<unk>", type=2)
    ours = parse_model(message.SerializeToString())
    assert ours.trainer.bos_piece == message.trainer_spec.bos_piece
    assert ours.trainer.unk_surface == message.trainer_spec.unk_surface
    assert ours.normalizer.remove_extra_whitespaces
    assert ours.unk_id == 0


TRAINER = ("model_type", "byte_fallback", "treat_whitespace_as_suffix", "bos_piece", "eos_piece",
           "pad_piece", "unk_surface")  # fmt: skip
NORMALIZER = ("precompiled_charsmap", "add_dummy_prefix", "remove_extra_whitespaces",
              "escape_whitespaces")  # fmt: skip


@pytest.mark.parametrize("stated", [False, True])
def test_each_field_stated_and_left_out(stated: bool) -> None:
    message = proto(b"")
    message.pieces.add()
    message.pieces.add(piece="<unk>", type=2, score=-1.5)
    for length in (127, 128, 129, 16384):
        message.pieces.add(piece="a" * length)
    if stated:
        spec = message.trainer_spec
        spec.model_type, spec.byte_fallback, spec.treat_whitespace_as_suffix = 2, True, True
        spec.bos_piece, spec.eos_piece, spec.pad_piece, spec.unk_surface = "b", "e", "p", "u"
        for at, each in enumerate((message.normalizer_spec, message.denormalizer_spec)):
            each.precompiled_charsmap = b"map" + bytes([at])
            each.add_dummy_prefix = at == 1
            each.remove_extra_whitespaces, each.escape_whitespaces = at == 0, False
    ours = parse_model(message.SerializeToString())
    for part, spec, names in (
        (ours.trainer, message.trainer_spec, TRAINER),
        (ours.normalizer, message.normalizer_spec, NORMALIZER),
        (ours.denormalizer, message.denormalizer_spec, NORMALIZER),
    ):
        for name in names:
            assert getattr(part, name) == getattr(spec, name), name
    assert [(each.text, each.score, int(each.type)) for each in ours.pieces] == [
        (each.piece, each.score, each.type) for each in message.pieces
    ]
    assert ours.unk_id == 1


@pytest.mark.parametrize("unknown", [0, 2])
def test_a_model_has_one_unknown_piece(unknown: int) -> None:
    message = proto(b"")
    message.pieces.add(piece="a")
    for _ in range(unknown):
        message.pieces.add(piece="<unk>", type=2)
    with pytest.raises(SourceError, match=f"{unknown} unknown pieces"):
        _ = parse_model(message.SerializeToString()).unk_id


PIECE = b"\x0a\x03\x0a\x01a"


@pytest.mark.parametrize(
    "more",
    [
        b"\xc0\x0c" + b"\xff" * 9 + b"\x01",  # field 200: 64 bits
        b"\xc1\x0c" + bytes(8),
        b"\xc2\x0c\x02ab",
        b"\xc5\x0c" + bytes(4),
        b"\x12\x03\x82\x03\x00\x12\x04\xf2\x02\x01x",  # the last trainer counts
    ],
)
def test_fields_of_others_are_passed_over(more: bytes) -> None:
    for data in (PIECE + more, more + PIECE):
        assert [each.text for each in parse_model(data).pieces] == ["a"]
        assert parse_model(data).trainer.bos_piece == ("x" if more[0] == 0x12 else "<s>")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (b"\xc0\x0c" + b"\xff" * 10 + b"\x01", "more than 64 bits"),
        (b"\xc1\x0c" + bytes(7), "field 200 ends after"),
        (b"\xc5\x0c" + bytes(3), "field 200 ends after"),
        (b"\xc2\x0c\x03ab", "field 200 ends after"),
        (b"\xc3\x0c", "wire type 3"),
        (b"\xc4\x0c", "wire type 4"),
        (b"\x10\x01", "where bytes are expected"),  # a trainer that is a number
        (b"\x12\x04\x1a\x02ab", "field 3 is no number"),
        (b"\x12\x02\x18\x09", "9 is not a valid ModelType"),
        (b"\xc0", "index out of range"),
        (b"\x0a\x05\x0a\x01a\x12\x00", "unpack requires"),  # a score of no bytes
    ],
)
def test_what_is_broken_is_told(more: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=f"not a sentencepiece model: .*{words}"):
        parse_model(PIECE + more)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.model: cannot be read: No such file"):
        read_model(tmp_path / "none.model")


@pytest.mark.parametrize(
    "broken", [b"", b"\x00", b"not a model at all", b"\x0a\xff\xff\xff\xff\x0f", b"\xff" * 20]
)
def test_what_is_no_model_is_refused(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "spiece.model"
    path.write_bytes(broken)
    with pytest.raises(SourceError, match="not a sentencepiece model"):
        read_model(path)


def test_a_cut_file_is_refused_at_every_length(data: bytes) -> None:
    """Some cuts fall between two fields, where the rest is a smaller valid message."""
    for size in range(1, len(data), len(data) // 200):
        with contextlib.suppress(SourceError):
            assert len(parse_model(data[:size]).pieces) <= len(proto(data).pieces)


def test_the_charsmap_is_what_sentencepiece_normalizes_with(data: bytes) -> None:
    message = proto(data)
    message.normalizer_spec.remove_extra_whitespaces = False
    library = sentencepiece.SentencePieceProcessor(model_proto=message.SerializeToString())
    rules = decode_charsmap(message.normalizer_spec.precompiled_charsmap).rules
    assert len(rules) > 200_000
    for key in list(rules)[::50]:
        assert library.normalize(key) == rules[key].replace(" ", "\u2581")


def test_hand_written_rules_decode_to_themselves(tmp_path: Path) -> None:
    path = tmp_path / "rules.tsv"
    path.write_text(RULES)
    model = parse_model(train(normalization_rule_tsv=str(path)))
    assert decode_charsmap(model.normalizer.precompiled_charsmap).rules == {
        "(c)": "©",
        "A": "a",
        "ffi": "ﬃ",
        "...": "…",
        "..": "‥",
        "x\u0301": "y\u0302",
    }


@pytest.mark.parametrize("blob", [b"\x01", b"\xff\xff\xff\xff", b"\x03\0\0\0abc", b"\x04\0\0\0a"])
def test_a_broken_charsmap_is_refused(blob: bytes) -> None:
    with pytest.raises(SourceError, match="charsmap"):
        decode_charsmap(blob)


def test_random_bytes_never_run_away() -> None:
    chooser = random.Random(0)
    for _ in range(100):
        size = 4 * chooser.randint(1, 300)
        blob = struct.pack("<I", size) + chooser.randbytes(size + 50)
        with contextlib.suppress(SourceError):
            decode_charsmap(blob)


def test_a_trie_that_bites_its_tail_is_refused() -> None:
    """Unit 0 leads to unit 1 by the byte 1, whose children begin where unit 0's do."""
    units = [0, 1 | (1 << 10)]
    blob = struct.pack("<III", 8, *units) + b"x\0"
    with pytest.raises(SourceError, match="circle"):
        decode_charsmap(blob)


def test_no_character_of_the_later_planes_changes() -> None:
    """Which is why they need not be tried one by one."""
    later = "\0".join(map(chr, range(0x30000, sys.maxunicode + 1)))
    assert NFKC().normalize_str(later) == later
