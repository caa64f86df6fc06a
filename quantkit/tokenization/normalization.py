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
3. those inner marks go, and ``NFC`` composes within each segment: for the rules of NFKC
   and its relatives "each character's own rule, then NFC" *is* the rule of the whole key;
4. the marks between segments go.

What step 3 does not give (rules written by hand, user-defined pieces that the rules
would change) is found by walking the segments and replaced by a placeholder before step
1, which becomes its value after step 4. Whether a rule is of the first kind is tried
here, rule by rule, with ``tokenizers``' own NFC.

A mark is two characters, and that character in a text is escaped, so that no text can be
mistaken for a mark. They are of the grapheme class Control, which nothing joins, and
unassigned, so that no rule names them.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable

from tokenizers import Regex
from tokenizers.normalizers import NFC, Normalizer, Precompiled, Prepend, Replace, Sequence

from quantkit.errors import SourceError
from quantkit.tokenization.charsmap import Charsmap
from quantkit.tokenization.patterns import characters, literal, longest_of
from quantkit.tokenization.proto import PieceType, SentencePieceModel

SPACE = "\u2581"

_ESCAPE = "\ufff0"
_CUT, _GAP, _ESCAPED = _ESCAPE + "\ufff1", _ESCAPE + "\ufff2", _ESCAPE + "\ufff3"
_OURS = "\ufff0-\ufff8"

# Each costs a walk over the text.
MAX_PLACEHOLDERS = 64

# What may join the character before it, in a grapheme cluster (UAX #29: Extend,
# SpacingMark, Hangul V and T, emoji modifiers) or in NFC; unassigned ones because a later
# Unicode may say so. And what may join the character after it (Prepend).
_JOINS_BEFORE = (
    r"\p{M}\p{Cf}\p{Cn}\x{e33}\x{eb3}\x{1160}-\x{11ff}\x{d7b0}-\x{d7ff}\x{ff9e}\x{ff9f}"
    r"\x{1f3fb}-\x{1f3ff}"
)
_JOINS_AFTER = (
    r"\p{Cf}\p{Cn}\x{d4e}\x{111c2}\x{111c3}\x{1193f}\x{11941}\x{11a3a}\x{11a84}-\x{11a89}"
    r"\x{11f02}\x{113d1}\x{11a30}-\x{11a3f}\x{11d46}"
)


def build_normalizer(model: SentencePieceModel, rules: Charsmap) -> Normalizer | None:
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
    steps.append(Replace(" ", SPACE))
    if spec.remove_extra_whitespaces:
        # Also a U+2581 of the text itself, which sentencepiece takes for its own.
        steps.append(Replace(Regex(f"{SPACE}+\\z"), ""))
        if spec.add_dummy_prefix and model.trainer.treat_whitespace_as_suffix:
            steps.append(_dummy(model))
    return Sequence(steps) if len(steps) > 1 else steps[0]


def _dummy(model: SentencePieceModel) -> Normalizer:
    if model.trainer.treat_whitespace_as_suffix:
        return Replace(Regex(r"(?<=[\s\S])\z"), SPACE)
    return Prepend(SPACE)


class _Rules:
    """The steps for the rules of one model, and what they are derived from."""

    def __init__(self, model: SentencePieceModel, rules: Charsmap) -> None:
        self._blob = model.normalizer.precompiled_charsmap
        self._single = rules.single
        self._several = rules.several
        self._protected = model.texts_of(PieceType.USER_DEFINED)
        self._composes = _composing(rules)
        self._check()

    def steps(self) -> list[Normalizer]:
        special = self._special()
        steps: list[Normalizer] = [Replace(_ESCAPE, _ESCAPED)]
        steps += [
            Replace(Regex(self._walk_to(text)), _placeholder(number))
            for number, text in enumerate(special)
        ]
        joins = f"[{_JOINS_BEFORE}{self._joining()}&&[^{_OURS}]]"
        steps += [
            Replace(Regex(self._segment(joins)), _CUT),
            Replace(Regex(f"(?<=[^{_OURS}])(?={joins})"), _GAP),
            Precompiled(self._blob),
            Replace(_GAP, ""),
        ]
        if self._composes:
            steps.append(NFC())
        steps.append(Replace(_CUT, ""))
        steps += [
            Replace(_placeholder(number), value.replace(_ESCAPE, _ESCAPED))
            for number, value in enumerate(special.values())
        ]
        return [*steps, Replace(_ESCAPED, _ESCAPE)]

    def _check(self) -> None:
        touched = {char for key in self._several for char in key} | set(self._single)
        if any("\ufff0" <= char <= "\ufff8" for char in touched):
            raise SourceError("normalization rules for U+FFF0 to U+FFF8 are not supported")
        if any("  " in value for value in (*self._single.values(), *self._several.values())):
            raise SourceError("normalization rules that give two spaces are not supported")

    def _special(self) -> dict[str, str]:
        """What needs a placeholder, longest first, with its value."""
        special = {key: value for key, value in self._several.items() if key not in self._composes}
        if self._composes:
            special |= {
                char: self._single.get(char, char) for char in _changed_by_nfc(self._single)
            }
        special |= {
            text: text
            for text in self._protected
            if any(char in self._single for char in text)
            or (self._composes and NFC().normalize_str(text) != text)
        }
        if len(special) > MAX_PLACEHOLDERS:
            raise SourceError(
                f"{len(special)} normalization rules that are not NFC (a rule file of one's own), "
                f"at most {MAX_PLACEHOLDERS} are supported"
            )
        return dict(sorted(special.items(), key=lambda each: -len(each[0])))

    def _joining(self) -> str:
        """Characters that join the one before them only by this model's rules."""
        found = {char for key in self._composes for char in key[1:]}
        for char, value in self._single.items():
            if value and (unicodedata.category(value[0])[0] in "MC" or value[0] in "\uff9e\uff9f"):
                found.add(char)
        return characters(found)

    def _segment(self, joins: str) -> str:
        """Consumes one segment that must be parted from the next, and keeps it."""
        key = f"{longest_of(self._composes)}|" if self._composes else ""
        ours = f"{longest_of(self._protected)}|" if self._protected else ""
        after = f"[{_JOINS_AFTER}&&[^{_OURS}]]"
        return f"(?m)(?:{ours}(?=.{joins})(?:{key}.)|{after}|\\r(?=\\n))\\K"

    def _walk_to(self, text: str) -> str:
        """The next segment that is ``text``, reached segment by segment from the last one."""
        mine = text in self._protected
        rivals = self._protected if mine else list(self._several)
        longer = [each[len(text) :] for each in rivals if each.startswith(text) and each != text]
        found = literal(text) + (f"(?!{longest_of(longer)})" if longer else "")
        ours = longest_of(self._protected) if self._protected else ""
        if ours and not mine:
            found = f"(?!{ours}){found}"
        if not any(_may_swallow(other, text) for other in (*self._protected, *self._several)):
            return found  # wherever it stands, a segment begins there
        any_segment = "|".join(filter(None, [ours, longest_of(self._several), "."]))
        return f"(?m)\\G(?>(?!{found})(?:{any_segment}))*+\\K{found}"


def _may_swallow(other: str, text: str) -> bool:
    """Whether ``other``, begun further left, can reach into ``text``."""
    if text in other[1:]:
        return True
    return any(other.endswith(text[:size]) for size in range(1, min(len(text), len(other) - 1) + 1))


def _composing(rules: Charsmap) -> set[str]:
    """Keys of several characters whose value is "each character's own rule, then NFC"."""
    single = rules.single
    several = list(rules.several.items())
    before = ["".join(single.get(char, char) for char in key) for key, _ in several]
    after = _each_by_nfc(before)
    return {key for (key, value), composed in zip(several, after, strict=True) if composed == value}


def _changed_by_nfc(single: dict[str, str]) -> list[str]:
    """Characters whose own rule's value NFC would change though sentencepiece does not."""
    chars = [chr(code) for code in range(1, sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    before = [single.get(char, char) for char in chars]
    after = _each_by_nfc(before)
    return [char for char, one, other in zip(chars, before, after, strict=True) if one != other]


def _each_by_nfc(texts: Iterable[str]) -> list[str]:
    """NFC of each text, by ``tokenizers``, whose Unicode version counts here; in one call."""
    # A NUL is a starter that composes with nothing and that rules cannot hold (it ends them).
    return NFC().normalize_str("\0".join(texts)).split("\0")


def _placeholder(number: int) -> str:
    digits = f"{number:06b}".replace("0", "\ufff5").replace("1", "\ufff6")
    return f"{_ESCAPE}\ufff4{digits}"
