"""Whether a folder's small files still say what the source's say: config, generation defaults.

Both configs are compared as transformers reads them, so that a value left to its default
and the same value written out are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantkit.errors import SourceError
from quantkit.gate.report import Failure
from quantkit.source import read_object

#: What may differ: how weights are stored, who wrote the file, what does not reach the logits.
_MAY_DIFFER = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "architectures",
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

_NO_SETTING = frozenset({"_from_model_config", "transformers_version"})

GENERATION = "generation_config.json"


def config_failures(saved: Any, original: Any) -> Iterator[Failure]:
    """Values of the two parsed configs that differ and change what the model computes."""
    got, wanted = saved.to_dict(), original.to_dict()
    for key in sorted((got.keys() | wanted.keys()) - _MAY_DIFFER):
        if got.get(key) != wanted.get(key):
            yield Failure(
                "structure", "config.json", repr(got.get(key)), repr(wanted.get(key)), key
            )


def generation_failures(
    folder: Path, wanted: Mapping[str, Any], *, required: bool = True
) -> Iterator[Failure]:
    """Every generation default that is ``wanted`` and not in the folder; more may be there.

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
        if written.get(key) != value:
            yield Failure("structure", GENERATION, repr(written.get(key)), repr(value), key)


def expected_generation(generation: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The source's generation defaults; where it has no file, its config's special ids."""
    if generation:
        return dict(generation)
    ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id")}
    return {key: value for key, value in ids.items() if value is not None}
