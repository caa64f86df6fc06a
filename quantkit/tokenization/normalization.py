"""sentencepiece's normalization, out of the normalizers that ``tokenizers`` has.

sentencepiece replaces a text segment by segment (:mod:`~quantkit.tokenization.segments`).
``tokenizers`` has whole normalizers, such as NFKC, which give nearly every rule of a model
(:mod:`~quantkit.tokenization.coverage`), but also join what sentencepiece keeps apart. So:

1. a mark is set between segments that would join, and before every exception, that is,
   where the normalizer is wrong;
2. the normalizer runs;
3. where an exception stands behind its mark, a list of all their values is inserted
   between the two;
4. everything is deleted but the one value that is right: the marks, the exception, the
   other values, and the ASCII characters that the rules delete.

A step of ``tokenizers`` replaces by one fixed text, and each costs a walk over the whole
text; so twenty exceptions by a list are ten times cheaper than by a replacement each. In
an ordinary text the expressions match nowhere.

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
from quantkit.tokenization.patterns import END, GAP, MARK, characters, literal, longest_of
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
    steps: list[Normalizer] = []
    spaces = " "
    if spec.add_dummy_prefix and not spec.remove_extra_whitespaces:
        # First of all, because sentencepiece asks whether the text itself is empty.
        steps.append(_dummy(model))
    if rules.rules:
        _check(rules)
        copied = tuple(model.texts_of(PieceType.USER_DEFINED))
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


def _dummy(model: SentencePieceModel) -> Normalizer:
    if model.trainer.treat_whitespace_as_suffix:
        return Replace(Regex(r"(?<=[\s\S])\z"), SPACE)
    return Prepend(SPACE)


def _check(rules: Charsmap) -> None:
    touched = {char for text in rules.rules.items() for part in text for char in part}
    if touched & {MARK, END, GAP}:
        raise SourceError("normalization rules with U+FFF0 to U+FFF2 are not supported")
    if any("  " in value for value in rules.rules.values()):
        raise SourceError("normalization rules that give two spaces are not supported")


def _rules(coverage: Coverage, copied: tuple[str, ...], blob: bytes) -> list[Normalizer]:
    """Steps 1 to 4."""
    if not coverage.base and not coverage.exceptions:
        deleted = characters(coverage.deleted)
        return [Replace(Regex(f"[{deleted}]"), "")] if deleted else []
    # ``Precompiled`` would delete such a character before its time.
    free = [] if "Precompiled" in coverage.base else sorted(coverage.deleted)
    mark = (free[0] if free else MARK) + END
    values = list(dict.fromkeys(each.value for each in coverage.exceptions))
    return [
        Prepend(END),  # ``tokenizers`` cannot insert a mark at the very beginning
        Replace(Regex(cut_pattern(coverage, copied)), mark),
        *normalizers_of(coverage.base, blob),
        *_listed(coverage, mark, values),
        Replace(Regex(_deletions(coverage, mark, values)), ""),
    ]


def _listed(coverage: Coverage, mark: str, values: list[str]) -> list[Normalizer]:
    if not values:
        return []
    found = longest_of(each.found for each in coverage.exceptions)
    where = f"{literal(mark)}\\K(?={found})"
    return [Replace(Regex(where), END + _list(values))]


def _list(values: list[str]) -> str:
    return END + "".join(value + END for value in values)


def _deletions(coverage: Coverage, mark: str, values: list[str]) -> str:
    """Each alternative deletes what it matches: the list up to the right value, the rest of
    the list and the exception, the marks, the deleted characters, the end set at the beginning.

    An end of the text's own stands behind a mark, with none after it.
    """
    one, end = literal(mark), literal(END)
    before: list[str] = []
    behind: list[str] = []
    for each in coverage.exceptions:
        at = values.index(each.value)
        tail = literal(_list(values[at + 1 :]) + each.found)
        before.append(f"{end}{literal(_list(values[:at]))}(?={literal(each.value)}{tail})")
        behind.append(f"(?<!{one}){tail}")
    deleted = [f"[{characters(coverage.deleted)}]"] if coverage.deleted else []
    return "|".join([*before, *behind, one, *deleted, f"\\A{end}"])
