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
