"""What an old checkpoint holds and today's model has no place for: what it computes itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Causal masks, and what stood for minus infinity in them, that transformers wrote once and now
#: reports as unexpected (published GPT-Neo, GPT-J and CodeGen have them in each layer).
_OLD_MASKS = {
    "codegen": r"\battn\.causal_mask$",
    "gpt2": r"\battn\.masked_bias$",
    "gpt_neo": r"\battn\.attention\.(masked_)?bias$",
    "gptj": r"\battn\.(masked_)?bias$",
    "openai-gpt": r"\battn\.bias$",
}


def ignored(model: Any, memory_names: Mapping[str, str | None]) -> dict[str, str]:
    """Why a tensor that the model has no place for may be left out, by its name."""
    patterns = dict.fromkeys(
        model._keys_to_ignore_on_load_unexpected or (),
        f"{type(model).__name__} ignores it: a buffer of older versions",
    )
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns[r"rotary_emb\.inv_freq"] = "rotary frequencies, computed from the config now"
    if any(name.endswith("position_ids") for name in buffers):
        patterns[r"(^|\.)position_ids$"] = "position ids, computed now"
    if (mask := _OLD_MASKS.get(model.config.model_type)) is not None:
        patterns[mask] = "a causal mask of older versions, computed now"
    return {
        name: reason
        for name, memory in memory_names.items()
        if memory is None
        for pattern, reason in patterns.items()
        if re.search(pattern, name)
    }
