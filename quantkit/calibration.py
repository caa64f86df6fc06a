"""What GPTQ calibrates on: documents, encoded and cut into windows of ids.

A source of documents is a text file (one document), JSON lines (one a line: ``text``, or
``messages`` rendered in the recipe's prompt form), a ``.json`` file of token ids, such a
file of a Hub data set, or the text that ships with quantkit.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from quantkit.errors import UsageError, on_one_line
from quantkit.evaluation import Material, largest_id, read_ids
from quantkit.given import LONGEST_TEXT, as_text, expanded, read_given
from quantkit.methods import CalibrationSection
from quantkit.plans import Plan
from quantkit.recipe import Prompt, Recipe
from quantkit.resources import calibration_text
from quantkit.source import Source
from quantkit.tokenizer import Tokenizer, open_tokenizer
from quantkit.types import AnyPath, Event, Listener, silent

#: Two texts that share a run of so many tokens overlap...
_RUN = 32

#: ...unless the run is of so few different ones (rules, blank tables).
_VARIETY = 12


@dataclass(frozen=True)
class Calibration:
    """Windows of ids, and what they were made of.

    ``sha256`` is of the file's bytes, ``available`` the windows there were to choose from.
    """

    name: str
    sha256: str
    route: str
    windows: tuple[tuple[int, ...], ...]
    available: int

    @property
    def ids_sha256(self) -> str:
        """SHA-256 of the windows as JSON: the identity of what was calibrated on."""
        return hashlib.sha256(json.dumps(self.windows).encode()).hexdigest()

    @property
    def tokens(self) -> int:
        return sum(len(window) for window in self.windows)


def read_calibration(
    recipe: Recipe,
    given: AnyPath | None,
    source: Source,
    plan: Plan,
    material: Material | None,
    listener: Listener = silent,
) -> Calibration | None:
    """The windows that ``recipe`` asks for, from ``given`` or the recipe's own data.

    ``None`` where the recipe calibrates nothing. ``material`` is what the result will be
    judged on, if it will be.

    Raises:
        UsageError: the file cannot be read or holds too little; no tokenizer for text; a
            window is of the evaluation text.
    """
    section, own = recipe.calibration, None if given is None else expanded(given)
    if section is None:
        if given is not None:
            raise UsageError(
                f"calibration {given}: the recipe {recipe.name} calibrates nothing; leave it out"
            )
        return None
    split = recipe.tokenizer.split_special_tokens
    tokenizer = (
        material.tokenizer
        if material
        else open_tokenizer(source.folder, split_special_tokens=split)
    )
    path = own or _find(section)
    raw = read_given(path, f"calibration {path}", most=LONGEST_TEXT)
    documents, route = _encoded(path, raw, recipe.prompt, tokenizer)
    length = min(section.length, plan.max_positions or section.length)
    windows = _windows(documents, length, section.packing, _end_of_text(source.config))
    if not windows:
        raise UsageError(f"calibration {path}: fewer than two tokens; give a longer text")
    chosen = _choose(windows, section)
    digest = hashlib.sha256(raw).hexdigest()
    found = Calibration(path.name, digest, route, chosen, len(windows))
    _check_ids(found, plan)
    for text in material.texts if material is not None else ():
        refuse_overlap(found, text.sequences)
    listener(Event("calibrate", message=described(found, plan)))
    return found


def _end_of_text(config: Mapping[str, Any]) -> int | None:
    """The id that ends a text; of several the first, as generation pads with.

    ``None`` where a config names none, or one that the model does not have.
    """
    end, known = config.get("eos_token_id"), config.get("vocab_size")
    if isinstance(end, list) and end:
        end = end[0]
    if not isinstance(end, int) or end < 0 or (isinstance(known, int) and end >= known):
        return None
    return end


def described(calibration: Calibration, plan: Plan) -> str:
    """What is calibrated on, in one line, and whether that is too little.

    With fewer tokens than a module has columns, no Hessian has full rank: what the missing
    directions cost is then the dampening's guess.
    """
    widest = max(each.shape[1] for each in plan.tensors if each.shape is not None)
    said = f"calibrating on {calibration.tokens:,} tokens of {calibration.name}"
    if calibration.tokens >= widest:
        return said
    return f"{said}; few for modules of {widest:,} columns: give at least as many, better tenfold"


def _encoded(
    path: Path, raw: bytes, prompt: Prompt | None, tokenizer: Tokenizer | None
) -> tuple[list[list[int]], str]:
    """The documents' ids, and the route by which they came."""
    if path.suffix.lower() == ".json":
        return [list(each) for each in read_ids("calibration", path, raw)], "ids"
    if tokenizer is None:
        raise UsageError(
            f"calibration {path}: the source has no tokenizer to encode it; give token ids (.json)"
        )
    return [tokenizer.encode(each) for each in _documents(path, raw, prompt)], tokenizer.route


def _check_ids(calibration: Calibration, plan: Plan) -> None:
    """Refuse ids beyond the embedding, which would stop the walk, or worse, not stop it."""
    vocabulary = plan.config.get("vocab_size")
    largest = largest_id(calibration.windows)
    if isinstance(vocabulary, int) and largest >= vocabulary:
        raise UsageError(
            f"calibration {calibration.name}: expected token ids below {vocabulary}, the model's "
            f"vocab_size, got {largest}; give this model's own ids"
        )


def refuse_overlap(calibration: Calibration, evaluated: Sequence[Sequence[int]]) -> None:
    """Refuse to calibrate on the text that a model is judged on, which would show nothing.

    Raises:
        UsageError: a window shares a run of tokens with ``evaluated``.
    """
    blocks = {
        block.tobytes(): number
        for number, window in enumerate(calibration.windows)
        for block in _aligned(np.asarray(window, dtype=np.int64))
        if len(np.unique(block)) >= _VARIETY
    }
    for sequence in evaluated:
        ids = np.asarray(sequence, dtype=np.int64)
        for at in range(len(ids) - _RUN + 1):
            if (number := blocks.get(ids[at : at + _RUN].tobytes())) is not None:
                raise UsageError(
                    f"calibration {calibration.name}: its window {number} shares {_RUN} tokens in "
                    f"a row with the evaluation text (from its token {at}); calibrate on another "
                    "text, or evaluate on another (--text)"
                )


def _aligned(ids: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Blocks of ``_RUN`` ids end to end; any shared run of twice that length holds one."""
    for at in range(0, len(ids) - _RUN + 1, _RUN):
        yield ids[at : at + _RUN]


def _find(section: CalibrationSection) -> Path:
    if not section.data:
        return calibration_text()
    if not section.data.startswith("hub:"):
        return Path(section.data)
    from huggingface_hub import hf_hub_download

    owner, _, rest = section.data.removeprefix("hub:").partition("/")
    name, _, inside = rest.partition("/")
    if not inside:
        raise UsageError(
            f"calibration {section.data!r}: expected hub:OWNER/NAME/path/in/the/data/set"
        )
    try:
        return Path(hf_hub_download(f"{owner}/{name}", inside, repo_type="dataset"))
    except Exception as error:  # the client raises its own, the network's and the disk's
        raise UsageError(
            f"calibration {section.data!r}: the Hub does not give it: {on_one_line(error)}"
        ) from error


def _documents(path: Path, raw: bytes, prompt: Prompt | None) -> list[str]:
    text = as_text(raw, f"calibration {path}")
    if path.suffix.lower() != ".jsonl":
        return [text]
    lines = enumerate(text.split("\n"), start=1)
    return [
        _document(f"calibration {path}:{at}", each, prompt) for at, each in lines if each.strip()
    ]


def _document(where: str, line: str, prompt: Prompt | None) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON: {error}") from error
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: a lone surrogate, which is no text; remove it") from error
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    turns = value.get("messages") if isinstance(value, dict) else None
    if not _is_conversation(turns):
        raise UsageError(
            f'{where}: expected {{"text": ...}} or {{"messages": [{{"role": "user" or '
            '"assistant", "content": ...}, ...]}'
        )
    if prompt is None:
        raise UsageError(
            f"{where}: a conversation, and the recipe has no [prompt] to render it in; add the "
            'model\'s form, or give {"text": ...}'
        )
    return prompt.conversation([(each["role"] == "user", each["content"]) for each in turns])


def _is_conversation(turns: object) -> TypeGuard[list[dict[str, str]]]:
    return (
        isinstance(turns, list)
        and bool(turns)
        and all(
            isinstance(each, dict)
            and each.get("role") in ("user", "assistant")
            and isinstance(each.get("content"), str)
            for each in turns
        )
    )


def _windows(
    documents: Sequence[Sequence[int]], length: int, packing: str, end: int | None
) -> list[tuple[int, ...]]:
    """Windows of ``length`` ids; a document's last may be shorter, but not under two.

    Joined documents are told apart by the model's end-of-text id, where it has one. Their last
    window is left out if it is shorter, unless it is the only one.
    """
    if packing == "joined":
        mark = [] if end is None or len(documents) == 1 else [end]
        documents = [list(chain.from_iterable([*each, *mark] for each in documents))]
    windows = []
    for each in documents:
        least = length if packing == "joined" and len(each) >= length else 2
        starts = range(0, len(each), length)
        windows += [tuple(each[at : at + length]) for at in starts if len(each) - at >= least]
    return windows


def _choose(
    windows: Sequence[tuple[int, ...]], section: CalibrationSection
) -> tuple[tuple[int, ...], ...]:
    """``section.samples`` of them, drawn by its seed, in the order of the text."""
    if len(windows) <= section.samples:
        return tuple(windows)
    drawn = random.Random(section.seed).sample(range(len(windows)), section.samples)
    return tuple(windows[at] for at in sorted(drawn))
