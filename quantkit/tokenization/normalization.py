"""sentencepiece's normalization, out of the normalizers that ``tokenizers`` has.

sentencepiece (``src/normalizer.cc``) goes from left to right: at each place the longest
user-defined piece is copied, else the longest rule's key is replaced, else one character
is copied. Call what it took a segment. ``tokenizers``' ``Precompiled`` reads the same
rules, but by grapheme cluster, and of a cluster shorter than six bytes it replaces the
whole by its *shortest* rule. Alone on one character it is exact. So:

1. a mark is set after each segment, by one regular expression that consumes a segment
   and keeps it (``\\K``); only beside characters that could join their neighbours;
2. another mark parts the characters within a segment, so that ``Precompiled`` sees
   single characters;
3. those inner marks go, and ``NFC`` composes within each segment, which gives the rules
   for whole keys (:mod:`~quantkit.tokenization.composition`);
4. the marks between segments go.

What NFC does not give (rules written by hand, user-defined pieces that the rules would
change) is replaced by a placeholder before step 1, which becomes its value after step 4.

A mark is two characters, and the first of them in a text is escaped, so that no text can
be mistaken for a mark. They are of the grapheme class Control, which nothing joins, and
unassigned, so that no rule names them.
"""

from __future__ import annotations

import unicodedata

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer, Precompiled, Prepend, Replace, Sequence

from quantkit.errors import SourceError
from quantkit.tokenization.charsmap import Charsmap
from quantkit.tokenization.composition import changed_by_nfc, find_composition
from quantkit.tokenization.patterns import characters, longest_of
from quantkit.tokenization.placeholders import Segments, own_rules
from quantkit.tokenization.proto import PieceType, SentencePieceModel

SPACE = "\u2581"

_ESCAPE = "\ufff0"
_CUT, _GAP, _ESCAPED = _ESCAPE + "\ufff1", _ESCAPE + "\ufff2", _ESCAPE + "\ufff3"
_OURS = "\ufff0-\ufff8"

# Each costs two walks over the text.
MAX_PLACEHOLDERS = 64

# What may join the character before it, in a grapheme cluster (UAX #29: Extend,
# SpacingMark, Hangul V and T, emoji modifiers) or in NFC; unassigned ones because a later
# Unicode may say so. And what may join the character after it (Prepend).
_JOINS_BEFORE = (
    r"\p{M}\p{Cf}\p{Cn}\x{e33}\x{eb3}\x{1160}-\x{11ff}\x{d7b0}-\x{d7ff}\x{ff9e}\x{ff9f}"
    r"\x{1f3fb}-\x{1f3ff}"
)
_JOINS_AFTER = (
    r"\p{Cf}\p{Cn}\x{d4e}\x{111c2}\x{111c3}\x{113d1}\x{1193f}\x{11941}\x{11a30}-\x{11a3f}"
    r"\x{11a84}-\x{11a89}\x{11d46}\x{11f02}"
)


def build_normalizer(model: SentencePieceModel, rules: Charsmap) -> Normalizer:
    """The normalizer that makes of any text what sentencepiece makes of it.

    Raises:
        SourceError: the model has rules that cannot be expressed; it names them.
    """
    spec = model.normalizer
    if not spec.escape_whitespaces:
        raise SourceError("escape_whitespaces=false: spaces kept as spaces are not supported")
    steps: list[Normalizer] = []
    if spec.add_dummy_prefix and not spec.remove_extra_whitespaces:
        # First of all, because sentencepiece asks whether the text itself is empty.
        steps.append(_dummy(model))
    if rules.rules:
        steps += _Rules(model, rules).steps()
    if spec.remove_extra_whitespaces:
        steps += [Replace(Regex(" {2,}"), " "), Replace(Regex(r"\A +"), "")]
        if spec.add_dummy_prefix and not model.trainer.treat_whitespace_as_suffix:
            steps.append(_dummy(model))
        # Also a U+2581 of the text itself, which sentencepiece takes for its own.
        end = f"[ {SPACE}]*\\z"
        if spec.add_dummy_prefix and model.trainer.treat_whitespace_as_suffix:
            steps.append(Replace(Regex(f"(?:\\A(?=[\\s\\S])|(?<=[^ {SPACE}])){end}"), SPACE))
        else:
            steps.append(Replace(Regex(end), ""))
    steps.append(Replace(" ", SPACE))
    return Sequence(steps) if len(steps) > 1 else steps[0]


def _dummy(model: SentencePieceModel) -> Normalizer:
    if model.trainer.treat_whitespace_as_suffix:
        return Replace(Regex(r"(?<=[\s\S])\z"), SPACE)
    return Prepend(SPACE)


class _Rules:
    """The steps for the rules of one model, and what they are derived from."""

    def __init__(self, model: SentencePieceModel, rules: Charsmap) -> None:
        self._blob = model.normalizer.precompiled_charsmap
        self._rules = rules
        self._single = rules.single
        self._several = rules.several
        self._copied = model.texts_of(PieceType.USER_DEFINED)
        self._by_nfc = find_composition(rules)
        self._check()

    def steps(self) -> list[Normalizer]:
        segments = Segments(tuple(self._copied), tuple(self._several))
        own = own_rules(self._values_of_own(), segments)
        if len(own) > MAX_PLACEHOLDERS:
            raise SourceError(
                f"{len(own)} normalization rules that NFC does not give (a rule file of one's own, "
                f"or user-defined pieces that the rules change): at most {MAX_PLACEHOLDERS}"
            )
        marks = [_placeholder(number) for number in range(len(own))]
        return [
            Replace(_ESCAPE, _ESCAPED),
            *(Replace(Regex(each.pattern), mark) for each, mark in zip(own, marks, strict=True)),
            *self._common(),
            *(
                Replace(mark, each.value.replace(_ESCAPE, _ESCAPED))
                for each, mark in zip(own, marks, strict=True)
            ),
            Replace(_ESCAPED, _ESCAPE),
        ]

    def _common(self) -> list[Normalizer]:
        """Steps 1 to 4."""
        joins = f"[{_JOINS_BEFORE}{self._joining()}&&[^{_OURS}]]"
        kept = [
            (_GAP + char, f"{_GAP}{_ESCAPE}\ufff7" + "\ufff8" * number + "\ufff7", char)
            for number, char in enumerate(sorted(self._by_nfc.kept))
        ]
        return [
            Replace(Regex(self._segment(joins)), _CUT),
            Replace(Regex(f"(?<=[^{_OURS}])(?={joins})"), _GAP),
            *(Replace(found, hidden) for found, hidden, _ in kept),
            Precompiled(self._blob),
            *(Replace(hidden, char) for _, hidden, char in kept),
            Replace(_GAP, ""),
            *([NFC()] if self._by_nfc.keys else []),
            Replace(_CUT, ""),
        ]

    def _check(self) -> None:
        touched = {char for key in self._several for char in key} | set(self._single)
        if any("\ufff0" <= char <= "\ufff8" for char in touched):
            raise SourceError("normalization rules for U+FFF0 to U+FFF8 are not supported")
        if any("  " in value for value in (*self._single.values(), *self._several.values())):
            raise SourceError("normalization rules that give two spaces are not supported")

    def _values_of_own(self) -> dict[str, str]:
        """What the common steps do not give, with its value."""
        given = self._by_nfc.keys.union(self._copied)
        own = {key: value for key, value in self._several.items() if key not in given}
        if self._by_nfc.keys:
            own |= {char: self._single.get(char, char) for char in changed_by_nfc(self._rules)}
        return own | {
            text: text
            for text in self._copied
            if any(char in self._single for char in text)
            or (self._by_nfc.keys and NFC().normalize_str(text) != text)
        }

    def _joining(self) -> str:
        """Characters that join the one before them only by this model's rules."""
        found = {char for key in self._by_nfc.keys for char in key[1:]}
        for char, value in self._single.items():
            if value and (unicodedata.category(value[0])[0] in "MC" or value[0] in "\uff9e\uff9f"):
                found.add(char)
        return characters(found)

    def _segment(self, joins: str) -> str:
        """Consumes one segment that must be parted from the next, and keeps it."""
        key = f"{longest_of(self._by_nfc.keys)}|" if self._by_nfc.keys else ""
        copied = f"{longest_of(self._copied)}|" if self._copied else ""
        after = f"[{_JOINS_AFTER}&&[^{_OURS}]]"
        return f"(?m)(?:{copied}(?=.{joins})(?:{key}.)|{after}|\\r(?=\\n))\\K"


def _placeholder(number: int) -> str:
    digits = f"{number:06b}".replace("0", "\ufff5").replace("1", "\ufff6")
    return f"{_ESCAPE}\ufff4{digits}"
