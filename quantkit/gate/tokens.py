"""Level ``tokenizer``: a plain ``AutoTokenizer`` on the folder gives sentencepiece's ids.

What is judged is what a user gets, with no option set: transformers, on the saved files.
Where the source brings no sentencepiece model there is nothing to hold it to but the
source's own files, which it must equal through the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError
from quantkit.gate.report import Failure, Level, judged, not_run
from quantkit.quiet import quiet_libraries
from quantkit.tokenization import FidelityReport, compare, corpus, read_model
from quantkit.tokenizer import SENTENCEPIECE_FILES, has_library_files, library_tokenizer

#: Random strings of assigned code points, beside every piece and the written stumbling blocks.
_RANDOM = 1000

#: Texts compared between two reports of progress.
_STEP = 500

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_tokenizer_level(
    folder: Path,
    source: Path,
    texts: Iterable[str],
    config: Mapping[str, Any],
    *,
    allow_ties: bool,
    progress: Callable[[int], None] = lambda count: None,
) -> Level:
    """Judge the tokenizer files of ``folder`` over the built-in corpus and ``texts``.

    ``config`` is the model's: special ids that both name must be the same.
    """
    names = [name for name in SENTENCEPIECE_FILES if (source / name).is_file()]
    if not has_library_files(folder) and not any(
        (folder / name).is_file() for name in SENTENCEPIECE_FILES
    ):
        return _without(source, names)
    try:
        library = library_tokenizer(folder)
    except SourceError as error:
        failure = Failure("tokenizer", "AutoTokenizer", str(error), "opens")
        return judged("tokenizer", {}, [failure])
    wrong = list(_special_ids(library, config))
    if not names:
        return _against_source(library, source, texts, wrong)
    report = fidelity(source / names[0], library, _counted(texts, progress))
    return judged("tokenizer", measures(report), [*_failures(report, allow_ties), *wrong])


def _without(source: Path, names: Sequence[str]) -> Level:
    """The folder brings no tokenizer; that is right only where the source brings none."""
    if not names and not has_library_files(source):
        return not_run("tokenizer", "the source has no tokenizer")
    failure = Failure("tokenizer", "tokenizer files", "missing", "the source's")
    return judged("tokenizer", {}, [failure])


def fidelity(spiece_model: Path, library: Any, texts: Iterable[str]) -> FidelityReport:
    """What transformers makes of every text, against the sentencepiece library."""
    everything = (
        text for part in (corpus(read_model(spiece_model), _RANDOM), texts) for text in part
    )
    with quiet_libraries():  # it warns of texts longer than the model's positions
        return compare(
            lambda text: library.encode(text, add_special_tokens=False),
            library.decode,
            spiece_model,
            everything,
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
    first = str(report.first[0]) if report.first else ""
    if report.different:
        yield Failure("tokenizer", "texts with other ids", str(report.different), "0", first)
    if report.decoded_otherwise:
        count = str(report.decoded_otherwise)
        yield Failure("tokenizer", "texts decoded otherwise", count, "0", first)
    if report.ties and not allow_ties:
        yield Failure("tokenizer", "ties", str(report.ties), "0", str(report.first_ties[0]))


def _against_source(
    library: Any, source: Path, texts: Iterable[str], wrong: list[Failure]
) -> Level:
    """No sentencepiece model: the same files must give the same ids."""
    original = library_tokenizer(source)
    compared, different = 0, []
    for text in texts:
        compared += 1
        if library.encode(text) != original.encode(text):
            different.append(text)
    found = {"oracle": "the source's own files", "compared": compared, "different": len(different)}
    if different:
        count, first = str(len(different)), repr(different[0][:60])
        wrong = [Failure("tokenizer", "texts with other ids", count, "0", first), *wrong]
    return judged("tokenizer", found, wrong)


def _special_ids(library: Any, config: Mapping[str, Any]) -> Iterator[Failure]:
    for name in _SPECIAL:
        wanted, got = config.get(name), getattr(library, name, None)
        if isinstance(wanted, int) and got is not None and wanted != got:
            yield Failure("tokenizer", name, str(got), str(wanted))


def _counted(texts: Iterable[str], progress: Callable[[int], None]) -> Iterator[str]:
    for count, text in enumerate(texts, start=1):
        if count % _STEP == 0:
            progress(count)
        yield text
