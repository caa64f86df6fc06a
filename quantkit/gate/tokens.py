"""Level ``tokenizer``: a plain ``AutoTokenizer`` on the folder gives sentencepiece's ids.

What is judged is what a user gets, with no option set: transformers, on the saved files.
Where the source brings no sentencepiece model, or one whose ids its class does not use, there
is nothing to hold it to but the source's own files, which it must equal through the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError
from quantkit.gate.around import (
    RANDOM,
    by_call,
    by_source,
    further_inputs,
    of_its_own,
    older_fault,
    other_models,
)
from quantkit.gate.report import Failure, Level, judged, not_run
from quantkit.quiet import quiet_libraries
from quantkit.tokenization import (
    Extra,
    FidelityReport,
    compare,
    corpus,
    read_extras,
    read_model,
)
from quantkit.tokenizer import (
    Tokenizer,
    has_library_files,
    keeps_piece_ids,
    library_tokenizer,
    sentencepiece_file,
)

#: Texts compared between two reports of progress.
_STEP = 500

_AROUND = "a default call gives"
_OTHER_IDS = "texts with other ids"

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class TokenizerSettings:
    """How the level looks at a folder: the recipe's settings, and who encodes for the gate.

    ``ids`` is the tokenizer whose ids later levels measure on; the folder's must be the same on
    every text. A stranger's folder is judged without one.
    """

    allow_ties: bool
    split_special_tokens: bool = True
    ids: Tokenizer | None = None


def check_tokenizer_level(
    folder: Path,
    source: Path,
    texts: Iterable[str],
    config: Mapping[str, Any],
    settings: TokenizerSettings,
    progress: Callable[[int], None] = lambda count: None,
) -> Level:
    """Judge the tokenizer files of ``folder`` over the built-in corpus and ``texts``.

    ``config`` is the model's: special ids that both name must be the same, or the source's.
    """
    model = sentencepiece_file(source)
    if not has_library_files(folder) and sentencepiece_file(folder) is None:
        return _without_tokenizer(source, model)
    try:
        library = library_tokenizer(folder)
    except SourceError as error:
        failure = Failure("tokenizer", "AutoTokenizer", str(error), "to open")
        return judged("tokenizer", {}, [failure])
    wrong = list(_special_ids(library, config, None if _same(folder, source) else source))
    if not _same(folder, source):
        wrong += further_inputs(library, source)
        wrong += other_models(folder, model) if model is not None else ()
    strings = list(texts)
    counted = _counted(strings, progress)
    if model is None and not has_library_files(source):
        nothing = not_run("tokenizer", "the source has no tokenizer to hold this one to")
        return judged("tokenizer", {}, wrong) if wrong else nothing
    with quiet_libraries():  # it warns of texts longer than the model's positions
        if model is None or (_by_library(settings) and not keeps_piece_ids(model)):
            level = _against_source(library, source, counted)
        else:
            level = _against_model(library, model, counted, settings)
            if not _same(folder, source):
                level = _beside_the_source(level, library, model, strings, settings)
    route = {"ids_by": settings.ids.route} if settings.ids else {}
    return judged("tokenizer", {**level.measures, **route}, [*level.failures, *wrong])


def _without_tokenizer(source: Path, model: Path | None) -> Level:
    """The folder brings no tokenizer; that is right only where the source brings none."""
    if model is None and not has_library_files(source):
        return not_run("tokenizer", "the source has no tokenizer")
    failure = Failure("tokenizer", "tokenizer files", "missing", "the source's")
    return judged("tokenizer", {}, [failure])


def _by_library(settings: TokenizerSettings) -> bool:
    return settings.ids is not None and settings.ids.route == "transformers"


def _against_model(
    library: Any, model: Path, texts: Iterable[str], settings: TokenizerSettings
) -> Level:
    """sentencepiece is the judge, except of texts with added tokens, which it does not know."""
    try:
        extras = read_extras(model)
    except SourceError as error:
        failure = Failure("tokenizer", "added tokens", str(error), "beyond the pieces")
        return judged("tokenizer", {}, [failure])
    apart = _apart(library, extras, settings)
    everything = (text for part in (corpus(read_model(model), RANDOM), texts) for text in part)
    aside: list[str] = []
    report = fidelity(model, library, _without_any(apart, everything, aside))
    wrong = [*_failures(report, settings.allow_ties), *_extra_ids(library, extras)]
    found = measures(report)
    if apart:
        found |= {"added_tokens": [each.text for each in extras], "with_special": len(aside)}
        wrong += _other_ids(library, aside, settings.ids)
    return judged("tokenizer", found, wrong)


def _apart(library: Any, extras: Sequence[Extra], settings: TokenizerSettings) -> list[str]:
    """The tokens that sentencepiece does not know: it cannot judge a text that holds one."""
    special = [] if settings.split_special_tokens else library.all_special_tokens
    return [*(each.text for each in extras), *special]


def _beside_the_source(
    level: Level, library: Any, model: Path, texts: Sequence[str], settings: TokenizerSettings
) -> Level:
    """What the source's own files say: what a call puts around a text, and whose fault other
    ids are."""
    failures = list(level.failures)
    here = by_call(library)
    allowed = by_source(model, split_special_tokens=settings.split_special_tokens)
    wanted = next(allowed, None)
    if wanted not in (None, here) and here not in allowed:
        failures.append(Failure("tokenizer", _AROUND, str(here), str(wanted)))
    if at := [at for at, each in enumerate(failures) if each.measure == _OTHER_IDS]:
        apart = _apart(library, read_extras(model), settings)
        everything = (text for part in (corpus(read_model(model), RANDOM), texts) for text in part)
        plain = _without_any(apart, everything, [])
        split = settings.split_special_tokens
        words = older_fault(library, model, plain, split_special_tokens=split)
        if not words and split and _finds_special(library):
            words = (
                " (special tokens are found in texts here: if that is meant, "
                "--set tokenizer.split_special_tokens=false)"
            )
        first = failures[at[0]]
        failures[at[0]] = replace(first, threshold=f"{first.threshold}{words}")
    return judged("tokenizer", level.measures, failures)


def _finds_special(library: Any) -> bool:
    """Whether a special token's text becomes that token."""
    named = ((each, library.convert_tokens_to_ids(each)) for each in library.all_special_tokens)
    return any(library.encode(each, add_special_tokens=False) == [id] for each, id in named)


def _without_any(apart: list[str], texts: Iterable[str], aside: list[str]) -> Iterator[str]:
    """The texts that hold none of ``apart``; the others are put ``aside`` as they come."""
    for text in texts:
        if any(each in text for each in apart):
            aside.append(text)
        else:
            yield text


def _extra_ids(library: Any, extras: Sequence[Extra]) -> Iterator[Failure]:
    """Every added token must be found in a text, under its own id."""
    for each in extras:
        ids = library.encode(f"a{each.text}a", add_special_tokens=False)
        if each.id not in ids:
            got = f"{ids} for 'a{each.text}a'"
            yield Failure("tokenizer", f"added token {each.text!r}", got, f"id {each.id}")


def _other_ids(library: Any, texts: list[str], ids: Tokenizer | None) -> list[Failure]:
    """Where sentencepiece cannot judge: the ids that are measured on against the folder's."""
    if ids is None:
        return []
    other = [
        text for text in texts if library.encode(text, add_special_tokens=False) != ids.encode(text)
    ]
    if not other:
        return []
    count, first = str(len(other)), repr(other[0][:60])
    return [Failure("tokenizer", "texts with other ids than measured on", count, "0", first)]


def fidelity(spiece_model: Path, library: Any, texts: Iterable[str]) -> FidelityReport:
    """What transformers makes of every text, against the sentencepiece library."""
    return compare(
        lambda text: library.encode(text, add_special_tokens=False),
        library.decode,
        spiece_model,
        texts,
    )


def measures(report: FidelityReport) -> dict[str, Any]:
    return {
        "oracle": "sentencepiece",
        "compared": report.compared,
        "identical": report.identical,
        "ties": report.ties,
        "different": report.different,
        "decoded_otherwise": report.decoded_otherwise,
        "first": [str(each) for each in (*report.first, *report.first_ties)],
        "limits": list(report.limits),
    }


def _failures(report: FidelityReport, allow_ties: bool) -> Iterator[Failure]:
    first = {each.kind: str(each) for each in reversed(report.first)}
    if report.different:
        count = str(report.different)
        yield Failure("tokenizer", _OTHER_IDS, count, "0", first.get("ids", ""))
    if report.decoded_otherwise:
        count = str(report.decoded_otherwise)
        yield Failure("tokenizer", "texts decoded otherwise", count, "0", first.get("decode", ""))
    if report.ties and not allow_ties:
        yield Failure("tokenizer", "ties", str(report.ties), "0", str(report.first_ties[0]))


def _against_source(library: Any, source: Path, texts: Iterable[str]) -> Level:
    """Without a sentencepiece model that numbers the ids, the source's own files are the judge."""
    original = library_tokenizer(source)
    compared, different, decoded = 0, [], []
    for text in chain(of_its_own(original), texts):
        compared += 1
        ids = original.encode(text)
        if library.encode(text) != ids:
            different.append(text)
        elif library.decode(ids) != original.decode(ids):
            decoded.append(text)
    found = {"oracle": "the source's own files", "compared": compared, "different": len(different)}
    kinds = {_OTHER_IDS: different, "texts decoded otherwise": decoded}
    failures = [
        Failure("tokenizer", kind, str(len(those)), "0", repr(those[0][:60]))
        for kind, those in kinds.items()
        if those
    ]
    here, there = library.get_vocab(), original.get_vocab()  # the added tokens among them
    if moved := sorted(piece for piece in here | there if here.get(piece) != there.get(piece)):
        count, first = str(len(moved)), repr(moved[0][:60])
        failures.append(Failure("tokenizer", "tokens with another id", count, "0", first))
    around, wanted = by_call(library), by_call(original)
    if around != wanted:
        failures.append(Failure("tokenizer", _AROUND, str(around), str(wanted)))
    return judged("tokenizer", found, failures)


def _same(folder: Path, source: Path) -> bool:
    return folder.resolve() == source.resolve()


def _special_ids(library: Any, config: Mapping[str, Any], source: Path | None) -> Iterator[Failure]:
    """Ids that differ from the config's, unless the source's own tokenizer has them so."""
    wrong = {
        name: (got, wanted)
        for name in _SPECIAL
        if isinstance(wanted := config.get(name), int)
        and (got := getattr(library, name, None)) not in (None, wanted)
    }
    if not wrong:
        return
    try:
        own = None if source is None else library_tokenizer(source)
    except SourceError:
        own = None
    for name, (got, wanted) in wrong.items():
        if getattr(own, name, None) != got:
            yield Failure("tokenizer", name, str(got), str(wanted))


def _counted(texts: Iterable[str], progress: Callable[[int], None]) -> Iterator[str]:
    for count, text in enumerate(texts, start=1):
        if count % _STEP == 0:
            progress(count)
        yield text
