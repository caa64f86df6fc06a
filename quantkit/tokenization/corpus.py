"""Texts on which tokenizers are known to part from sentencepiece.

Written for this project; the random ones come from a seed, so that a report names a
corpus that anyone can make again.
"""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Iterator
from itertools import product

from quantkit.tokenization.proto import PieceType, SentencePieceModel

_WRITTEN = (
    "",
    "吾輩は猫である。名前はまだ無い。どこで生れたか頓と見当がつかぬ。",
    "გამარჯობა 吾輩は 猫である ",
    "ყველა ადამიანი იბადება თავისუფალი.",
    "The quick brown fox jumps over the lazy dog; it's 3.14159 o'clock.",
    "ユーザー: こんにちは。<NL>システム: はい、何でしょうか。<NL>ユーザー: ",
    "👩‍👩‍👧‍👦 👨🏽‍💻 🏳️‍🌈 🇯🇵🇬🇪 ✊🏿 ☺️ 1️⃣",
    "ｶﾞｷﾞｸﾞｹﾞｺﾞ ﾊﾟﾋﾟﾌﾟﾍﾟﾎﾟ ｳﾞｧ ﾂﾞ ｱﾞ ﾞﾟ カ゛カﾞ",
    "ＡＢＣ　ａｂｃ　１２３　（）［］｛｝〜￥",
    "か\u3099き\u3099は\u309aう\u3099 \u3099\u309a あ\u3099",
    "e\u0301 e\u0323\u0301 e\u0301\u0323 A\u030a \u0301a n\u0303\u0303 q\u0307\u0323",
    "① ㌔ ㍿ ﷺ ½ ² ﬁ Ǆ ℡ ΐ ᾅ ŉ",
    "각 \u1100\u1161\u11a8 \u1112\u1161 한\u11ab \uac00\u11a8",
    "नमस्ते क्षत्रिय ภาษาไทย กำ العربيّة עִבְרִית Tiếng Việt ŵǘ",
    " ",
    "   ",
    " a",
    "a ",
    "  a  b   c  ",
    "\u3000全角　空白\u3000\u3000",
    "\t\ttab\tund\tmehr\t",
    "\n\nnew\nlines\r\nand\rreturns\n",
    "a\u00a0b\u2003c\u200bd\u200ce\u200df\u2060g\ufeffh\u00adi",
    "a\u2028b\u2029c\u0085d",
    "\u2581 \u2581\u2581a\u2581",
    "a\x01b\x02 \x03 c\x7f\x80\x9f\x0b\x0c\x1b[0m",
    "a\x00b\x00",
    "\ufff0\ufff1\ufff2\ufff3 \ufff0\ufff0\ufff1 \ufff4\ufff5\ufffd\uffff\U0010ffff",
    "\u0600a \u06dd1 \U000110bdx",
    "<s>a</s> [UNK] <unk> [PAD] <pad> [MASK]</s>",
    "<0x41><0x0A><0xE3> <0x",
    "iii llll ーーーーー ……… 。。。 ----------",
    "def f(x):\n    return {'a': [x**2, 0x1F]}  # …\n",
    "https://example.com/?q=%E7%8C%AB&x=1#y",
    "ÅÅÅ ſ ẛ\u0323 ϓ\u0301 µ ß İ ı",
)

_HALF_WIDTH = [chr(code) for code in range(0xFF61, 0xFFA0)]
_SPACES = [" ", "  ", "\t", "\n", "\u3000", "\u2581", "\u00a0", "\u200b"]


def written() -> Iterator[str]:
    """Sentences and known stumbling blocks."""
    yield from _WRITTEN
    for kana in _HALF_WIDTH:
        yield f"{kana}ﾞ{kana}ﾟ{kana}"
    for one, two in product(_SPACES, repeat=2):
        yield f"{one}a{two}b{one}{two}"


def pieces(model: SentencePieceModel) -> Iterator[str]:
    """Every piece of the vocabulary as text: alone, and for the special ones inside text."""
    for piece in model.pieces:
        yield piece.text
    for piece in model.pieces:
        if piece.type is not PieceType.NORMAL:
            yield f"a{piece.text}あ{piece.text}"


def piece_strings(model: SentencePieceModel, count: int) -> Iterator[str]:
    """Strings of pieces from all over the vocabulary, where segmentations compete."""
    chooser = random.Random(0)
    texts = [piece.text for piece in model.pieces if piece.type is PieceType.NORMAL]
    for _ in range(count if texts else 0):
        yield "".join(chooser.choices(texts, k=chooser.randint(2, 12)))


def random_strings(count: int, seed: int = 0) -> Iterator[str]:
    """Strings of assigned code points, thick with what joins: marks, formats, spaces."""
    chooser = random.Random(seed)
    assigned = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    joining = [char for char in assigned if unicodedata.category(char)[0] in "MCZ"]
    common = [char for char in assigned if char < "\u0250" or "\u3040" <= char < "\u3100"]
    pools = (assigned, assigned, joining, common, _HALF_WIDTH)
    for _ in range(count):
        size = chooser.randint(1, 20)
        yield "".join(chooser.choice(chooser.choice(pools)) for _ in range(size))


def corpus(model: SentencePieceModel, count: int) -> Iterator[str]:
    """All of the above."""
    yield from written()
    yield from pieces(model)
    yield from piece_strings(model, count)
    yield from random_strings(count)
