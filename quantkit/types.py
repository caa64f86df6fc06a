"""The values that flow between the stages, all frozen, and who hears how far they are.

Data types are named as torch names them without the prefix (``"float16"``,
``"bfloat16"``, ``"uint8"``), so that plans and manifests are plain JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Literal, get_args

#: A path, or a name, as callers may give it.
AnyPath = str | PathLike[str]

#: Bytes of one element. The only data types quantkit reads or writes.
ITEM_BYTES: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}

#: The data types that weights may have, and that a recipe may ask for.
FLOAT_DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorRecord:
    """Where one tensor of a checkpoint lies.

    ``offset`` is the absolute position in ``file`` of the tensor's first byte and
    ``nbytes`` the length of the byte range it touches from there. ``stride`` counts
    elements; ``None`` means row-major and contiguous, and then
    ``nbytes == prod(shape) * ITEM_BYTES[dtype]``. Two records may share bytes (tied
    weights in a ``.bin``).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    nbytes: int
    stride: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return prod(self.shape)


Action = Literal["quantize", "copy", "cast", "drop"]
ACTIONS: tuple[Action, ...] = get_args(Action)

Status = Literal["verified", "superseded", "withdrawn", "mismatch", "unlisted"]


@dataclass(frozen=True)
class FileDigest:
    """A file's name in its repository, size in bytes, and digests in lower-case hex."""

    name: str
    bytes: int
    sha256: str
    md5: str | None = None
    is_weight: bool = False


@dataclass(frozen=True)
class Fingerprint:
    """Digests (BLAKE3, hex) of a checkpoint's tensors, whatever files they lie in.

    ``tensors``: names, data types, shapes and bytes. ``values``: names, shapes and values,
    the same for every data type that holds the values exactly. ``matrices``: the values of
    the floating two-dimensional tensors alone, without names, each once; what a rename or
    a dropped buffer leaves. See :mod:`quantkit.checkpoint.fingerprint`.
    """

    tensors: str
    values: str
    matrices: str


@dataclass(frozen=True)
class Digested:
    """What one read of the weight files found: each file's digests, and the tensors'.

    ``recalled`` names the files whose SHA-256 and MD5 an earlier run took, of the same bytes.
    """

    files: tuple[FileDigest, ...]
    fingerprint: Fingerprint
    recalled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the registry says of a source. ``evidence`` says by what it was recognized."""

    status: Status
    repository: str | None = None
    release: str | None = None
    reason: str = ""
    stated_at: str = ""
    advice: str = ""
    kind: str | None = None
    evidence: str = ""


@dataclass(frozen=True)
class OutputTensor:
    """One tensor to be written.

    ``nbytes`` is exact unless ``variable``, when it is the most the tensor can take
    (a JSON text in which a float is printed) and its real size is known only once
    it has been made.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    variable: bool = False


@dataclass(frozen=True)
class Event:
    """What the core tells whoever listens: ``done`` of ``total`` ``unit`` of ``stage``."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = "bytes"
    message: str = ""


#: Receives events; the core never prints.
Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that ignores what it is told."""


class _ListenerRaised(BaseException):  # no Exception, which those who judge models catch
    """What a listener raised, on its way out."""


@dataclass(frozen=True)
class _Telling:
    """A listener whose errors are on their way out to :func:`listening`."""

    listener: Listener

    def __call__(self, event: Event) -> None:
        try:
            self.listener(event)
        except Exception as error:
            raise _ListenerRaised from error


class _Listening(AbstractContextManager[Listener, None]):
    # no generator: what leaves one may not be a StopIteration
    def __init__(self, listener: Listener) -> None:
        self._outermost = not isinstance(listener, _Telling)
        self._tell = _Telling(listener) if self._outermost else listener

    def __enter__(self) -> Listener:
        return self._tell

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        cause = error.__cause__ if isinstance(error, _ListenerRaised) else None
        if cause is None or not self._outermost:
            return
        came_from = cause.__context__
        try:
            raise cause
        finally:  # as it was raised: Python would have it come from our own
            cause.__context__ = came_from


def listening(listener: Listener) -> AbstractContextManager[Listener, None]:
    """``listener`` for code that takes errors for verdicts, or for its own: what it raises passes
    through, to the outermost of these that are open."""
    return _Listening(listener)


def counted(listener: Listener, stage: str, total: int) -> Callable[[int], None]:
    """A function that is told each part's bytes, and tells ``listener`` the sum so far."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        listener(Event(stage, done, total))

    return tell
