"""What may be a tensor's name, and how strangers' text is quoted in messages."""

from __future__ import annotations

from quantkit.errors import CheckpointError

#: Longest tensor name accepted, in characters. Real ones stay below 200.
MAX_NAME_LENGTH = 1024

_QUOTED_LENGTH = 120

#: What a shell or HTML acts on.
_ACTED_ON = frozenset(" <>\"'`|\\$;&(){}*?!#")


def quoted(text: object) -> str:
    """``text`` for a message: one line, printable, and never long.

    Only strings are shown. Anything else is named by its type, because the
    ``repr`` of a hostile structure may be endless.
    """
    if not isinstance(text, str):
        return f"a {type(text).__name__}"
    if len(text) > _QUOTED_LENGTH:
        return ascii(text[:_QUOTED_LENGTH]) + "..."
    # Surrogates cannot be printed; every other letter stays readable.
    return repr(text) if encodable(text) else ascii(text)


def encodable(text: str) -> bool:
    """Whether ``text`` is valid Unicode (a lone surrogate is not)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_tensor_name(name: object, where: str) -> str:
    """``name`` if it can be a tensor's name; ``where`` is the file, for the message.

    Names end up on cards, in pages and in commands that people copy. No model's names hold
    anything that these would act on.
    """
    if isinstance(name, str) and 0 < len(name) <= MAX_NAME_LENGTH and encodable(name):
        if name.isprintable() and not _ACTED_ON & set(name):
            return name
        raise CheckpointError(
            f"{where}: expected tensor names without blanks, quotes and marks of shells and HTML, "
            f"got {quoted(name)}; the file is hostile, do not use it"
        )
    raise CheckpointError(
        f"{where}: expected tensor names of 1 to {MAX_NAME_LENGTH} Unicode characters, "
        f"got {quoted(name)}; the file is damaged or hostile, fetch it again from its author"
    )
