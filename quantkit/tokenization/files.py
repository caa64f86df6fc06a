"""The tokenizer files that stand beside ``spiece.model``.

What makes plain ``AutoTokenizer.from_pretrained`` right, found by trying:

* ``tokenizer_class: PreTrainedTokenizerFast`` is the one name that transformers 4.57 and
  5 (where it means ``TokenizersBackend``) both take as "load tokenizer.json as it is", also
  with ``use_fast=False``. The source's own class (``T5Tokenizer``) makes both rebuild a
  tokenizer of that class's own fixed form, whatever tokenizer.json says.
* ``split_special_tokens: true`` keeps ``</s>`` in a text as text, as sentencepiece does; but
  it also hides special tokens that the checkpoint added (``<|im_start|>``), so a checkpoint
  with such needs ``false``, which its recipe has to say.
* What the source's class adds around a text (``</s>`` for T5) is tokenizer.json's
  post-processor; a key such as ``add_eos_token`` would make transformers 5 write its own.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from quantkit.cache import remembered
from quantkit.digests import digest_file
from quantkit.errors import SourceError
from quantkit.tokenization.build import build_tokenizer_json
from quantkit.tokenization.extras import Extra, read_extras
from quantkit.tokenization.proto import PieceType, SentencePieceModel, read_model

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "cls_token",
    "sep_token",
    "mask_token",
)

# Whether a class of transformers 4.57 puts bos before a text, and eos after it; and whether the
# keys add_bos_token and add_eos_token of the config change that.
_ADDED_BY_CLASS = {
    "T5Tokenizer": (False, True, False),
    "LlamaTokenizer": (True, False, True),
    "GemmaTokenizer": (True, False, True),
    "PreTrainedTokenizer": (False, False, False),
}
_AS_IT_IS = _ADDED_BY_CLASS["PreTrainedTokenizer"]

#: Classes whose ids are the sentencepiece model's numbers, where no tokenizer.json says otherwise.
AS_NUMBERED = ("T5Tokenizer", "LlamaTokenizer", "GemmaTokenizer")

# Keys of the source's config that are about use, not about encoding.
_KEPT = ("model_max_length", "padding_side", "truncation_side", "chat_template")


#: What is read beside the sentencepiece model.
_READ = (TOKENIZER_JSON, TOKENIZER_CONFIG, "added_tokens.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of the two files, what a default call adds around a text, and which added
    tokens they keep."""

    tokenizer_json: str
    tokenizer_config: str
    adds: str
    keeps: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write both into ``folder``; ``spiece.model`` itself is the caller's to copy."""
        (folder / TOKENIZER_JSON).write_text(self.tokenizer_json, encoding="utf-8")
        (folder / TOKENIZER_CONFIG).write_text(self.tokenizer_config, encoding="utf-8")


def make_files(
    spiece_model: Path, source_config: Mapping[str, Any], *, split_special_tokens: bool = True
) -> TokenizerFiles:
    """The files for a sentencepiece model whose source has this tokenizer_config.json.

    They take seconds to make, and are remembered. What the files beside the model list as added
    tokens is kept, with its ids.
    ``split_special_tokens`` false lets ``</s>`` in a text become the token.

    Raises:
        SourceError: the model, its added tokens, or what its class adds, cannot be expressed;
            it says what.
    """
    beside = (spiece_model, *(spiece_model.with_name(name) for name in _READ))
    read = {path.name: digest_file(path).sha256 for path in beside if path.is_file()}
    return remembered(
        "tokenizer",
        [_code(), version("tokenizers"), read, dict(source_config), split_special_tokens],
        lambda: _make_files(spiece_model, source_config, split_special_tokens),
        TypeAdapter(TokenizerFiles),
    )


def _code() -> list[str]:
    """Digests of the code that makes the files: another version makes them anew."""
    return [digest_file(path).sha256 for path in sorted(Path(__file__).parent.glob("*.py"))]


def _make_files(
    spiece_model: Path, source_config: Mapping[str, Any], split_special_tokens: bool
) -> TokenizerFiles:
    model = read_model(spiece_model)
    extras = read_extras(spiece_model, model)
    known = {piece.text for piece in model.pieces} | {each.text for each in extras}
    named = _named(model, source_config, known)
    special = _also_special(source_config, named, known)
    if split_special_tokens:
        _refuse_hidden(extras, [*named.values(), *special])
    tokenizer = build_tokenizer_json(model)
    tokenizer.add_tokens([each.added() for each in extras])
    if not split_special_tokens:  # so that readers of this one file find them as well
        tokenizer.add_tokens([_special(each) for each in (*named.values(), *special)])
    before, after = _added(source_config, named, spiece_model.with_name(TOKENIZER_JSON))
    if before or after:
        tokenizer.post_processor = _template(tokenizer, before, after)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "split_special_tokens": split_special_tokens,
        "clean_up_tokenization_spaces": False,
        # The class's default also makes token_type_ids, which decoders' generate() rejects.
        "model_input_names": ["input_ids", "attention_mask"],
        **{key: source_config[key] for key in _KEPT if key in source_config},
    }
    if special:
        config["additional_special_tokens"] = special
    return TokenizerFiles(
        tokenizer_json=tokenizer.to_str(pretty=True),
        tokenizer_config=json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        adds=f"{' '.join(before)} text {' '.join(after)}".strip(),
        keeps=tuple(each.text for each in extras),
    )


def check_hidden(spiece_model: Path, source_config: Mapping[str, Any]) -> None:
    """See that ``split_special_tokens`` would take no added token of the checkpoint apart.

    Raises:
        SourceError: it would; the message names them and what to set.
    """
    try:
        extras, listed = read_extras(spiece_model), _listed(source_config)
    except SourceError:
        return  # make_files meets the same, and says it
    named = [_content(source_config[name]) for name in _NAMED if name in source_config]
    _refuse_hidden(extras, [*named, *listed])


def _refuse_hidden(extras: Sequence[Extra], special: Container[str | None]) -> None:
    hidden = [each.text for each in extras if each.special or each.text in special]
    if hidden:
        raise SourceError(
            f"special tokens beyond the sentencepiece model's pieces ({', '.join(hidden)}) would "
            "be taken apart in a text: set tokenizer.split_special_tokens = false in the recipe"
        )


def _special(text: str) -> AddedToken:
    return AddedToken(text, special=True, normalized=False)


def _named(
    model: SentencePieceModel, config: Mapping[str, Any], known: Container[str]
) -> dict[str, str]:
    """Special tokens by name: the source's own word, else what the model file says."""
    trainer = model.trainer
    controls = set(model.texts_of(PieceType.CONTROL))
    found = {"unk_token": model.pieces[model.unk_id].text}
    for name, text in (
        ("bos_token", trainer.bos_piece),
        ("eos_token", trainer.eos_piece),
        ("pad_token", trainer.pad_piece),
    ):
        if text in controls:
            found[name] = text
    for name in _NAMED:
        if name not in config:
            continue
        token = _content(config[name])
        if token is None:
            found.pop(name, None)
            continue
        if token not in known:
            raise SourceError(
                f"{name} {token!r} is no piece of the sentencepiece model and no added token"
            )
        found[name] = token
    return {name: found[name] for name in _NAMED if name in found}


def _also_special(
    config: Mapping[str, Any], named: Mapping[str, str], known: Container[str]
) -> list[str]:
    """Special tokens without a name."""
    texts = _listed(config)
    if unknown := [text for text in texts if text not in known]:
        raise SourceError(
            f"special tokens without an id: {', '.join(unknown)} (no pieces of the sentencepiece "
            "model, and no file lists them as added tokens)"
        )
    return [text for text in texts if text not in named.values()]


def _listed(config: Mapping[str, Any]) -> list[str]:
    tokens = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    if isinstance(tokens, Mapping):  # transformers 5: names of one's own
        tokens = list(tokens.values())
    if not isinstance(tokens, list):
        raise SourceError(f"special tokens: expected a list, got {type(tokens).__name__}")
    return [text for text in map(_content, tokens) if text is not None]


def _content(token: Any) -> str | None:
    """A token is written as its text or as an ``AddedToken``'s fields."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _added(
    config: Mapping[str, Any], named: Mapping[str, str], own: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the source's tokenizer class puts before and after a text; ``own`` is the source's
    tokenizer.json, which says it for the classes that load it as it is."""
    name = str(config.get("tokenizer_class", "PreTrainedTokenizer")).removesuffix("Fast")
    if own.is_file() and _ADDED_BY_CLASS.get(name, _AS_IT_IS) == _AS_IT_IS:
        return _added_by(own)
    if name not in _ADDED_BY_CLASS:
        known = ", ".join(_ADDED_BY_CLASS)
        raise SourceError(f"tokenizer_class {name!r}: what it adds to a text is known for {known}")
    bos, eos, settable = _ADDED_BY_CLASS[name]
    if settable:
        bos, eos = bool(config.get("add_bos_token", bos)), bool(config.get("add_eos_token", eos))
    before = (named["bos_token"],) if bos and "bos_token" in named else ()
    after = (named["eos_token"],) if eos and "eos_token" in named else ()
    return before, after


def _added_by(tokenizer_json: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        encoded = Tokenizer.from_file(str(tokenizer_json)).encode("a")
    except Exception as error:  # tokenizers raises bare Exception
        raise SourceError(f"{tokenizer_json}: not a tokenizer.json: {error}") from error
    text = [at for at, added in enumerate(encoded.special_tokens_mask) if not added]
    first, last = (text[0], text[-1] + 1) if text else (len(encoded.tokens),) * 2
    return tuple(encoded.tokens[:first]), tuple(encoded.tokens[last:])


def _template(
    tokenizer: Tokenizer, before: tuple[str, ...], after: tuple[str, ...]
) -> TemplateProcessing:
    one, two = ([*before, f"${which}", *after] for which in "AB")
    try:
        return TemplateProcessing(
            single=one,
            pair=one + two,
            special_tokens=[(each, tokenizer.token_to_id(each)) for each in {*before, *after}],
        )
    except (TypeError, ValueError) as error:  # one without an id, or with a colon in its name
        said = f"{', '.join((*before, *after))}, added around a text, cannot be written: {error}"
        raise SourceError(said) from error
