"""Whether a folder's small files still say what the source's say: config, generation defaults.

Both configs are compared as transformers reads them, so that a value left to its default
and the same value written out are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from quantkit.checkpoint.names import quoted
from quantkit.errors import SourceError
from quantkit.gate.claims import Claim, claimed_by
from quantkit.gate.report import Failure
from quantkit.source import read_object

#: What may differ: how weights are stored, who wrote the file, what does not reach the logits.
_MAY_DIFFER = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "attn_implementation",
        "dtype",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "quantization_config",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)

#: Other servers (vLLM) go by it alone; transformers does without.
_CLASS = "architectures"

_NO_SETTING = frozenset({"_from_model_config", "transformers_version"})

GENERATION = "generation_config.json"

#: Generation settings that change the answers of users who set nothing, and the value at which
#: each does nothing: transformers' default (4.57 and 5).
_CHANGING: Mapping[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "constraints": None,
    "custom_generate": None,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "dola_layers": None,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "eos_token_id": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": None,
    "forced_bos_token_id": None,
    "forced_decoder_ids": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "length_penalty": 1.0,
    "max_length": 20,
    "max_new_tokens": None,
    "max_time": None,
    "min_length": 0,
    "min_new_tokens": None,
    "min_p": None,
    "no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "penalty_alpha": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "repetition_penalty": 1.0,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "temperature": 1.0,
    "token_healing": False,
    "top_h": None,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "watermarking_config": None,
}

#: The same of settings that change no answer.
_HARMLESS: Mapping[str, Any] = {
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "target_lookbehind": 10,
    "use_cache": True,
}

#: What transformers 4 writes for GPT-NeoX beside names of its own, and 5 keeps without reading it.
_REPEATED = ("partial_rotary_factor", "rope_theta")

_SHOWN = 8


def config_failures(saved: Any, original: Any) -> Iterator[Failure]:
    """Values of the two parsed configs that differ and change what the model computes."""
    got, wanted = saved.to_dict(), original.to_dict()
    for key in sorted((got.keys() | wanted.keys()) - _MAY_DIFFER):
        if key == _CLASS and not wanted.get(key):
            continue  # a folder may name it all the same: it is the one that could be built
        if got.get(key) != wanted.get(key) and not _repeats(key, got, wanted):
            yield Failure(
                "structure", "config.json", repr(got.get(key)), repr(wanted.get(key)), key
            )


def _repeats(key: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether ``key`` only says once more what both configs have in ``rope_parameters``."""
    ropes = [each.get("rope_parameters") for each in (got, wanted)]
    inside = [rope.get(key) if isinstance(rope, dict) else None for rope in ropes]
    stated = [each[key] for each in (got, wanted) if each.get(key) is not None]
    return key in _REPEATED and all(each == inside[0] == inside[1] for each in stated)


def generation_failures(
    folder: Path, wanted: Mapping[str, Any], known: Sequence[Claim] = (), *, required: bool = True
) -> Iterator[Failure]:
    """Every ``wanted`` generation default that the folder has otherwise, unless a ``known`` claim
    is for that value. The folder may have more.

    The file may be absent unless ``required``: loaders then take the config's special ids.
    """
    path = folder / GENERATION
    expected = {key: value for key, value in wanted.items() if key not in _NO_SETTING}
    if not expected:
        return
    if not path.is_file():
        if required:
            yield Failure("structure", GENERATION, "missing", "the source's settings")
        return
    try:
        written = read_object(path)
    except SourceError as error:
        yield Failure("structure", GENERATION, str(error), "readable")
        return
    for key, value in sorted(expected.items()):
        got = written.get(key)
        if got != value and claimed_by(key, got, known) is None:
            yield Failure("structure", GENERATION, repr(got), repr(value), key)


def added_generation(
    folder: Path, wanted: Mapping[str, Any], config: Mapping[str, Any], known: Sequence[Claim]
) -> tuple[list[Failure], list[str]]:
    """What the folder states, and the source and its ``config`` leave to the library: failures for
    what changes answers, remarks for the rest."""
    try:
        written = read_object(folder / GENERATION)
    except SourceError:  # which generation_failures says
        return [], []
    failures: list[Failure] = []
    harmless: list[str] = []
    claimed: dict[str, list[str]] = {}
    for key, value in sorted(written.items()):
        of_the_source = any(key in each and each[key] == value for each in (wanted, config))
        if key in _NO_SETTING or _does_nothing(key, value) or of_the_source:
            continue
        shown = f"{quoted(key)} {repr(value)[:40]}"
        by = claimed_by(key, value, known)
        if by is not None:
            claimed.setdefault(by, []).append(shown)
        elif key in wanted:
            continue  # which generation_failures says
        elif key in _CHANGING:
            unsaid = f"{_CHANGING[key]!r}, as the source states none"
            failures.append(Failure("structure", GENERATION, repr(value)[:80], unsaid, key))
        else:
            harmless.append(shown)
    remarks = [f"{GENERATION}: {_few(each)}, of {by}" for by, each in claimed.items() if by]
    if harmless:
        remarks.append(f"{GENERATION} states what the source does not: {_few(harmless)}")
    return failures, remarks


def _few(shown: Sequence[str]) -> str:
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def _does_nothing(key: str, value: Any) -> bool:
    """The library's default, or what stands for nothing."""
    if value is None or value in ([], {}, ""):
        return True
    usual = {**_CHANGING, **_HARMLESS}
    return bool(value == usual[key]) if key in usual else value is False


def expected_generation(generation: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The source's generation defaults; where it has no file, its config's special ids."""
    if generation:
        return dict(generation)
    ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id")}
    return {key: value for key, value in ids.items() if value is not None}
