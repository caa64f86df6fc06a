"""The levels in order; a level that cannot run says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quantkit.errors import (
    CheckpointError,
    QuantkitError,
    StorageError,
    UnsupportedModelError,
    of_the_machine,
    on_one_line,
)
from quantkit.evaluation import Material, largest_id
from quantkit.gate.accounting import check_accounts, models_readable
from quantkit.gate.case import Case, make_case
from quantkit.gate.field import Field, fits, opened_field
from quantkit.gate.generation import check_generation
from quantkit.gate.likelihood import check_likelihood
from quantkit.gate.opened import open_original, open_saved
from quantkit.gate.protocol import protocol
from quantkit.gate.reload import WeightError, check_reload, weight_errors
from quantkit.gate.report import Failure, GateReport, Level, gate_not_run, judged, not_run
from quantkit.gate.runners import Whole
from quantkit.gate.scoring import Candidate, score
from quantkit.gate.structure import check_structure
from quantkit.gate.tokens import TokenizerSettings, check_tokenizer_level
from quantkit.plans import Plan
from quantkit.quiet import need_surroundings, quiet_libraries
from quantkit.recipe import Recipe
from quantkit.source import Source
from quantkit.types import Event, Listener, listening, silent
from quantkit.verification import VerifiedSource

#: Fewer predicted tokens than this show nothing.
FEWEST_TOKENS = 32

#: What is walked where there is no text: enough to see that the folder runs.
_NOTHING = ((0, 0),)


def gate(
    folder: Path,
    verified: VerifiedSource,
    plan: Plan,
    recipe: Recipe,
    material: Material,
    device: str = "cpu",
    listener: Listener = silent,
) -> GateReport:
    """Judge the staged ``folder`` against its source and its plan."""
    structure = check_structure(folder, plan)
    if structure.outcome == "failed":
        return _only("the structure level failed", structure)
    listener(Event("gate", message="reopening the saved folder"))
    need_surroundings()  # before what is missing of them becomes a verdict
    try:
        original = open_original(verified.source, plan.dtype)
        saved = open_saved(folder)
    except StorageError:  # the machine's
        raise
    except QuantkitError as error:
        return _only("the saved folder cannot be opened", structure, _unopened(error))
    generation = verified.source.generation
    accounts = check_accounts(saved, original, generation, recipe, values=False)
    if accounts.failures:  # the plan itself was wrong
        structure = replace(accounts, measures=structure.measures)
        return _only("the structure level failed", structure)
    with listening(listener) as tell, quiet_libraries():
        case = make_case(original, saved, recipe, material, device, tell)
        return GateReport((structure, *_judge(case)))


def gate_folder(
    folder: Path,
    source: Source,
    recipe: Recipe,
    material: Material,
    device: str = "cpu",
    listener: Listener = silent,
) -> GateReport:
    """Judge any quantized ``folder`` against its source; no plan or manifest is needed.

    It goes on after a structure failure that leaves the models readable (a renamed tensor,
    a changed config), so that a check of a stranger's folder shows all that is wrong.

    Raises:
        SourceError: the source, or the folder's config, cannot be read.
    """
    need_surroundings()
    original = open_original(source)
    try:
        saved = open_saved(folder)
    except CheckpointError as error:  # a shard is missing, a header broken
        failure = Failure("structure", "checkpoint", str(error), "readable")
        return _only("the structure level failed", judged("structure", {}, [failure]))
    structure = check_accounts(saved, original, source.generation, recipe)
    with listening(listener) as tell, quiet_libraries():
        case = make_case(original, saved, recipe, material, device, tell)
        tokens = _tokenizer(case)
        if not models_readable(structure):
            return _only("the structure level failed", structure, tokens)
        return GateReport((structure, *_judge(replace(case, tokens=tokens))))


def _judge(case: Case) -> Sequence[Level]:
    """All levels but the first; the tokenizer's once the weights are right."""
    unknown_id = _unknown_id(case)
    windows = case.windows if case.windows and unknown_id is None else _NOTHING
    whole = not case.recipe.evaluation.by_layer and fits(case.original, [case.saved], case.device)
    try:
        with opened_field(case.original, [case.saved], windows, case.device, whole=whole) as opened:
            reload = _reload(case, opened)
            if reload.outcome == "failed":
                return _rest("the reload level failed", case, reload)
            tokens = case.tokens or _tokenizer(case)
            if unknown_id is not None:
                later = not_run("generation", "the perplexity level failed")
                return tokens, reload, unknown_id, later
            return (
                tokens,
                reload,
                _unproven("perplexity", case, tokens)
                or _attempt("perplexity", lambda: _perplexity(case, opened)),
                _unproven("generation", case, tokens)
                or _attempt("generation", lambda: _generation(case, opened)),
            )
    except UnsupportedModelError as error:
        return _rest(on_one_line(error), case)
    except Exception as error:  # any other at load is a verdict: users would meet it
        if of_the_machine(error):
            raise
        return _rest("the saved folder cannot be opened", case, _unopened(error))


def _rest(reason: str, case: Case, *ran: Level) -> Sequence[Level]:
    """The levels after structure: those that ``ran``, the tokenizer's if it did, others not run."""
    tokens = [case.tokens] if case.tokens else []
    return _only(reason, *ran, *tokens).levels[1:]


def _only(reason: str, *ran: Level) -> GateReport:
    """A report of the levels that ran, the others not run for ``reason``."""
    known = {each.name: each for each in ran}
    return GateReport(tuple(known.get(each.name, each) for each in gate_not_run(reason).levels))


def _attempt(name: str, run: Callable[[], Level]) -> Level:
    """A model that cannot run is a verdict: users would meet the same error."""
    try:
        return run()
    except Exception as error:  # whatever a model's own code raises
        if of_the_machine(error):
            raise
        return judged(name, {}, [Failure(name, "the models", on_one_line(error), "to run")])


def _unopened(error: Exception) -> Level:
    failure = Failure("reload", "from_pretrained", on_one_line(error), "to open")
    return judged("reload", {}, [failure])


def _unknown_id(case: Case) -> Level | None:
    """A failed level for an id beyond the vocabulary: it would stop the models, or worse, not."""
    vocabulary = int(case.original.parsed.get_text_config().vocab_size)
    for text in case.material.texts:
        largest = largest_id(text.sequences)
        if largest >= vocabulary:
            below = f"below {vocabulary}"
            failure = Failure("perplexity", "largest token id", str(largest), below, text.name)
            return judged("perplexity", {}, [failure])
    return None


def _reload(case: Case, opened: Field) -> Level:
    """Every piece of the models in step; the walk ends at the first weight that is wrong."""
    runners = [opened.reference, opened.saved[0], *([opened.floor] if opened.floor else [])]
    errors: list[WeightError] = []
    # strict: each walk must come to its own end, where its last layer is run
    steps = zip(*(each.pieces() for each in runners), strict=True)
    for done, ((prefix, wanted), (_, got), *_floor) in enumerate(steps, start=1):
        errors += weight_errors(got, wanted, prefix, case.saved)
        del wanted, got, _floor  # a layer that is done would stay in memory with the next
        if not all(each.fits for each in errors):
            break
        case.listener(Event("walk", done, opened.reference.count, "layers"))
    return check_reload(opened.reports[0], errors, case.recipe.gate)


def _tokenizer(case: Case) -> Level:
    recipe = case.recipe
    return check_tokenizer_level(
        case.saved.folder,
        case.original.folder,
        case.material.strings,
        case.original.config,
        TokenizerSettings(
            recipe.gate.allow_tokenizer_ties,
            recipe.tokenizer.split_special_tokens,
            case.material.tokenizer,
        ),
        progress=_counter(case, "tokenizer", len(case.material.strings), "texts"),
    )


def _unproven(name: str, case: Case, tokens: Level) -> Level | None:
    """A level not run, if it would measure on ids that the tokenizer level did not prove.

    Ids that were given, and sentencepiece's own, are right whatever the folder's tokenizer
    makes of a text.
    """
    tokenizer = case.material.tokenizer
    prompts = {tokenizer.route} if tokenizer else set()
    used = {each.route for each in case.material.texts} if name == "perplexity" else prompts
    doubtful = used - {"ids", "sentencepiece"}
    if tokens.outcome != "failed" or not doubtful:
        return None
    why = f"the tokenizer level failed, and with it the ids ({', '.join(sorted(doubtful))})"
    return not_run(name, why)


def _perplexity(case: Case, opened: Field) -> Level:
    if not case.windows:
        return not_run(
            "perplexity", "the source has no tokenizer; give token ids (--text FILE.json)"
        )
    predicted = sum(len(each) - 1 for each in case.windows)
    if predicted < FEWEST_TOKENS:
        few = f"{predicted} predicted tokens are too few to judge by"
        return not_run("perplexity", f"{few}, expected at least {FEWEST_TOKENS}; give more text")
    total = len(case.windows)
    candidates = [Candidate(opened.saved[0], range(total))]
    if opened.floor is not None:
        candidates.append(Candidate(opened.floor, opened.floor_windows))
    counted = _counter(case, "perplexity", total, "windows")
    scores, *floor = score(opened.reference, candidates, case.windows, counted)
    texts = case.material.texts
    words = protocol(texts, total, case.length, case.saved, opened, case.device)
    several = case.domains if len(case.domains) > 1 else ()
    return check_likelihood(scores, case.recipe.gate, words, several, *floor)


def _generation(case: Case, opened: Field) -> Level:
    if not case.material.prompts:
        return not_run(
            "generation", "no prompts: the source has no tokenizer and no ids were given"
        )
    reference, saved = opened.reference, opened.saved[0]
    if not (isinstance(reference, Whole) and isinstance(saved, Whole)):
        why = "the recipe says so" if case.recipe.evaluation.by_layer else "they do not fit whole"
        return not_run(
            "generation", f"the models were held one layer at a time ({why}), and writing freely "
            "needs them whole; top-1 agreement is the teacher-forced measure along the text"
        )  # fmt: skip
    prompts = case.material.prompts
    return check_generation(
        reference.model,
        saved.model,
        prompts,
        case.recipe,
        case.material.tokenizer,
        _counter(case, "generation", len(prompts), "prompts"),
    )


def _counter(case: Case, stage: str, total: int, unit: str) -> Callable[[int], None]:
    return lambda done: case.listener(Event(stage, done, total, unit))
