"""quantkit: checkpoints you can prove in, quantized repositories you can trust out.

A map of the house, from the top floor down. Imports point to a lower floor only
(``tests/test_floors.py`` guards it).

    5  __main__ cli   argv -> one call of the API; errors -> exit codes
    4  pipeline       convert(): the whole story in one screen
       publishing     publish(): a passed folder -> a repository whose bytes were read back
       pushing        send, read back, and only then commit where people look
       demonstration  the same story on a model of our own
       benchmarking   eval(): tasks on the source and on a finished folder, side by side
    3  planning       headers + recipe -> Plan
       conversion     the one pass: read -> hash -> quantize -> write
       companions     the small files beside the weights
       execution      that pass, or the staged files of an earlier one
       verification   digests -> VerifiedSource
       calibration    the windows of ids that GPTQ calibrates on
       layerwise      GPTQ, one layer in memory
       evaluation     the text and the prompts that models are judged on
       outlook        what is known of calibration and gate before they begin: how long, how held
       gate/          reopen what was written and judge it
       assessment     check(): the gate alone, on anybody's folder
       comparison     compare(): several folders of one source
       manifest card  what is recorded, and what people read
       provenance     the manifest's story for machines
       lineage        an output against its manifest, its source against today's registry
       registering    a folder's entry for the registry
       report plots   report/: one page, and its plots
       readiness      whether a folder may be published, and what it then says
       destination    what is there already where it is to be published
       remote         what lies on the Hub against what lies here
       subject        a finished folder and its source, held to its manifest
       inspection     verify(): a source against the registry, an output by its lineage
    2  source         a folder, a Hub cache or a Hub id -> Source
       releases       the schema of checksums/*.toml
       registry       those entries -> a verdict on digests and fingerprints
       records        the manifest on the disk: read, written, sealed
       listed         the files and digests that it lists
       signatures     a signature over a whole output: whose, and over what
       signing        made with a key of one's own
       amending       a finished folder with a few files changed, swapped in whole
       tasks          what a model may be asked: ours over local files, others by name
       adapter harness outcomes   lm-evaluation-harness, and what two models answered
       methods        the [method] of each format
       recipe         recipes/*.toml -> Recipe
       mistakes       what is wrong with one, in terms of TOML
       skeleton       transformers' own class without its weights
       leftovers      buffers of old checkpoints that it computes now
       architecture   what transformers makes of a config, on the meta device
       sweep          walk a decoder one layer at a time
       shell          all of a model but its layers, while it is needed
       layer          one of them in memory: run, changed, what is final kept
       observing      what a layer's modules are given: their Hessians
       modulewise     how each module of a calibrated model came out
       finished       layers on the disk, for a rerun to take up
       settings       what config.json and generation_config.json say
       plans          the Plan: every tensor's fate, as data
       cautions       what it warns of before hours of work
       carddata snippet sourcecard   the card's metadata, its code, the source's own card folded
       statedresults  the figures that the source's card states, apart and attributed
       prompts        a conversation form -> a chat template
       formats/       names, layouts and quantization_config of each format
       staging        OUT.partial, and the one rename
    1  checkpoint/    read one tensor at a time; write shards
       tokenization/  a sentencepiece model -> tokenizer files with its very ids
       kernels/       arithmetic
       compiled       the kernels' loops as machine code, kept from one process to the next
       hub            the one door to a model hub, and its errors in our words
       fetching       a Hub id -> a folder of files that are what the Hub lists
       scrutiny       what a stranger's small files may ask for
       rendering      a stranger's chat template, run where nothing can come of it
       activations    hidden states between two layers, in memory or in a file
       calls          how a model calls its layers
       frontmatter    a card's text -> its metadata and its body
       licences       which licence a source has, and what it forbids
       verb           what stands around every public function: types, listener, torch's settings
       given          a small file that a user names, where it is one
       lookalikes     what people give in place of a checkpoint
       carried        the small files that an output carries on, by name
       digests cache clock devices heap quiet tokenizer resources
    0  types errors elements
       lanes          threads that each do one kind of work, in order

The public API is what this module lists in ``__all__``; each verb of the command
line is the function of the same name. They are loaded on first use, so that
``import quantkit`` and ``quantkit --help`` stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from quantkit.assessment import check
    from quantkit.benchmarking import eval
    from quantkit.comparison import compare
    from quantkit.demonstration import demo
    from quantkit.errors import QuantkitError
    from quantkit.inspection import check_tokenizer, verify
    from quantkit.pipeline import convert, plan
    from quantkit.publishing import publish
    from quantkit.recipe import Recipe, load_recipe, recipes
    from quantkit.registry import Registry, checksums

__all__ = [
    "QuantkitError",
    "Recipe",
    "Registry",
    "__version__",
    "check",
    "check_tokenizer",
    "checksums",
    "compare",
    "convert",
    "demo",
    "eval",
    "load_recipe",
    "plan",
    "publish",
    "recipes",
    "verify",
]

_HOME = {
    "QuantkitError": "errors",
    "Recipe": "recipe",
    "Registry": "registry",
    "check": "assessment",
    "check_tokenizer": "inspection",
    "checksums": "registry",
    "compare": "comparison",
    "convert": "pipeline",
    "demo": "demonstration",
    "eval": "benchmarking",
    "load_recipe": "recipe",
    "plan": "pipeline",
    "publish": "publishing",
    "recipes": "recipe",
    "verify": "inspection",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "errors"})


def __getattr__(name: str) -> Any:
    if name == "errors":  # what the verbs raise: `except quantkit.errors.GateError`
        return import_module("quantkit.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'quantkit' has no attribute {name!r}")
    return getattr(import_module(f"quantkit.{_HOME[name]}"), name)
