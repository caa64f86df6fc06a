"""What the loopback hub holds: repositories, their branches and commits, and large objects."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: What a new repository of the real Hub sends the large-file way, and ours.
LARGE = (".safetensors", ".bin", ".model", ".png", ".h5", ".zip")
LARGE_BYTES = 10 << 20
ATTRIBUTES = "".join(f"*{each} filter=lfs diff=lfs merge=lfs -text\n" for each in LARGE).encode()


@dataclass(frozen=True)
class Entry:
    """One file of a commit: its bytes, or what its pointer says."""

    size: int
    data: bytes = b""
    oid: str = ""

    @property
    def blob_id(self) -> str:
        data = self.data
        if self.oid:
            data = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\n"
                f"size {self.size}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: Mapping[str, Entry]


@dataclass
class Repository:
    """``objects`` are the bytes that lie under each SHA-256, right or wrong."""

    name: str
    private: bool = True
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: dict[int, str] = field(default_factory=dict)  # pull requests: number -> status

    def commit(
        self, files: Mapping[str, Entry], title: str, branch: str, parent: str | None
    ) -> str:
        said = json.dumps([parent, title, sorted((k, v.blob_id) for k, v in files.items())])
        sha = hashlib.sha1(said.encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, dict(files))
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def read(self, entry: Entry) -> bytes | None:
        return self.objects.get(entry.oid) if entry.oid else entry.data

    @property
    def files(self) -> dict[str, bytes | None]:
        """What main holds, for the tests to look at."""
        return {k: self.read(v) for k, v in self.commits[self.branches["main"]].files.items()}

    @property
    def log(self) -> list[str]:
        """Titles of main's commits, the newest first."""
        titles, at = [], self.branches.get("main")
        while at:
            titles.append(self.commits[at].title)
            at = self.commits[at].parent
        return titles

    def add(self, files: Mapping[str, bytes], title: str = "upload", branch: str = "main") -> str:
        """A commit made behind everyone's back."""
        before = self.find(branch)
        entries = dict(before.files) if before else {}
        for name, data in files.items():
            if is_large(name, len(data), data[:512]):
                oid = hashlib.sha256(data).hexdigest()
                self.objects[oid] = data
                entries[name] = Entry(len(data), oid=oid)
            else:
                entries[name] = Entry(len(data), data)
        return self.commit(entries, title, branch, before.sha if before else None)


def new_repository(name: str, *, private: bool) -> Repository:
    made = Repository(name, private)
    made.add({".gitattributes": ATTRIBUTES}, "initial commit")
    return made


def is_large(name: str, size: int, sample: bytes) -> bool:
    return name.endswith(LARGE) or size > LARGE_BYTES or b"\0" in sample


def apply(before: Mapping[str, Entry], lines: list[dict[str, Any]]) -> dict[str, Entry]:
    """The files after a commit's operations."""
    files = dict(before)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            data = base64.b64decode(value["content"])
            files[value["path"]] = Entry(len(data), data)
        elif line["key"] == "lfsFile":
            files[value["path"]] = Entry(value["size"], oid=value["oid"])
        elif line["key"] == "deletedFile":
            del files[value["path"]]
    return files
