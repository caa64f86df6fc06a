"""A stranger's chat template, rendered once in a process of its own.

Reading cannot tell what a template does: names can be put together while it runs, and a
loop in a loop never ends. So it is run as transformers would run it, in Jinja's sandbox,
on two short messages, by a process that has two seconds, half a gigabyte and no more.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from typing import NoReturn

#: Seconds of CPU; real templates take a few thousandths.
SECONDS = 2

_MEMORY = 512 << 20
_MAX_CHARACTERS = 1 << 20
_REFUSED = 3

_MESSAGES = ({"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."})


def misbehaviour(template: str) -> str:
    """What is wrong with how ``template`` runs; empty if nothing is.

    That it refuses the two messages, or lacks a variable, is not wrong.
    """
    words = [sys.executable, "-P", __file__]  # by its path: it needs nothing else of ours
    try:
        done = subprocess.run(
            words, input=template.encode(), capture_output=True, timeout=10 * SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "it does not come to an end"
    if done.returncode == _REFUSED:
        return done.stdout.decode("utf-8", "replace").strip()
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):  # the system's limit on its time
        return f"it takes more than {SECONDS} seconds"
    if done.returncode < 0:
        return f"it ended by signal {-done.returncode}"
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return f"it could not be rendered: {said}"
    return ""


def _render(template: str) -> str:
    """Runs in the process of its own."""
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Strict(ImmutableSandboxedEnvironment):
        """Where Jinja gives nothing for what is out of bounds, this says so."""

        def unsafe_undefined(self, obj: object, attribute: str) -> NoReturn:
            raise SecurityError(f"access to {attribute!r} of a {type(obj).__name__} is unsafe")

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = Strict(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    given = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": True}
    length = 0
    try:
        for part in environment.from_string(template).generate(messages=_MESSAGES, **given):
            length += len(part)
            if length > _MAX_CHARACTERS:
                return "it makes a megabyte of two short messages"
    except (SecurityError, OverflowError) as error:
        return f"Jinja's sandbox stops it: {error}"
    except MemoryError:
        return "it takes more memory than any prompt"
    except Exception:
        return ""  # it wants other messages, or a variable
    return ""


def main() -> None:
    """Read a template from standard input, render it, and say what was wrong."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    said = _render(sys.stdin.buffer.read().decode())
    sys.stdout.write(said)
    sys.exit(_REFUSED if said else 0)


if __name__ == "__main__":
    main()
