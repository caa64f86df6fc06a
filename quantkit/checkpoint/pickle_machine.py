"""A state dict's pickle, interpreted without unpickling.

:mod:`pickletools` cuts the pickle into opcodes; a small stack machine follows those
that ``torch.save`` writes for a dict of tensors. It knows the few globals of
:mod:`~quantkit.checkpoint.torch_globals` by *name*: nothing is ever imported or
called, tensors come out as descriptions. Any other global, and any opcode that
would call or build something else, is an :class:`UnsafePickleError`. An allow-list,
because lists of bad names are bypassed.

Values are never compared, hashed (but for strings) or printed: a few bytes of
pickle can build a structure that takes forever to walk. Memory is linear in the
pickle's length, and opcodes, stack, marks and memo are counted besides.

Protocols 2 (torch's default) to 5 are understood, as far as torch.save uses them.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable
from typing import NoReturn

from quantkit.checkpoint.layout import MAX_COUNT, is_count
from quantkit.checkpoint.names import quoted
from quantkit.checkpoint.torch_globals import (
    ALLOWED,
    Global,
    OrderedDictRef,
    describe_call,
    describe_storage,
)
from quantkit.errors import CheckpointError, UnsafePickleError

#: A tensor takes some 35 opcodes: room for 20,000 tensors a file, read in some 2 seconds.
MAX_OPCODES = 700_000
MAX_MEMO = 400_000
#: Dicts are written in batches of 1000 pairs, tuples hold up to 64 sizes.
MAX_STACK = 20_000
MAX_MARKS = 100

#: Opcodes that make or call objects in ways no state dict needs.
_UNSAFE_OPCODES = frozenset(
    ["INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"]
)
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUSH_ARGUMENT = frozenset(
    ["BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "BINFLOAT"]
)


def interpret(pickle: bytes, where: str) -> object:
    """What ``pickle`` describes: dicts, lists, tuples, scalars and :class:`TensorRef`.

    ``where`` names the file, for messages.
    """
    machine = _Machine(where)
    stream = io.BytesIO(pickle)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                machine.fail(f"expected at most {MAX_OPCODES} pickle opcodes, got more")
            machine.step(opcode.name, argument)
    except (ValueError, struct.error, OverflowError) as error:
        machine.fail(f"expected a well-formed pickle, but {str(error)[:100]!r}")
    if stream.tell() != len(pickle):
        machine.fail("expected the pickle to end at STOP, bytes follow it")
    return machine.result()


class _Machine:
    """The stack, the marks and the memo; one method for each kind of opcode."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        self._handlers: dict[str, Callable[[object], None]] = {
            "PROTO": self._protocol,
            "FRAME": self._nothing,
            "STOP": self._nothing,
            "MARK": self._mark,
            "GLOBAL": self._global,
            "STACK_GLOBAL": self._stack_global,
            "BINPERSID": self._persistent_id,
            "REDUCE": self._reduce,
            "BUILD": self._build,
            "TUPLE": self._tuple_from_mark,
            "EMPTY_DICT": lambda _: self._push({}),
            "EMPTY_LIST": lambda _: self._push([]),
            "APPEND": lambda _: self._append([self._pop()]),
            "APPENDS": lambda _: self._append(self._pop_mark()),
            "SETITEM": self._set_item,
            "SETITEMS": lambda _: self._set_items(self._pop_mark()),
            "LONG1": self._long,
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "BINGET": self._get,
            "LONG_BINGET": self._get,
        }

    def fail(self, problem: str) -> NoReturn:
        raise CheckpointError(f"{self._where}: {problem}; the file is damaged, fetch it again")

    def refuse(self, found: str) -> NoReturn:
        raise UnsafePickleError(
            f"{self._where}: expected a pickle of plain tensors, got {found}; nothing was run: "
            "do not load this file, ask its author for safetensors or a plain state_dict"
        )

    def result(self) -> object:
        if len(self._stack) != 1 or self._marks:
            self.fail(f"expected the pickle to leave one value, got {len(self._stack)}")
        return self._stack[0]

    def step(self, opcode: str, argument: object) -> None:
        handler = self._handlers.get(opcode)
        if handler is not None:
            handler(argument)
        elif opcode in _PUSH_ARGUMENT:
            self._push(argument)
        elif opcode in _LITERALS:
            self._push(_LITERALS[opcode])
        elif opcode in _TUPLE_SIZES:
            self._push(tuple(reversed([self._pop() for _ in range(_TUPLE_SIZES[opcode])])))
        elif opcode in _UNSAFE_OPCODES:
            self.refuse(f"the opcode {opcode} with {quoted(argument)}")
        else:
            self.fail(f"expected the opcodes of torch.save, got {opcode}")

    # The stack.

    def _push(self, value: object) -> None:
        if len(self._stack) >= MAX_STACK:
            self.fail(f"expected at most {MAX_STACK} values on the pickle's stack, got more")
        self._stack.append(value)

    def _pop(self) -> object:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) <= floor:
            self.fail("the pickle takes more values than it made")
        return self._stack.pop()

    def _mark(self, _: object) -> None:
        if len(self._marks) >= MAX_MARKS:
            self.fail(f"expected at most {MAX_MARKS} open marks in the pickle, got more")
        self._marks.append(len(self._stack))

    def _pop_mark(self) -> list[object]:
        if not self._marks:
            self.fail("the pickle closes a mark that it never opened")
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # The memo.

    def _put(self, index: object) -> None:
        if len(self._memo) >= MAX_MEMO:
            self.fail(f"expected at most {MAX_MEMO} memo entries in the pickle, got more")
        value = self._pop()
        self._stack.append(value)
        self._memo[self._index(index)] = value

    def _get(self, index: object) -> None:
        if self._index(index) not in self._memo:
            self.fail(f"the pickle recalls memo entry {index} that it never made")
        self._push(self._memo[self._index(index)])

    def _index(self, index: object) -> int:
        if not is_count(index):
            self.fail("expected memo entries to be numbered from 0")
        return index

    # Plain values.

    def _nothing(self, _: object) -> None:
        """STOP ends the stream by itself; FRAME is a hint for buffering."""

    def _protocol(self, version: object) -> None:
        if version not in (2, 3, 4, 5):
            self.fail(f"expected pickle protocol 2 to 5, got {version}")

    def _long(self, value: object) -> None:
        if not isinstance(value, int) or abs(value) > MAX_COUNT:
            self.fail("expected integers of at most 64 bits in the pickle, got a longer one")
        self._push(value)

    def _tuple_from_mark(self, _: object) -> None:
        self._push(tuple(self._pop_mark()))

    def _append(self, values: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, list):
            self.refuse(f"an append to {quoted(target)}")
        target.extend(values)
        self._push(target)

    def _set_item(self, _: object) -> None:
        value, key = self._pop(), self._pop()
        self._set_items([key, value])

    def _set_items(self, flat: list[object]) -> None:
        target = self._pop()
        if not isinstance(target, dict):
            self.refuse(f"item assignment on {quoted(target)}")
        if len(flat) % 2:
            self.fail("expected keys and values in pairs, got an odd number")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            if not isinstance(key, str):
                self.fail(f"expected names as keys, got {quoted(key)}")
            if key in target:
                self.fail(f"expected each key once, got {quoted(key)} twice")
            target[key] = value
        self._push(target)

    # What would import and call, were this an unpickler.

    def _global(self, argument: object) -> None:
        module, _, name = str(argument).partition(" ")
        self._push_global(Global(module, name))

    def _stack_global(self, _: object) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.refuse("a global whose name is no text")
        self._push_global(Global(module, name))

    def _push_global(self, found: Global) -> None:
        if found not in ALLOWED:
            self.refuse(f"the global {quoted(f'{found.module}.{found.name}')}")
        self._push(found)

    def _persistent_id(self, _: object) -> None:
        self._push(describe_storage(self._pop(), self.fail))

    def _reduce(self, _: object) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            self.refuse(f"a call of {quoted(function)}")
        self._push(describe_call(function, arguments, self.fail))

    def _build(self, _: object) -> None:
        """Module.state_dict() hangs versions on its OrderedDict as ``_metadata``."""
        state, target = self._pop(), self._pop()
        if not isinstance(target, OrderedDictRef) or not isinstance(state, dict):
            self.refuse(f"attributes set on {quoted(target)}")
        if set(state) - {"_metadata"}:
            self.refuse(f"the attribute {quoted(min(set(state) - {'_metadata'}))} on a dict")
        self._push(target)
