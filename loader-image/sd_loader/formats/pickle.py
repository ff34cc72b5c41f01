"""A symbolic reader of pickles: it follows the instructions but does not import or call anything.

The result has numbers, strings, tuples and lists; dictionaries, but only their entries whose keys
are strings or small whole numbers; a `View` for each tensor; and `OPAQUE` for every other object.
Names outside `pickle_names.PERMITTED`, and instructions that torch.save never writes, are refused
as unsafe. They could not run code here, but they could in another reader.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeGuard

from sd_loader.formats.pickle_names import Name
from sd_loader.formats.pickle_objects import (
    OPAQUE,
    Parameters,
    Storage,
    View,
    outcome,
    permitted,
    refuse_damaged,
    refuse_unsafe,
    storage,
)
from sd_loader.snippet import snippet

HIGHEST_PROTOCOL = 5
MAX_BYTES = 16 << 20
"""Maximum size of a pickle. SDXL's has 0.4 MB. In memory, text with an uncommon character is four
times as large."""
MAX_INSTRUCTIONS = 1_000_000
"""Maximum number of instructions. SDXL's pickle has 80,000, about 32 per tensor. A million take a
second and up to 120 MB."""
MAX_DEPTH = 10_000
MAX_STACK = 200_000
_WIDTHS = range(65_536)
"""Numbers that may be a key: hypernetworks put their layers under widths."""

Handler = Callable[["_Machine", Any], None]
Resolve = Callable[[object], Storage]
"""Returns the storage that a persistent id means."""


class Stream(Protocol):
    """The source of a pickle."""

    def read(self, size: int, /) -> bytes:
        """Read the next bytes, or fewer at the end."""

    def readline(self) -> bytes:
        """Read up to and including the next newline."""


def load(data: bytes) -> tuple[object, int]:
    """Read the pickle at the beginning of `data`. Return its content and its length."""
    stream = io.BytesIO(data)
    return read(stream), stream.tell()


def read(stream: Stream, resolve: Resolve = storage) -> object:
    """Read the stream's next pickle, and leave the stream at the end of this pickle."""
    machine = _Machine(resolve)
    count = 0
    try:
        while (code := stream.read(1)) != _STOP:
            if code not in _INSTRUCTIONS:
                _refuse_instruction(code)
            count += 1
            if count > MAX_INSTRUCTIONS:
                refuse_damaged(f"more than {MAX_INSTRUCTIONS} instructions")
            argument, handle = _INSTRUCTIONS[code]
            handle(machine, argument(stream) if argument else None)
    except ValueError as error:  # An argument is cut off or is not valid text.
        refuse_damaged(snippet(str(error)))
    return machine.result()


def _refuse_instruction(code: bytes) -> NoReturn:
    if not code:
        refuse_damaged("it is cut off")
    if code not in _CODES:
        refuse_damaged(f"0x{code.hex()} is not an instruction")
    refuse_unsafe(f"it holds {_CODES[code].name}, which torch never writes")


class _Machine:
    """The stack and the memo of a pickle machine."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self.stack: list[Any] = []
        self.below_marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> object:
        if len(self.stack) != 1 or self.below_marks:
            refuse_damaged("it does not end with exactly one object")
        return self.stack[0]

    def push(self, value: object) -> None:
        if len(self.stack) >= MAX_STACK:
            refuse_damaged(f"more than {MAX_STACK} objects at a time")
        self.stack.append(value)

    def top(self) -> Any:  # noqa: ANN401 - any object of the pickle
        if not self.stack:
            refuse_damaged("it uses an object that does not exist")
        return self.stack[-1]

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            refuse_damaged("it uses an object that does not exist")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def mark(self) -> None:
        if len(self.below_marks) >= MAX_DEPTH:
            refuse_damaged(f"nested deeper than {MAX_DEPTH}")
        self.below_marks.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        if not self.below_marks:
            refuse_damaged("it refers to a mark that does not exist")
        values, self.stack = self.stack, self.below_marks.pop()
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            refuse_damaged("it recalls an object that it did not store")
        self.push(self.memo[index])


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.since_mark()


def _pop_mark(machine: _Machine) -> None:
    machine.since_mark()


def _frozenset(machine: _Machine) -> None:
    machine.since_mark()
    machine.push(OPAQUE)


def _extend(machine: _Machine, values: Sequence[object]) -> None:
    target = machine.top()
    if isinstance(target, list):
        target.extend(values)
    elif target is not OPAQUE:
        refuse_damaged("it appends to an object that is not a list")


def _set_items(machine: _Machine, values: Sequence[object]) -> None:
    target = machine.top()
    if isinstance(target, dict):
        target.update(_entries(values))
    elif target is not OPAQUE:
        refuse_damaged("it sets items of an object that is not a dictionary")


def _entries(values: Sequence[object]) -> dict[str | int, object]:
    if len(values) % 2:
        refuse_damaged("a dictionary's key without a value")
    pairs = zip(values[::2], values[1::2], strict=True)
    return {key: value for key, value in pairs if _is_key(key)}


def _is_key(key: object) -> TypeGuard[str | int]:
    """Whether a key may name weights. Large numbers can share a hash, and are slow as keys."""
    return isinstance(key, str) or (type(key) is int and key in _WIDTHS)


def _set_state(machine: _Machine) -> None:
    """Ignore an object's attributes, but refuse to set those of a class or function.

    Only a ParameterDict has its weights in its attributes.
    """
    (state,) = machine.take(1)
    target = machine.top()
    if isinstance(target, Parameters):
        target.set_state(state)
    elif not (target is OPAQUE or isinstance(target, dict | View)):
        refuse_unsafe("it sets attributes of a class, a function or a plain value")


def _global(machine: _Machine, argument: tuple[str, str]) -> None:
    machine.push(permitted(*argument))


def _stack_global(machine: _Machine) -> None:
    module, name = machine.take(2)
    if not (isinstance(module, str) and isinstance(name, str)):
        refuse_unsafe("it computes the name of a class or function")
    machine.push(permitted(module, name))


def _instance(_machine: _Machine, argument: tuple[str, str]) -> None:
    """Refuse INST, which names and calls a class at once. Only the oldest pickles have it."""
    refuse_unsafe(f"it would call {snippet(str(Name(*argument)))}")


def _call(machine: _Machine) -> None:
    function, arguments = machine.take(2)
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        refuse_unsafe("it would call an object that is not a function")
    machine.push(outcome(function, arguments))


def _call_with_keywords(machine: _Machine) -> None:
    machine.take(1)
    _call(machine)


def _constant(make: Callable[[], object]) -> Handler:
    return lambda machine, _: machine.push(make())


def _plain(handler: Callable[[_Machine], None]) -> Handler:
    return lambda machine, _: handler(machine)


def _check_protocol(_machine: _Machine, protocol: int) -> None:
    """Refuse a protocol that does not exist."""
    if protocol > HIGHEST_PROTOCOL:
        refuse_damaged(f"protocol {protocol} is unknown")


def _ignore(_machine: _Machine, _argument: object) -> None:
    """Skip an instruction without effect on the result."""


_LITERALS = (
    "BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT"
    " BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8"
    " BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)

_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_LITERALS.split(), _Machine.push),
    "PROTO": _check_protocol,
    "FRAME": _ignore,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(lambda: OPAQUE),
    "MARK": _plain(_Machine.mark),
    "POP": _plain(_pop),
    "POP_MARK": _plain(_pop_mark),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.take(3)),
    "LIST": lambda machine, _: machine.push(machine.since_mark()),
    "DICT": lambda machine, _: machine.push(_entries(machine.since_mark())),
    "FROZENSET": _plain(_frozenset),
    "APPEND": lambda machine, _: _extend(machine, machine.take(1)),
    "APPENDS": lambda machine, _: _extend(machine, machine.since_mark()),
    "ADDITEMS": lambda machine, _: _extend(machine, machine.since_mark()),
    "SETITEM": lambda machine, _: _set_items(machine, machine.take(2)),
    "SETITEMS": lambda machine, _: _set_items(machine, machine.since_mark()),
    "GLOBAL": _global,
    "STACK_GLOBAL": _plain(_stack_global),
    "INST": _instance,
    "REDUCE": _plain(_call),
    "NEWOBJ": _plain(_call),
    "NEWOBJ_EX": _plain(_call_with_keywords),
    "BUILD": _plain(_set_state),
    "BINPERSID": lambda machine, _: machine.push(machine.resolve(*machine.take(1))),
}

_STOP = b"."
_CODES = {known.code.encode("latin-1"): known for known in pickletools.opcodes}


def _name(stream: Stream) -> tuple[str, str]:
    """Read a module and a name as pickle does. pickletools would interpret backslashes."""
    module, name = stream.readline(), stream.readline()
    if not (module.endswith(b"\n") and name.endswith(b"\n")):
        refuse_damaged("it is cut off")
    return module[:-1].decode("utf-8"), name[:-1].decode("utf-8")


def _reader(known: pickletools.OpcodeInfo) -> Callable[[Any], Any] | None:
    if known.name in ("GLOBAL", "INST"):
        return _name
    return known.arg.reader if known.arg else None


_INSTRUCTIONS = {
    code: (_reader(known), _HANDLERS[known.name])
    for code, known in _CODES.items()
    if known.name in _HANDLERS
}
"""The reader of the argument and the handler of each instruction."""
