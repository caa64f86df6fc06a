"""From a sentencepiece model to tokenizer files that give its very ids, and the proof.

``files.make_files`` builds ``tokenizer.json`` and ``tokenizer_config.json``;
``fidelity.check_fidelity`` compares the former with the sentencepiece library, and
``fidelity.compare`` any other route, such as what ``AutoTokenizer`` makes of a folder.
"""

from quantkit.tokenization.build import build_tokenizer_json, limits
from quantkit.tokenization.corpus import corpus, random_strings, written
from quantkit.tokenization.extras import Extra, read_extras
from quantkit.tokenization.fidelity import (
    Difference,
    FidelityReport,
    check_fidelity,
    compare,
)
from quantkit.tokenization.files import AS_NUMBERED, TokenizerFiles, check_hidden, make_files
from quantkit.tokenization.proto import SentencePieceModel, parse_model, read_model

__all__ = [
    "AS_NUMBERED",
    "Difference",
    "Extra",
    "FidelityReport",
    "SentencePieceModel",
    "TokenizerFiles",
    "build_tokenizer_json",
    "check_fidelity",
    "check_hidden",
    "compare",
    "corpus",
    "limits",
    "make_files",
    "parse_model",
    "random_strings",
    "read_extras",
    "read_model",
    "written",
]
