"""Where a checkpoint comes from: a folder, a local Hub cache, or a Hub id.

Opening reads names, headers and the small text files; never a tensor's bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quantkit.checkpoint import CheckpointIndex, open_checkpoint
from quantkit.checkpoint.reading import Stamp, stamp_of
from quantkit.checkpoint.strict_json import too_many
from quantkit.errors import SourceError, UsageError
from quantkit.scrutiny import (
    check_config,
    check_small_file,
    check_template,
    check_tokenizer_config,
)
from quantkit.types import Event, Listener, silent

#: Files of a tokenizer, by name. The first two are sentencepiece models.
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "spiece.vocab",
)

#: Other small files that a quantized repository carries on.
COMPANION_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_CACHE = re.compile(r"^models--(?P<owner>[^/]+?)--(?P<name>.+)$")


@dataclass(frozen=True)
class Source:
    """An opened checkpoint.

    ``repo_id`` and ``revision`` are what the source says it is (a Hub id or a cache
    path); they are claims, to be checked against digests. ``hub_sha256`` are the
    digests that the Hub itself lists for its large files. ``stamps`` are the files as they
    were when they were opened.
    """

    given: str
    folder: Path
    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    checkpoint: CheckpointIndex
    repo_id: str | None = None
    revision: str | None = None
    hub_sha256: Mapping[str, str] = field(default_factory=dict)
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        return sum(self.checkpoint.file_bytes.values())

    def present(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Which of ``names`` the folder holds."""
        return tuple(name for name in names if (self.folder / name).is_file())

    def check_unchanged(self) -> None:
        """See that every file is still the one that was opened.

        Raises:
            SourceError: one was written to, replaced, removed or added.
        """
        now = _stamps(self.folder) | {
            name: stamp_of(self.folder / name)
            for name in self.checkpoint.files
            if (self.folder / name).exists()
        }
        then = {**self.stamps, **self.checkpoint.stamps}
        if changed := sorted(n for n in now.keys() | then.keys() if now.get(n) != then.get(n)):
            raise SourceError(
                f"source {self.given}: {', '.join(changed)} changed while it was being used; see "
                "that nothing writes to the folder, and run again"
            )


def open_source(
    given: str | Path, revision: str | None = None, listener: Listener = silent
) -> Source:
    """Resolve and open a checkpoint.

    Raises:
        UsageError: no such folder.
        SourceError: no config, no weights, a broken header, or the Hub says no.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        repo_id, cached = _cache_identity(path.resolve())
        return _open_folder(str(given), path, repo_id, revision or cached, {})
    if isinstance(given, Path) or not _HUB_ID.match(str(given)) or path.exists():
        raise UsageError(
            f"source {given}: no such folder; give a checkpoint's folder or a Hub id (owner/name)"
        )
    folder, commit, digests = _fetch(str(given), revision, listener)
    return _open_folder(str(given), folder, str(given), commit, digests)


def _open_folder(
    given: str,
    folder: Path,
    repo_id: str | None,
    revision: str | None,
    hub_sha256: Mapping[str, str],
) -> Source:
    stamps = _stamps(folder)
    config = read_object(folder / "config.json")
    if not config:
        raise SourceError(
            f"source {given}: no config.json; a checkpoint's folder holds config.json and weights"
        )
    check_config(config, f"{folder}/config.json")
    _check_small_files(folder)
    if quantization := config.get("quantization_config"):
        named = quantization.get("quant_method") if isinstance(quantization, dict) else None
        method = named or "an unnamed method"
        raise SourceError(
            f"source {given}: already quantized ({method}); give the unquantized checkpoint"
        )
    return Source(
        given=given,
        folder=folder,
        config=config,
        generation=read_object(folder / "generation_config.json"),
        checkpoint=open_checkpoint(folder),
        repo_id=repo_id,
        revision=revision,
        hub_sha256=dict(hub_sha256),
        stamps=stamps,
    )


def _stamps(folder: Path) -> dict[str, Stamp]:
    """The small files that a conversion reads or carries on, as they are now."""
    names = ("config.json", "generation_config.json", *TOKENIZER_FILES, *COMPANION_FILES)
    return {name: stamp_of(folder / name) for name in names if (folder / name).is_file()}


def _check_small_files(folder: Path) -> None:
    """Those that are read or carried on: plain files, and nothing that needs foreign code."""
    for name in (*TOKENIZER_FILES, *COMPANION_FILES):
        if os.path.lexists(folder / name):
            check_small_file(folder / name)
    path = folder / "tokenizer_config.json"
    check_tokenizer_config(read_object(path), str(path))
    template = folder / "chat_template.jinja"
    if template.is_file():
        try:
            text = template.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(f"{template}: cannot be read as UTF-8: {error}") from error
        check_template(text, str(template))


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty when there is no such file."""
    if not os.path.lexists(path):
        return {}
    check_small_file(path)
    try:
        raw = path.read_bytes()
        if problem := too_many(raw):
            raise ValueError(problem)
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
        # lone surrogates could not be written, nor what 1e999 is read as
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _cache_identity(folder: Path) -> tuple[str | None, str | None]:
    """``(repo_id, commit)`` of a snapshot folder of a Hub cache, else nothing."""
    if folder.parent.name == "snapshots" and (match := _CACHE.match(folder.parent.parent.name)):
        return f"{match['owner']}/{match['name']}", folder.name
    return None, None


def _fetch(
    repo_id: str, revision: str | None, listener: Listener
) -> tuple[Path, str, dict[str, str]]:
    """Download what a conversion needs; ``(folder, commit, SHA-256 by file name)``.

    The revision is resolved to a commit first, so that every file is of one tree.
    The hub client compares sizes only; the digests returned here are checked in the
    conversion's own read.
    """
    from huggingface_hub import HfApi, snapshot_download

    listener(Event("fetch", message=f"asking the Hub for {repo_id}"))
    try:
        info = HfApi().model_info(repo_id, revision=revision, files_metadata=True)
        commit, digests = str(info.sha), _lfs_digests(info.siblings or [])
        names = [each.rfilename for each in info.siblings or []]
        folder = snapshot_download(repo_id, revision=commit, allow_patterns=_wanted(names))
    except Exception as error:  # the client passes on whatever its HTTP library raises
        found = _cached(repo_id, revision, error)
        listener(Event("fetch", message=f"the Hub did not give it; using the cached {found[1]}"))
        return found
    return Path(folder), commit, digests


def _cached(repo_id: str, revision: str | None, why: Exception) -> tuple[Path, str, dict[str, str]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        reason = str(why).splitlines()[0] if str(why) else type(why).__name__
        raise SourceError(
            f"source {repo_id}: no such folder here, not in the local Hub cache, and the Hub "
            f"did not give it ({reason}); check the name, the network and the token"
        ) from why
    return folder, folder.name, {}


def _lfs_digests(siblings: list[Any]) -> dict[str, str]:
    return {each.rfilename: str(each.lfs.sha256) for each in siblings if getattr(each, "lfs", None)}


def _wanted(names: list[str]) -> list[str]:
    """The files a conversion needs: one container's weights and the small files."""
    suffix = ".safetensors" if any(n.endswith(".safetensors") for n in names) else ".bin"
    weights = [n for n in names if "/" not in n and n.endswith((suffix, f"{suffix}.index.json"))]
    small = {"config.json", "generation_config.json", "README.md"}
    small.update(TOKENIZER_FILES, COMPANION_FILES)
    return [*weights, *(name for name in names if name in small)]
