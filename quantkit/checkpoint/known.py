"""Weight files that this machine has digested before, known again by BLAKE3.

SHA-256 and MD5 are the longest part of reading a file, as each runs on one thread. The digests
of its tensors are taken in any case, for the fingerprint; with what lies between the tensors they
make the file's *content* (:meth:`~quantkit.checkpoint.fingerprint.TensorDigests.content`), one
BLAKE3 digest of every byte. It is kept with the file's other digests. When the file is read
again, only its content is taken; if that is still the same, so are the other digests.

A file's stamp (times, inode) says no more than which content to expect. None of it is believed:
a file that holds something else is digested as if it had never been seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from quantkit.cache import keep, recall
from quantkit.checkpoint.reading import Stamp
from quantkit.lanes import Task
from quantkit.types import FileDigest

_KIND = "digests"


@dataclass(frozen=True)
class Known:
    """What an earlier run found: a file's content, and the digests of a file with that content.

    ``md5`` is ``None`` where nothing asked for it.
    """

    content: str
    sha256: str
    md5: str | None


def find_known(stamp: Stamp, *, md5: bool) -> Known | None:
    """What to expect of a file with this stamp; ``None`` too where an MD5 is wanted that was
    never taken."""
    found = recall(_KIND, asdict(stamp), TypeAdapter(Known))
    return None if found is None or (md5 and found.md5 is None) else found


def keep_known(stamp: Stamp, known: Known) -> None:
    """For later runs, if there is a place for it."""
    keep(_KIND, asdict(stamp), known, TypeAdapter(Known))


class KnownDigest:
    """Stands in for a :class:`~quantkit.digests.StreamDigest`. Its result is that of ``known``,
    right only if the stream proves to have the same content."""

    def __init__(self, known: Known, *, md5: bool) -> None:
        self._known, self._md5 = known, md5
        self._length = 0

    def close(self) -> None:
        """There is nothing to stop."""

    def feed(self, data: memoryview) -> list[Task]:
        self._length += len(data)
        return []

    def result(self, name: str, *, is_weight: bool) -> FileDigest:
        md5 = self._known.md5 if self._md5 else None
        return FileDigest(name, self._length, self._known.sha256, md5, is_weight)
