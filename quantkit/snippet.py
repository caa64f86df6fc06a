"""manifest -> the lines of Python on the card, which run as they stand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")

#: What the example says, by whether the model has a conversation form and knows Japanese.
_SAID = {
    (True, True): "日本でいちばん高い山について教えてください。",
    (True, False): "Which mountain is the highest in Japan?",
    (False, True): "むかしむかし、",
    (False, False): "The value of the",
}


def snippet(manifest: Mapping[str, Any], languages: list[str]) -> str:
    """Load, ask, print: with the model's own prompt form and generation settings."""
    publication = manifest["publication"] or {}
    where = json.dumps(publication.get("repo_id", manifest["request"]["out"]), ensure_ascii=False)
    branch = publication.get("branch", "main")
    revision = "" if branch == "main" else f", revision={json.dumps(branch)}"
    names = {each["name"] for each in manifest["output"]["files"]}
    prompt = manifest["recipe"]["prompt"]
    settings = _settings(manifest["recipe"]["generation"])
    if not names & set(_TOKENIZERS):
        return _without_tokenizer(f"{where}{revision}")
    chat = prompt is not None or "chat_template.jinja" in names
    said = _SAID[(chat, "ja" in languages)]
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"name = {where}",
        f"tokenizer = AutoTokenizer.from_pretrained(name{revision})",
        f'model = AutoModelForCausalLM.from_pretrained(name{revision}, device_map="auto")',
        "",
    ]
    if chat:
        lines += [
            f'messages = [{{"role": "user", "content": "{said}"}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ").to(model.device)",
        ]
    else:
        plain = (
            ", add_special_tokens=False" if _appends(manifest["conversion"]["tokenizer"]) else ""
        )
        lines.append(f'inputs = tokenizer("{said}"{plain}, return_tensors="pt").to(model.device)')
    lines += [
        f"output = model.generate(**inputs, {settings})",
        'said = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], '
        "skip_special_tokens=True)",
        f"print({_restored(prompt)})",
    ]
    return "\n".join(lines)


def _appends(tokenizer: str) -> bool:
    """Whether a default call puts a token after the text, which a model would not continue."""
    _, gives, form = tokenizer.partition("a default call gives: ")
    return bool(gives) and not form.rstrip().endswith("text")


def _restored(prompt: Mapping[str, Any] | None) -> str:
    """What was said, with the model's newline symbol turned back into line breaks."""
    newline = prompt["newline"] if prompt else "\n"
    if newline in ("", "\n"):
        return "said"
    # not with JSON's escapes: a pair of them for one character is two characters in Python
    return f'said.replace({json.dumps(newline, ensure_ascii=False)}, "\\n")'


def _settings(generation: Mapping[str, Any] | None) -> str:
    given = {key: each for key, each in (generation or {}).items() if each is not None}
    given.setdefault("max_new_tokens", 64)
    return ", ".join(f"{key}={value}" for key, value in given.items())


def _without_tokenizer(place: str) -> str:
    return "\n".join(
        [
            "import torch",
            "from transformers import AutoModelForCausalLM",
            "",
            f'model = AutoModelForCausalLM.from_pretrained({place}, device_map="auto")',
            "ids = torch.tensor([[1]], device=model.device)  # the source came without a tokenizer",
            "print(model.generate(ids, max_new_tokens=64)[0].tolist())",
        ]
    )
