"""sentencepiece's normalization, out of the normalizers that ``tokenizers`` has.

sentencepiece replaces a text segment by segment (:mod:`~quantkit.tokenization.segments`).
``tokenizers`` has whole normalizers, such as NFKC, which give nearly every rule of a model
(:mod:`~quantkit.tokenization.coverage`), but also join what sentencepiece keeps apart. So:

1. a mark is set between segments that would join, and before every exception, that is,
   where the normalizer is wrong;
2. the normalizer runs;
3. where an exception stands behind its mark, a list of all their values is inserted
   between the two;
4. everything but the one right value is deleted: the marks, the exception, the other values,
   and the ASCII characters that the rules delete.

A step of ``tokenizers`` replaces by one fixed text, and each costs a walk over the whole
text; so twenty exceptions by a list are ten times cheaper than by a replacement each. In
an ordinary text the expressions match nowhere.

Where the normalizer would make two exceptions alike, each becomes a name of its own before
step 2, by a list of names in the same way.

A mark is U+FFF1 after a character that the rules delete anyway (else after U+FFF0); U+FFF1
alone ends each value of the list. Where the text itself holds one of these, it gets a mark
before it, by which it is told from ours.
"""

from __future__ import annotations

from tokenizers import Regex
from tokenizers.normalizers import Normalizer, Prepend, Replace, Sequence

from quantkit.errors import SourceError
from quantkit.tokenization.charsmap import Charsmap
from quantkit.tokenization.coverage import Coverage, find_coverage, normalizers_of
from quantkit.tokenization.patterns import (
    END,
    GAP,
    MARK,
    ONE,
    ZERO,
    characters,
    literal,
    longest_of,
)
from quantkit.tokenization.proto import PieceType, SentencePieceModel
from quantkit.tokenization.segments import cut_pattern

SPACE = "\u2581"


def build_normalizer(model: SentencePieceModel, rules: Charsmap) -> Normalizer:
    """The normalizer that makes of any text what sentencepiece makes of it.

    Raises:
        SourceError: the model has rules that cannot be expressed; it names them.
    """
    spec = model.normalizer
    if not spec.escape_whitespaces:
        raise SourceError("escape_whitespaces=false: spaces kept as spaces are not supported")
    copied = tuple(model.texts_of(PieceType.USER_DEFINED))
    if spec.remove_extra_whitespaces and any("  " in text for text in copied):
        raise SourceError(
            "user_defined_symbols with two spaces beside remove_extra_whitespaces are not supported"
        )
    steps: list[Normalizer] = []
    spaces = " "
    if spec.add_dummy_prefix and not spec.remove_extra_whitespaces:
        # First of all, because sentencepiece asks whether the text itself is empty. As a space,
        # it is not taken for part of a longer segment.
        longer = [text for text in (*copied, *rules.several) if len(text) > 1 and SPACE in text]
        spaced = any(" " in text for text in (*copied, *rules.rules))
        steps.append(_dummy(model, " " if rules.rules and longer and not spaced else SPACE))
    if rules.rules:
        _check(rules)
        blob, trims = spec.precompiled_charsmap, spec.remove_extra_whitespaces
        coverage = find_coverage(rules, blob, copied, spaced=not trims)
        steps += _rules(coverage, copied, blob)
        spaces += "".join(sorted(coverage.spaces))
    every_space = Regex(f"[{characters(spaces)}]") if len(spaces) > 1 else " "
    if spec.remove_extra_whitespaces:
        if len(spaces) > 1:
            steps.append(Replace(every_space, " "))
        steps += _trim(model)
        every_space = " "
    steps.append(Replace(every_space, SPACE))
    return Sequence(steps) if len(steps) > 1 else steps[0]


def _trim(model: SentencePieceModel) -> list[Normalizer]:
    spec = model.normalizer
    steps: list[Normalizer] = [Replace(Regex(" {2,}"), " "), Replace(Regex(r"\A +"), "")]
    if spec.add_dummy_prefix and not model.trainer.treat_whitespace_as_suffix:
        steps.append(_dummy(model))
    # Also a U+2581 of the text itself, which sentencepiece takes for its own.
    end = f"[ {SPACE}]*\\z"
    if spec.add_dummy_prefix and model.trainer.treat_whitespace_as_suffix:
        steps.append(Replace(Regex(f"(?:\\A(?=[\\s\\S])|(?<=[^ {SPACE}])){end}"), SPACE))
    else:
        steps.append(Replace(Regex(end), ""))
    return steps


def _dummy(model: SentencePieceModel, space: str = SPACE) -> Normalizer:
    if model.trainer.treat_whitespace_as_suffix:
        return Replace(Regex(r"(?<=[\s\S])\z"), space)
    return Prepend(space)


def _check(rules: Charsmap) -> None:
    touched = {char for text in rules.rules.items() for part in text for char in part}
    if touched & {MARK, END, GAP, ZERO, ONE}:
        raise SourceError("normalization rules with U+FFF0 to U+FFF4 are not supported")
    if any("  " in value for value in rules.rules.values()):
        raise SourceError("normalization rules that give two spaces are not supported")


def _rules(coverage: Coverage, copied: tuple[str, ...], blob: bytes) -> list[Normalizer]:
    """Steps 1 to 4."""
    deleted = [f"[{characters(coverage.deleted)}]"] if coverage.deleted else []
    if not coverage.base and not coverage.exceptions:
        return [Replace(Regex(each), "") for each in deleted]
    # ``Precompiled`` would delete such a character before its time.
    free = [] if "Precompiled" in coverage.base else sorted(coverage.deleted)
    mark = (free[0] if free else MARK) + END
    steps: list[Normalizer] = [
        Prepend(END),  # ``tokenizers`` cannot insert a mark at the very beginning
        Replace(Regex(cut_pattern(coverage, copied)), mark),
    ]
    left = [(each.found, each.value) for each in coverage.exceptions]
    if coverage.hidden:
        names = [_name(number) for number in range(len(left))]
        shown = [(found, name) for (found, _), name in zip(left, names, strict=True)]
        steps += [_listed(shown, mark), Replace(Regex("|".join(_chosen(shown, mark))), "")]
        left = [(name, value) for (_, value), name in zip(left, names, strict=True)]
    steps += normalizers_of(coverage.base, blob)
    if left:
        steps.append(_listed(left, mark))
    last = [*_chosen(left, mark), literal(mark), *deleted, f"\\A{literal(END)}"]
    return [*steps, Replace(Regex("|".join(last)), "")]


def _name(number: int) -> str:
    """Stands for an exception that the base must not see; no name begins with another."""
    return f"{number:08b}".replace("0", ZERO).replace("1", ONE)


def _listed(left: list[tuple[str, str]], mark: str) -> Normalizer:
    """A list of all values between the mark and what was found."""
    found = longest_of(each for each, _ in left)
    return Replace(Regex(f"{literal(mark)}\\K(?={found})"), END + _list(_values(left)))


def _values(left: list[tuple[str, str]]) -> list[str]:
    return list(dict.fromkeys(value for _, value in left))


def _list(values: list[str]) -> str:
    return END + "".join(value + END for value in values)


def _chosen(left: list[tuple[str, str]], mark: str) -> list[str]:
    """Expressions for what is to be deleted: the list up to the right value, the rest of the
    list and what was found.

    They leave two kinds of END alone: the text's own, which stands behind a mark; and the one at
    the very beginning, which may stand before what looks like an exception.
    """
    values = _values(left)
    before: list[str] = []
    behind: list[str] = []
    for found, value in left:
        at = values.index(value)
        tail = literal(_list(values[at + 1 :]) + found)
        before.append(f"{literal(END + _list(values[:at]))}(?={literal(value)}{tail})")
        behind.append(f"(?!\\A)(?<!{literal(mark)}){tail}")
    return [*before, *behind]
