"""What a ``quantization_config`` may say, seen before anything is computed from it.

Anybody may have written it: a value of another type, or a pattern that takes for ever, must be
a finding and no traceback.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from quantkit.gate.opened import Opened
from quantkit.gate.report import Failure
from quantkit.source import read_object

_Allowed = Mapping[str, tuple[str, Callable[[Any], bool]]]

#: What keys that the parts are measured by may hold, where they are there. Libraries write null
#: for some that mean nothing.
_KEYS: _Allowed = {
    "bits": ("2, 3, 4 or 8", lambda v: type(v) is int and v in (2, 3, 4, 8)),
    "group_size": ("-1 or a positive number", lambda v: type(v) is int and (v == -1 or v > 0)),
    "dynamic": ("usual patterns with settings", lambda v: v is None or _is_dynamic(v)),
    "modules_in_block_to_quantize": ("lists of names", lambda v: v is None or _is_blocks(v)),
    "block_name_to_quantize": ("a name", lambda v: v is None or isinstance(v, str)),
    "lm_head": ("true or false", lambda v: v is None or isinstance(v, bool)),
}

_AWQ_KEYS: _Allowed = {**_KEYS, "zero_point": ("true or false", lambda v: isinstance(v, bool))}

_GPTQ_KEYS: _Allowed = {
    **_KEYS,
    "desc_act": ("true or false", lambda v: isinstance(v, bool)),
    "sym": ("true or false", lambda v: isinstance(v, bool)),
    "checkpoint_format": ("a name", lambda v: v is None or isinstance(v, str)),
    "format": ("a name", lambda v: v is None or isinstance(v, str)),
}

#: transformers matches names of modules with these.
_BNB_KEYS: _Allowed = {
    "llm_int8_skip_modules": ("usual patterns", lambda v: v is None or _are_patterns(v)),
}

#: What quantize_config.json must say as config.json does.
_SAID_TWICE = (
    "quant_method", "bits", "group_size", "desc_act", "sym", "checkpoint_format", "format",
    "dynamic", "modules_in_block_to_quantize", "lm_head",
)  # fmt: skip

#: A stranger's pattern must not run for ever: no group may be repeated, and only few things may
#: be. ``?`` counts as a repeat, except in ``(?:`` and in the lazy ``*?``.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEATED = re.compile(r"[*+{]|(?<![(*+?])\?")
_LONGEST_PATTERN, _MOST_REPEATED, _MOST_GROUPS = 300, 4, 4


def stated_failures(saved: Opened) -> Iterator[Failure]:
    """What a ``quantization_config`` states that cannot be."""
    if saved.method == "bitsandbytes":
        yield from _wrong_values(saved.settings, _BNB_KEYS)
    elif saved.method == "awq":
        yield from _wrong_values(saved.settings, _AWQ_KEYS)
    elif saved.method == "gptq":
        yield from _gptq_config(saved)


def _gptq_config(saved: Opened) -> Iterator[Failure]:
    settings = saved.settings
    if "bits" not in settings:
        yield failure("quantization_config", "missing", "2, 3, 4 or 8", "bits")
    first, second = settings.get("checkpoint_format"), settings.get("format")
    if first is not None and second is not None and first != second:
        yield failure("quantization_config", second, f"{first}, as checkpoint_format", "format")
    yield from _wrong_values(settings, _GPTQ_KEYS)
    beside = read_object(saved.folder / "quantize_config.json")
    for key in _SAID_TWICE:
        here, there = settings.get(key), beside.get(key)
        if here is not None and there is not None and here != there:
            yield failure("quantization_config", here, f"{there}, as quantize_config.json", key)


def _wrong_values(settings: Mapping[str, Any], allowed: _Allowed) -> Iterator[Failure]:
    for key, (expected, fits) in allowed.items():
        if key in settings and not fits(settings[key]):
            yield failure("quantization_config", repr(settings[key])[:80], expected, key)


def _are_settings(own: Mapping[str, Any]) -> bool:
    return not list(_wrong_values(own, _KEYS))


def _is_dynamic(value: object) -> bool:
    """GPTQModel's settings by pattern, "+:" for other ones and "-:" for none."""
    return isinstance(value, dict) and all(
        isinstance(own, dict) and _is_usual(_pattern(key)) and _are_settings(own)
        for key, own in value.items()
    )


def _is_usual(pattern: str) -> bool:
    """Whether it is a pattern of the simple kind that is matched at once."""
    plain = re.sub(r"\\.", "x", pattern)  # what is escaped repeats nothing
    if len(pattern) > _LONGEST_PATTERN or len(_REPEATED.findall(plain)) > _MOST_REPEATED:
        return False
    if plain.count("(") > _MOST_GROUPS or _REPEATED_GROUP.search(plain):
        return False
    try:
        return bool(re.compile(pattern))
    except re.error:
        return False


def _are_patterns(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(e, str) and _is_usual(e) for e in value)


def _is_blocks(value: object) -> bool:
    """Names of modules inside a layer, in lists."""
    return isinstance(value, list) and all(
        isinstance(each, str) or (isinstance(each, list) and all(isinstance(n, str) for n in each))
        for each in value
    )


def is_listed(module: str, blocks: Sequence[Any]) -> bool:
    """Whether ``modules_in_block_to_quantize`` names ``module``, by its end or whole."""
    names = [each for block in blocks for each in ([block] if isinstance(block, str) else block)]
    return any(module == each or module.endswith(f".{each}") for each in names)


def overridden(saved: Opened, name: str) -> tuple[dict[str, Any], bool]:
    """A module's own settings by GPTQModel's ``dynamic``; whether it is left as it is.

    ``name`` is its weight's in memory; the patterns are of stored names.
    """
    stored = next(iter(saved.parts[name].values())).name.rpartition(".")[0]
    for key, own in (saved.settings.get("dynamic") or {}).items():
        if re.match(_pattern(key), stored):
            return {**saved.settings, **own}, key.startswith("-:")
    return dict(saved.settings), False


def _pattern(key: str) -> str:
    """A key of ``dynamic`` without its sign."""
    return key[2:] if key[:2] in ("+:", "-:") else key


def failure(what: str, got: object, expected: object, where: str) -> Failure:
    """A failure of the structure level."""
    return Failure("structure", what, str(got), str(expected), where)
