"""A source's digests against the registry and the Hub -> VerifiedSource.

The gate and the manifest of a conversion accept only a :class:`VerifiedSource`, and without
a manifest nothing gets its final name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.carried import carried_files
from quantkit.checkpoint.stream import Consumer, stream_checkpoint
from quantkit.digests import digest_file
from quantkit.errors import MismatchError, UnlistedError, WithdrawnError
from quantkit.fetching import discard
from quantkit.recipe import Recipe
from quantkit.registry import Registry
from quantkit.source import Source
from quantkit.types import (
    Digested,
    FileDigest,
    Listener,
    Verdict,
    counted,
    silent,
)

#: What a registry says of a source that is not to be used.
_CONDEMNED = ("withdrawn", "mismatch")


@dataclass(frozen=True)
class Policy:
    """What the user lets pass."""

    allow_withdrawn: bool = False
    require_verified: bool = False


@dataclass(frozen=True)
class VerifiedSource:
    """A source whose every weight and tokenizer file has been digested and judged.

    ``files`` are the weights, as ``digested`` has them, and the small ones.
    """

    source: Source
    files: tuple[FileDigest, ...]
    digested: Digested
    verdict: Verdict


def settle(
    source: Source,
    digested: Digested,
    recipe: Recipe | None,
    registry: Registry,
    policy: Policy,
    claimed: str | None = None,
) -> VerifiedSource:
    """Judge a source whose weights were ``digested``.

    It claims to be its own ``repo_id``, its recipe's, and what the caller has ``claimed``.

    Raises:
        WithdrawnError, MismatchError, UnlistedError: the verdict forbids going on.
    """
    small = [digest_file(source.folder / each, each) for each in small_files(source)]
    named = [e for e in (source.repo_id, recipe.source.repo if recipe else "", claimed) if e]

    def judged(found: Digested) -> tuple[tuple[FileDigest, ...], Verdict]:
        files = (*found.files, *small)
        return files, registry.judge(files, named, found.fingerprint, source.revision)

    files, verdict = judged(digested)
    if digested.recalled and (verdict.status in _CONDEMNED or _unlike_hub(source, files)):
        # what an earlier run took, perhaps wrongly, condemns nothing
        digested = digest_source(source, registry)
        files, verdict = judged(digested)
    _check_hub(source, files)
    enforce(f"source {source.given}", verdict, policy)
    return VerifiedSource(source, files, digested, verdict)


def small_files(source: Source) -> tuple[str, ...]:
    """The files beside the weights that are read or carried on."""
    indexes = tuple(f"{each}.index.json" for each in ("model.safetensors", "pytorch_model.bin"))
    configs = ("config.json", "generation_config.json")
    return (*source.present((*configs, *indexes)), *carried_files(source.folder))


def digest_source(
    source: Source,
    registry: Registry,
    listener: Listener = silent,
    look: Consumer | None = None,
    *,
    recall: bool = False,
) -> Digested:
    """Digests of the weight files and their tensors; ``look`` sees the pieces too.

    ``recall`` takes over digests of an earlier run (:mod:`quantkit.checkpoint.known`); a caller
    that only verifies leaves it out.
    """
    tell = counted(listener, "verify", source.weight_bytes)
    return stream_checkpoint(
        source.folder,
        source.checkpoint,
        md5=registry.needs_md5,
        consume=look,
        recall=recall,
        progress=tell,
    )


def _unlike_hub(source: Source, files: Sequence[FileDigest]) -> list[FileDigest]:
    listed = source.hub_sha256
    return [each for each in files if listed.get(each.name, each.sha256) != each.sha256]


def _check_hub(source: Source, files: Sequence[FileDigest]) -> None:
    for file in _unlike_hub(source, files):
        path = source.folder / file.name
        if path.is_symlink():  # into a Hub cache, whose blobs are named by their digests
            discard(path)
        fate = f"to be deleted ({path})" if path.exists() else "removed"
        raise MismatchError(
            f"{file.name}: the Hub lists SHA-256 {source.hub_sha256[file.name]} for "
            f"{source.repo_id} at {source.revision}, got {file.sha256}; the download was damaged "
            f"and is {fate}: run again"
        )


def prove(source: Source, listener: Listener = silent) -> Source:
    """Hold a source's weights to the Hub's digests, where they will not be digested otherwise.

    Raises:
        MismatchError: one is damaged.
    """
    tell = counted(listener, "verify", source.weight_bytes)
    for name in source.checkpoint.files:
        if name in source.hub_sha256:
            _check_hub(source, [digest_file(source.folder / name)])
        tell(source.checkpoint.file_bytes[name])
    return source


def enforce(what: str, verdict: Verdict, policy: Policy) -> None:
    """Stop where ``policy`` does not let ``what`` pass with this verdict.

    Raises:
        WithdrawnError, MismatchError, UnlistedError: by the verdict's status.
    """
    if verdict.status == "withdrawn" and not policy.allow_withdrawn:
        raise WithdrawnError(
            f"{what}: these are the weights of {verdict.repository}, release of "
            f"{verdict.release}, withdrawn: {verdict.reason} (stated at {verdict.stated_at}; "
            f"recognized by {verdict.evidence}); "
            f"{verdict.advice or 'use another release'} (--allow-withdrawn goes on regardless)"
        )
    if verdict.status == "mismatch":
        raise MismatchError(
            f"{what}: not {verdict.repository}: {verdict.reason} "
            f"(registry, from {verdict.stated_at}); {verdict.advice}"
        )
    if verdict.status in ("unlisted", "superseded") and policy.require_verified:
        raise UnlistedError(
            f"{what}: {verdict.status}{f' ({verdict.reason})' if verdict.reason else ''}, and "
            "--require-verified wants a current release; add it to a registry (--checksums DIR) "
            "or drop the option"
        )
