"""A ``tokenizers`` tokenizer that gives the ids sentencepiece gives.

sentencepiece's unigram model (Kudo 2018, "Subword Regularization") takes the segmentation
of the highest sum of scores; its BPE model (Sennrich 2016, "Neural Machine Translation of
Rare Words with Subword Units") merges the neighbours whose joint piece scores highest,
the leftmost of equals. ``tokenizers`` has both, over *all* strings of its vocabulary,
where sentencepiece leaves out control, byte, unknown and unused pieces.
"""

from __future__ import annotations

import sys
from collections import Counter

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.decoders import Decoder
from tokenizers.models import BPE, Unigram
from tokenizers.pre_tokenizers import PreTokenizer, Sequence, Split

from quantkit.errors import SourceError
from quantkit.tokenization.charsmap import decode_charsmap
from quantkit.tokenization.normalization import SPACE, build_normalizer
from quantkit.tokenization.patterns import literal, longest_of
from quantkit.tokenization.proto import ModelType, PieceType, SentencePieceModel
from quantkit.tokenization.reserved import (
    MATCHED,
    RESERVED,
    Barriers,
    find_barriers,
    open_alphabet,
)
from quantkit.tokenization.scoring import lowest, score_of

# Stands for the unknown piece while a text is decoded.
_UNKNOWN = "\ufff0\ufff4"


def build_tokenizer_json(model: SentencePieceModel) -> Tokenizer:
    """The tokenizer whose ids are sentencepiece's; its ``save`` writes ``tokenizer.json``.

    It names no special tokens, so that text which spells one stays text.

    Raises:
        SourceError: the model has an option that cannot be expressed; it names the option.
    """
    kind = model.trainer.model_type
    if kind is ModelType.WORD:
        raise SourceError("model_type=word is not supported: use unigram, bpe or char")
    if model.denormalizer.precompiled_charsmap:
        raise SourceError("a denormalizer (denormalization_rule_tsv) is not supported")
    barriers = find_barriers(model)
    whole = _unigram(model, barriers) if kind is ModelType.UNIGRAM else _bpe(model, barriers)
    tokenizer = Tokenizer(whole)
    rules = decode_charsmap(model.normalizer.precompiled_charsmap)
    tokenizer.normalizer = build_normalizer(model, rules)
    if (splitter := _splitter(model, barriers)) is not None:
        tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = _decoder(model)
    return tokenizer


def limits(model: SentencePieceModel) -> tuple[str, ...]:
    """What of this model the built tokenizer may do otherwise, in plain words."""
    found: list[str] = []
    spec = model.normalizer
    if opened := open_alphabet(model):
        # BPE takes user-defined pieces out beforehand; unigram weighs them.
        sample = "".join(sorted(opened))[:20]
        found.append(
            f"{len(opened)} characters stand in pieces but are no piece themselves ({sample!r}): "
            "where pieces that hold them overlap, unknown characters may fall otherwise"
        )
    deletes = "" in decode_charsmap(spec.precompiled_charsmap).rules.values()
    if model.trainer.treat_whitespace_as_suffix and spec.remove_extra_whitespaces and deletes:
        found.append("a text of nothing but deleted characters gets no whitespace suffix")
    return tuple(found)


def _unigram(model: SentencePieceModel, barriers: Barriers) -> Unigram:
    if not model.ids_of(PieceType.NORMAL):
        raise SourceError("the sentencepiece model has no normal pieces")
    bottom = lowest(model)
    unsplit = frozenset(barriers.unsplit)
    # Below any sum that the pieces of one such literal can reach.
    never = min(bottom, 0.0) * max(map(len, unsplit), default=0) - 1.0
    vocab: list[tuple[str, float]] = []
    for piece in model.pieces:
        if piece.type in RESERVED:
            vocab.append((piece.text, never if piece.text in unsplit else bottom))
        elif piece.type is PieceType.UNUSED:
            vocab.append((_unmatchable(piece.text), bottom))
        else:
            vocab.append((piece.text, score_of(piece)))
    return Unigram(vocab, model.unk_id, model.trainer.byte_fallback)


def _unmatchable(text: str) -> str:
    """A normalized text holds no space, so this is found in none."""
    return text + " "


def _bpe(model: SentencePieceModel, barriers: Barriers) -> BPE:
    """Also the char model, which is BPE without a merge."""
    _check_bpe(model)
    user_defined = bool(model.ids_of(PieceType.USER_DEFINED))
    if user_defined and barriers.unsplit:
        raise SourceError(
            f"user_defined_symbols of a bpe model whose pieces spell {barriers.unsplit[0]!r} "
            "are not supported"
        )
    merging = model.trainer.model_type is ModelType.BPE
    bpe = BPE(
        vocab={piece.text: index for index, piece in enumerate(model.pieces)},
        merges=_merges(model) if merging else [],
        unk_token=model.pieces[model.unk_id].text,
        fuse_unk=True,
        byte_fallback=model.trainer.byte_fallback,
    )
    if user_defined:
        _check_whole(model, bpe)
        # A user-defined piece is split off whole (below); nothing merges into it.
        bpe.ignore_merges = True
    return bpe


def _check_bpe(model: SentencePieceModel) -> None:
    """Models on which merging by rank is not merging by score."""
    if model.ids_of(PieceType.UNUSED):
        raise SourceError("unused pieces of a bpe model (vocabulary restriction): not supported")
    if opened := open_alphabet(model):
        sample = "".join(sorted(opened))[:20]
        raise SourceError(
            f"a bpe model with {len(opened)} characters that stand in pieces but are no piece "
            f"themselves ({sample!r}): not supported"
        )
    merged = [each for each in model.pieces if len(each.text) > 1]
    scores = Counter(each.score for each in merged if each.type is PieceType.NORMAL)
    if scores and max(scores.values()) > 1:
        raise SourceError("a bpe model with pieces of equal score: not supported")


def _check_whole(model: SentencePieceModel, bpe: BPE) -> None:
    """Taking a whole piece at once must be what merging gives."""
    for text in model.texts_of(PieceType.NORMAL):
        if [each.value for each in bpe.tokenize(text)] != [text]:
            raise SourceError(
                f"user_defined_symbols of a bpe model that cannot merge its piece {text!r} "
                "are not supported"
            )


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every two pieces that make a third, best score of the third first."""
    normal = [each for each in model.pieces if each.type is PieceType.NORMAL]
    known = {piece.text for piece in normal}
    merges: list[tuple[str, str]] = []
    for piece in sorted(normal, key=lambda each: -each.score):
        text = piece.text
        parts = ((text[:at], text[at:]) for at in range(len(text) - 1, 0, -1))
        merges += [(left, right) for left, right in parts if {left, right} <= known]
    return merges


def _splitter(model: SentencePieceModel, barriers: Barriers) -> PreTokenizer | None:
    steps: list[PreTokenizer] = []
    unigram = model.trainer.model_type is ModelType.UNIGRAM
    user_defined = model.texts_of(PieceType.USER_DEFINED)
    if user_defined and not unigram:
        steps.append(Split(Regex(longest_of(user_defined)), "isolated"))
    # BPE's merges alone never make a reserved piece.
    if (unigram or user_defined) and (parts := barriers.splitter()) is not None:
        steps.append(parts)
    if (words := _words(model)) is not None:
        steps.append(words)
    if len(steps) > 1:
        return Sequence(steps)
    return steps[0] if steps else None


def _words(model: SentencePieceModel) -> PreTokenizer | None:
    """A split at spaces, where no piece crosses one: ``tokenizers`` caches what it makes of short
    texts."""
    texts = model.texts_of(*MATCHED)
    if SPACE not in texts:
        return None  # the unknown characters on both sides would be one token
    if not any(SPACE in text[1:] for text in texts):
        # ``Metaspace`` does the same, but looks for spaces to replace too, and there are none
        return Split(SPACE, "merged_with_next")
    if not any(SPACE in text[:-1] for text in texts):
        return Split(SPACE, "merged_with_previous")
    return None


def _decoder(model: SentencePieceModel) -> Decoder:
    spec, unknown = model.normalizer, literal(model.pieces[model.unk_id].text)
    steps: list[Decoder] = [
        # Its surface begins with a space, which must outlive the stripping below.
        decoders.Replace(Regex(f"\\A{unknown}\\z"), _UNKNOWN),
        decoders.Replace(SPACE, " "),
    ]
    if model.ids_of(PieceType.UNUSED):
        steps.insert(0, decoders.Replace(Regex(" \\z"), ""))
    if model.trainer.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if spec.remove_extra_whitespaces and not any(
        p.text.startswith(SPACE * 2) for p in model.pieces
    ):
        # sentencepiece drops one leading space of each piece until there is some text.
        steps.append(decoders.Strip(" ", sys.maxsize, 0))
    elif spec.add_dummy_prefix or spec.remove_extra_whitespaces:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence([*steps, decoders.Replace(_UNKNOWN, model.trainer.unk_surface)])
