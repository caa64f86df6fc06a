"""Every error quantkit raises on purpose, drawn as one tree.

    QuantkitError                   1   the operation failed
    ├── UsageError                  2   the request itself is wrong
    │   ├── RecipeError                 a recipe's key or value
    │   └── OutputExistsError           OUT is there already
    ├── SourceError                 1   the source cannot be used
    │   ├── CheckpointError             a weight file is broken
    │   │   └── UnsafePickleError       a .bin names a global outside the allow-list
    │   ├── UnsupportedModelError       not a dense decoder-only model
    │   └── NonFiniteError              NaN or infinity in the weights
    ├── StorageError                1   the disk is full or will not hold the output
    ├── HubError                    1   the Hub says no, or cannot be reached
    │   └── RemoteError                 what lies there is not what was sent
    ├── LicenceError                1   the source's licence does not let it be published
    ├── VerificationError           3   digests
    │   ├── WithdrawnError              a release that was withdrawn
    │   ├── MismatchError               claims an identity no release of which matches
    │   └── UnlistedError               unlisted, and --require-verified
    └── GateError                   4   the gate failed

The core raises these; only :mod:`quantkit.cli` turns them into text and an exit
code. A message says what, where, what was expected, what was found and what to
do next, on one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from errno import ENOMEM
from typing import Any
from unicodedata import category

#: The exit code after Ctrl-C; after another signal it is 128 and that one's number, as shells have
#: it: 143 for SIGTERM.
INTERRUPTED = 130

#: How many characters of a library's message are shown; beyond that it becomes a lecture.
_LONGEST = 400


class QuantkitError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is the command's.

    ``found`` is what the verb would have returned, where it came that far.
    """

    exit_code = 1

    def __init__(self, message: str, found: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = found or {}


class UsageError(QuantkitError):
    """The request itself is wrong: a bad option, name or value."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe is unknown, or one of its keys or values is."""


class OutputExistsError(UsageError):
    """The output folder is there already and may not be replaced."""


class SourceError(QuantkitError):
    """The source cannot be used."""


class CheckpointError(SourceError):
    """A weight file is broken: truncated, inconsistent, or of an unknown kind."""


class UnsafePickleError(CheckpointError):
    """A ``.bin`` asks for a global that no checkpoint of tensors needs."""


class UnsupportedModelError(SourceError):
    """The model is not a dense decoder-only model that quantkit supports."""


class NonFiniteError(SourceError):
    """A weight holds NaN or infinity."""


class StorageError(QuantkitError):
    """The disk is full, or will not hold the output."""


class HubError(QuantkitError):
    """The Hub says no, or cannot be reached."""


class RemoteError(HubError):
    """What lies on the Hub is not what was sent there."""


class LicenceError(QuantkitError):
    """The source's licence does not let a quantized copy be published."""


class VerificationError(QuantkitError):
    """The source's digests forbid going on."""

    exit_code = 3


class WithdrawnError(VerificationError):
    """The source is a release that was withdrawn."""


class MismatchError(VerificationError):
    """The source claims an identity, and no release of it has these digests."""


class UnlistedError(VerificationError):
    """No registry knows the source, and ``--require-verified`` was given."""


class GateError(QuantkitError):
    """The gate failed: the output is not fit to be published. ``found`` has the measures."""

    exit_code = 4


def on_one_line(error: BaseException) -> str:
    """What a library said, its lines run together, or the error's kind when it said nothing."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]} …"


_OUT_OF_MEMORY = ("can't allocate memory", "failed to map segment from shared object")


def out_of_memory(error: BaseException) -> bool:
    """Whether it is Python's own error, CUDA's, the system's, or in torch's or the linker's words.

    torch raises a ``RuntimeError`` for a CPU's memory, and the linker an error without a number,
    which a library may put into words of its own.
    """
    before = error.__cause__ or error.__context__
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == ENOMEM)
        or any(words in str(error) for words in _OUT_OF_MEMORY)
        or (before is not None and out_of_memory(before))
    )


def of_the_machine(error: BaseException) -> bool:
    """Whether memory or the disk is what failed, and not a model's own code."""
    return isinstance(error, OSError) or out_of_memory(error)


@contextmanager
def explained(say: Callable[[Exception], QuantkitError]) -> Iterator[None]:
    """Turn what others' code raises inside into ``say(error)``; our errors and the machine's pass
    as they are."""
    try:
        yield
    except QuantkitError:
        raise
    except Exception as error:
        if of_the_machine(error):
            raise
        raise say(error) from error


def printable(text: str) -> str:
    """``text`` with what a terminal would act on, line breaks too, written as escapes.

    Names of files may hold anything but a slash; letters of every script stay as they are.
    """

    def shown(each: str) -> bool:
        return each.isprintable() or category(each) == "Zs"  # blanks, the wide one too

    return "".join(each if shown(each) else ascii(each)[1:-1] for each in text)


def printable_lines(text: str) -> str:
    """The same, line breaks kept."""
    return "\n".join(map(printable, text.split("\n")))
