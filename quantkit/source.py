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

from quantkit.carried import (
    COMPANION_FILES,
    NAMED_TEMPLATES,
    TOKENIZER_FILES,
    carried_files,
    is_carried,
    named_templates,
)
from quantkit.checkpoint import CheckpointIndex, Container, open_checkpoint
from quantkit.checkpoint.reading import Stamp, stamp_of
from quantkit.checkpoint.strict_json import too_many
from quantkit.errors import CheckpointError, SourceError, UsageError, printable
from quantkit.fetching import cached_digests, fetch, refuse_damaged, sha256_only
from quantkit.given import expanded, refuse_name
from quantkit.hub import HUB_ID
from quantkit.lookalikes import in_place_of_checkpoint, in_place_of_folder, names_in
from quantkit.scrutiny import (
    MAX_CARD_BYTES,
    MOST_TEMPLATES,
    check_config,
    check_small_file,
    check_template,
    check_tokenizer_config,
)
from quantkit.types import AnyPath, Listener, silent

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
    given: AnyPath,
    revision: str | None = None,
    listener: Listener = silent,
    container: Container | None = None,
) -> Source:
    """Resolve and open a checkpoint; where it is there in both containers, take ``container``.

    Raises:
        UsageError: no such folder.
        SourceError: no config, no weights, a broken header, or the Hub says no.
    """
    path = expanded(given)
    refuse_name(path, f"source {printable(str(given))}")
    if path.is_dir():
        repo_id, cached = _cache_identity(path.resolve())
        if revision is not None and revision != cached:
            raise UsageError(
                f"source {given}: --revision {revision} is of a Hub id, and this is a folder; drop "
                "it, or give the id (owner/name)"
            )
        listed = sha256_only(cached_digests(path)) if repo_id else {}
        return _open_folder(str(given), path, repo_id, revision or cached, listed, container)
    if not is_hub_id(given):
        raise UsageError(f"source {given}: {in_place_of_folder(path)}")
    found = fetch(str(given), revision, lambda names: _wanted(given, names, container), listener)
    try:
        return _open_folder(
            str(given), found.folder, str(given), found.commit, found.sha256, container
        )
    except CheckpointError:
        weights = [name for name in found.digests if name.endswith((".safetensors", ".bin"))]
        refuse_damaged(found, str(given), weights)  # a bit that flipped on the way, perhaps
        raise


def is_hub_id(given: AnyPath) -> bool:
    """Whether ``given`` looks like a Hub id, and is no path on this machine."""
    if not isinstance(given, str) or not HUB_ID.match(given):
        return False
    return not expanded(given).exists()


def _open_folder(
    given: str,
    folder: Path,
    repo_id: str | None,
    revision: str | None,
    hub_sha256: Mapping[str, str],
    container: Container | None,
) -> Source:
    stamps = _stamps(folder)
    config = read_object(folder / "config.json")
    if not config:
        raise SourceError(f"source {given}: {in_place_of_checkpoint(names_in(folder))}")
    check_config(config, f"{folder}/config.json")
    _check_small_files(folder)
    quantization = config.get("quantization_config")
    if quantization or isinstance(quantization, dict):  # transformers stops at an empty one
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
        checkpoint=open_checkpoint(folder, container),
        repo_id=repo_id,
        revision=revision,
        hub_sha256=dict(hub_sha256),
        stamps=stamps,
    )


def _stamps(folder: Path) -> dict[str, Stamp]:
    """The small files that a conversion reads or carries on, as they are now."""
    configs = ("config.json", "generation_config.json")
    names = [*(each for each in configs if (folder / each).is_file()), *carried_files(folder)]
    return {name: stamp_of(folder / name) for name in names}


def _check_small_files(folder: Path) -> None:
    """Refuse what is read or carried on if it is no plain file, or needs foreign code."""
    if (folder / NAMED_TEMPLATES).is_symlink():
        raise SourceError(f"{folder / NAMED_TEMPLATES}: a link; put the folder itself there")
    named = [each for each in named_templates(folder) if is_carried(each)]
    for name in (*TOKENIZER_FILES, *COMPANION_FILES, *named):
        if os.path.lexists(folder / name):
            check_small_file(folder / name)
    if os.path.lexists(folder / "README.md"):
        check_small_file(folder / "README.md", MAX_CARD_BYTES)
    path = folder / "tokenizer_config.json"
    check_tokenizer_config(read_object(path), str(path))
    if len(named) > MOST_TEMPLATES:
        raise SourceError(
            f"{folder / NAMED_TEMPLATES}: expected at most {MOST_TEMPLATES} templates, got "
            f"{len(named)}; do not trust this folder"
        )
    for template in (folder / each for each in ("chat_template.jinja", *named)):
        if not os.path.lexists(template):
            continue
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
        # refuse what could not be written again: lone surrogates, and 1e999, read as infinity
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def quantization_settings(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """A config's ``quantization_config``; empty for a model that is not quantized.

    Raises:
        SourceError: it is no object, or its method no name.
    """
    found = config.get("quantization_config")
    if not found and not isinstance(found, dict):
        return {}
    if not isinstance(found, dict) or not isinstance(quantization_method(found), str):
        raise SourceError(
            f"{where}: quantization_config: expected an object with a quant_method, got "
            f"{repr(found)[:80]}; fetch it again"
        )
    return found


def quantization_method(settings: Mapping[str, Any]) -> Any:
    """The method by which transformers opens a folder: it looks at these two keys before the
    name. ``None`` where nothing says."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    return settings.get("quant_method")


def read_text(path: Path) -> str:
    """Other people's text, whatever its bytes are; empty when there is none."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _cache_identity(folder: Path) -> tuple[str | None, str | None]:
    """``(repo_id, commit)`` of a snapshot folder of a Hub cache, else nothing."""
    if folder.parent.name == "snapshots" and (match := _CACHE.match(folder.parent.parent.name)):
        return f"{match['owner']}/{match['name']}", folder.name
    return None, None


def _wanted(given: AnyPath, names: list[str], container: Container | None) -> list[str]:
    """What to download of a repository, if it holds a checkpoint at all."""
    if "config.json" not in names:
        raise SourceError(f"source {given}: {in_place_of_checkpoint(names)}")
    return wanted_files(names, container)


def wanted_files(names: list[str], container: Container | None = None) -> list[str]:
    """The files a conversion needs: one container's weights and the small files."""
    # other files end alike: training_args.bin, consolidated.safetensors, adapters
    kinds = {"safetensors": ("model", ".safetensors"), "torch": ("pytorch_model", ".bin")}
    top = [each for each in names if "/" not in each]
    weights: list[str] = []
    for kind, (start, end) in kinds.items():
        if not weights and container in (None, kind):
            ends = (end, f"{end}.index.json")
            weights = [each for each in top if each.startswith(start) and each.endswith(ends)]
    small = ("config.json", "generation_config.json", "README.md")
    return [*weights, *(name for name in names if name in small or is_carried(name))]
