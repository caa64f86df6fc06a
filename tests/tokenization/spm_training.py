"""Tiny sentencepiece models, trained with one set of options each."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

import quantkit
from quantkit.tokenization import build_tokenizer_json, check_fidelity, parse_model
from quantkit.tokenization.corpus import pieces, random_strings, written

TEXT = (Path(quantkit.__file__).parent / "data" / "evaluation.txt").read_text(encoding="utf-8")
LINES = [line for line in TEXT.splitlines() if line.strip()][:200]
LINES += [
    "<sep> ffi x… ",
    "if x:\n\treturn  [x  ** 2]",
    "e\u0301a\u0308o",
    "cafe\u0301 ｶﾞ か\u3099",
] * 3

# Hand-written rules: one inside another, one that begins where another ends, a fold.
RULES = "28 63 29\tA9\n41\t61\n66 66 69\tFB03\n2E 2E 2E\t2026\n2E 2E\t2025\n78 0301\t79 0302\n"

TRICKY = [
    "(c)",
    "(c",
    "x(c)(c))",
    "AAa..",
    ".....",
    "x\u0301",
    "ax\u0301\u0301",
    "ffi ffiA Ａ",
    "<sep><sep> x<sep>",
    "＜sep＞",
    "ｶﾞｶﾞﾞ ｶ<sep>\u0301",
    "<user>\u0338<|x|>|x|>",
    "\u2581",
    "\u2581\u2581",
    "aaaaaaaaaaa",
    "-----------",
    "¨ ¨",
    "a ¨",
]


def train(lines: list[str] = LINES, **options: Any) -> bytes:
    """The model file's bytes."""
    options = {"vocab_size": 700, "character_coverage": 0.99, **options}
    options.setdefault("hard_vocab_limit", False)
    if options.get("byte_fallback"):
        options["vocab_size"] += 256
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        minloglevel=2,
        num_threads=1,
        **options,
    )
    return out.getvalue()


def proto(data: bytes) -> Any:
    message = sentencepiece_model_pb2.ModelProto()
    message.ParseFromString(data)
    return message


def report_of(data: bytes, folder: Path, count: int = 150, texts: list[str] | None = None):
    """Build the tokenizer of a model and compare it on texts of every kind, or on ``texts``."""
    model = parse_model(data)
    spiece, built = folder / "spiece.model", folder / "tokenizer.json"
    spiece.write_bytes(data)
    build_tokenizer_json(model).save(str(built))
    if texts is not None:
        return check_fidelity(built, spiece, texts)
    tricky = [*TRICKY, *(one + two for one in TRICKY for two in TRICKY[:8])]
    texts = [*written(), *pieces(model), *random_strings(count), *tricky, *LINES[:40], TEXT]
    return check_fidelity(built, spiece, texts)
