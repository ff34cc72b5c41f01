"""Pickles that hide a call from scanners which do not track names, memo or frames as Python does.

Other pickles call through names that models may use, hide code in every place where a value can
be, or contain another pickle.
"""

from __future__ import annotations

import struct

from tests.support.formats.legacyfiles import content, storage, tensor
from tests.support.formats.torchfiles import archive
from tests.support.hostile.pickles import (
    CODE,
    EMPTY_DICT,
    EMPTY_TUPLE,
    MEMOIZE,
    NONE,
    OS_SYSTEM,
    POP,
    RUN,
    SETITEM,
    THING,
    TOUCH,
    arguments,
    call,
    name,
    pickled,
    stack_name,
    text,
)
from tests.support.hostile.samples import DAMAGED, UNSAFE, Sample, Samples, in_archives

COMMAND = arguments(text(TOUCH))
EVIL = pickled(RUN)
GOOD = content({"weight": tensor(storage("0", 3).replace(NONE + b"t", b"t"), [3])})
NUMBERS = {"0": struct.pack("<3f", 1, 2, 3)}
ORDERED = name("collections", "OrderedDict")


def raw(value: bytes) -> bytes:
    """Push bytes (BINBYTES)."""
    return b"B" + struct.pack("<I", len(value)) + value


def framed(length: int, *instructions: bytes) -> bytes:
    """Return a pickle of protocol 4 whose frame states this length."""
    return pickled(b"\x95" + struct.pack("<Q", length), *instructions, protocol=4)


def dotted(module: str, path: str, *values: bytes) -> bytes:
    """Return a pickle that calls a dotted name."""
    return pickled(call(stack_name(text(module), text(path)), *values), protocol=4)


_SPELLINGS = {
    "a name in text, arguments too": b"cposix\nsystem\n(V" + TOUCH.encode() + b"\ntR.",
    "text memo": b"cposix\nsystem\np7\n0(g7\n0g7\n(S'touch canary'\ntR.",
    "no protocol": RUN + b".",
    "the protocol in the middle": OS_SYSTEM + b"\x80\x04" + COMMAND + b"R.",
    "the protocol changed before the name": b"\x80\x02\x80\x04"
    + stack_name(text("posix"), text("system")) + COMMAND + b"R.",
    "protocol 1 with a name on the stack": pickled(
        stack_name(text("posix"), text("system")), COMMAND, b"R", protocol=1
    ),
    "short names": pickled(b"\x8c\x05posix\x8c\x06system\x93", COMMAND, b"R", protocol=4),
    "names of 64-bit length": pickled(
        *(b"\x8d" + struct.pack("<Q", len(word)) + word for word in (b"posix", b"system")),
        b"\x93", COMMAND, b"R", protocol=4,
    ),
    "a name of bytes turned into text": pickled(
        stack_name(
            call(name("builtins", "str"), raw(b"posix"), text("ascii")), text("system")
        ),
        COMMAND, b"R", protocol=4,
    ),
    "a name doubled and dropped": pickled(
        text("posix"), text("system"), b"2", POP, b"\x93", COMMAND, b"R", protocol=4
    ),
    "a name below a dropped mark": pickled(
        text("posix"), text("system"), b"(", text("json"), text("loads"), b"1\x93", COMMAND, b"R",
        protocol=4,
    ),
    "marks dropped by POP": pickled(b"((((0000", RUN),
    "arguments from the memo": pickled(
        COMMAND, b"q\x01", POP, OS_SYSTEM, b"h\x01R"
    ),
    "a function from the memo": pickled(
        OS_SYSTEM, b"r\xff\0\0\0", POP, b"h\xff", COMMAND, b"R"
    ),
    "an argument list of one": pickled(OS_SYSTEM, text(TOUCH), b"\x85R"),
    "OBJ with arguments": b"(" + name("subprocess", "Popen") + arguments(
        text("touch"), text("canary")
    ) + b"o.",
    "NEWOBJ_EX with keywords": pickled(
        name("subprocess", "Popen"), EMPTY_TUPLE,
        EMPTY_DICT + text("args") + text("x") + SETITEM, b"\x92", POP, RUN, protocol=4,
    ),
}  # fmt: skip
_MEMO = {
    # A scanner that numbers memo entries in another way than Python finds a harmless name.
    "MEMOIZE writes over PUT": pickled(
        text("json"), b"q\x01", POP, text("posix"), MEMOIZE, POP, b"h\x01", text("system"),
        b"\x93", COMMAND, b"R", protocol=4,
    ),
    "PUT writes over MEMOIZE": pickled(
        text("json"), MEMOIZE, POP, text("posix"), b"q\x00", POP, b"h\x00", text("system"),
        b"\x93", COMMAND, b"R", protocol=4,
    ),
    "MEMOIZE counts entries, not calls": pickled(
        text("json"), b"q\x00q\x00q\x00", POP, text("posix"), MEMOIZE, POP, b"h\x01",
        text("system"), b"\x93", COMMAND, b"R", protocol=4,
    ),
    "one object under two numbers": pickled(
        text("posix"), b"q\x00r\x00\x01\x00\x00", POP, b"j\x00\x01\x00\x00", text("system"),
        b"\x93", COMMAND, b"R", protocol=4,
    ),
    "the memo survives the pickle's end": pickled(OS_SYSTEM, b"q\x00")
    + pickled(b"h\x00", COMMAND, b"R"),
}  # fmt: skip
_FRAMES = {
    "a frame too short": framed(1, RUN),
    "a frame of nothing": framed(0, RUN),
    "a frame within a frame": framed(len(RUN) + 10, b"\x95" + struct.pack("<Q", len(RUN) + 1), RUN),
    "code between two frames": framed(1, NONE, RUN, b"\x95" + struct.pack("<Q", 1)),
}
_DOTTED = {
    "eval, by its own call": dotted("builtins", "eval.__call__", text(CODE)),
    "os behind argparse": dotted("argparse", "_os.system", text(TOUCH)),
    "os behind pathlib": dotted("pathlib", "os.system", text(TOUCH)),
    "a method of Path": pickled(
        stack_name(text("pathlib"), text("Path.touch")),
        arguments(call(name("pathlib", "Path"), text("canary"))), b"R", protocol=4,
    ),
    "builtins behind a method": pickled(
        stack_name(text("collections"), text("OrderedDict.fromkeys.__self__.__class__.__call__")),
        POP, RUN, protocol=4,
    ),
    "sys behind collections": pickled(
        call(
            call(
                name("operator", "itemgetter"), text("posix")
            ),
            stack_name(text("collections"), text("_sys.modules")),
        ),
        POP, RUN, protocol=4,
    ),
    "os behind os.path": dotted("os", "path.os.system", text(TOUCH)),
    "os.system, by its own call": dotted("os", "system.__call__", text(TOUCH)),
}  # fmt: skip
_IN_TORCH = {
    "os behind torch": dotted("torch", "os.system", text(TOUCH)),
    "os behind torch.serialization": dotted("torch", "serialization.os.system", text(TOUCH)),
    "torch's import by name": pickled(
        call(name("torch._utils", "_import_dotted_name"), text("canary_module.Thing"))
    ),
    "torch.save": pickled(call(name("torch", "save"), NONE, text("canary"))),
    "a storage mapped to a file": pickled(
        call(
            stack_name(text("torch"), text("UntypedStorage.from_file")),
            text("canary"), b"\x88", b"K\x08",
        ), protocol=4,
    ),
    "a rebuilding function of another kind": pickled(
        call(
            name("torch._tensor", "_rebuild_from_type_v2"),
            OS_SYSTEM, name("torch", "Tensor"), COMMAND, NONE,
        )
    ),
    "a name that torch takes for a storage": pickled(
        stack_name(text("posix"), text("FloatStorage")), POP, RUN, protocol=4
    ),
}  # fmt: skip
_PLACES = {
    "in a popped mark": pickled(b"(", RUN, b"1", NONE),
    "in a tuple of one": pickled(RUN, b"\x85"),
    "in a tuple of two": pickled(NONE, RUN, b"\x86"),
    "in a tuple of three": pickled(RUN, NONE, NONE, b"\x87"),
    "in a list": pickled(b"(", RUN, b"l"),
    "in an appended item": pickled(b"]", RUN, b"a"),
    "among appended items": pickled(b"](", NONE, RUN, b"e"),
    "in a dictionary's value": pickled(b"(", text("weight"), RUN, b"d"),
    "under a key given twice": pickled(
        b"}(", text("weight"), RUN, text("weight"), NONE, b"u"
    ),
    "in a set": pickled(b"\x8f(", RUN, b"\x90", protocol=4),
    "in a frozen set": pickled(b"(", RUN, b"\x91", protocol=4),
    "in a dictionary's factory": pickled(
        call(name("collections", "defaultdict"), call(name("builtins", "getattr"), RUN, text("x")))
    ),
    "in a reference to a storage": pickled(RUN, b"Q"),
    "in a storage's place": pickled(
        arguments(text("storage"), text("FloatStorage"), text("0"), RUN, b"K\x03"), b"Q"
    ),
    "in a keyword": pickled(
        ORDERED, EMPTY_TUPLE, EMPTY_DICT, text("a"), RUN, SETITEM, b"\x92", protocol=4
    ),
    "in the arguments of what is let pass": pickled(call(name("builtins", "list"), RUN)),
    "in the state of what is let pass": pickled(ORDERED, EMPTY_TUPLE, b"R", RUN, b"b"),
    "doubled": pickled(RUN, b"2", POP),
    "twice": pickled(RUN, POP, RUN),
}  # fmt: skip
_NESTED = {
    "pickle.loads": pickled(call(name("pickle", "loads"), raw(EVIL))),
    "pickle._loads": pickled(call(name("pickle", "_loads"), raw(EVIL))),
    "cPickle of Python 2": pickled(call(name("cPickle", "loads"), raw(EVIL))),
    "three deep": pickled(
        call(
            name("_pickle", "loads"),
            raw(pickled(call(name("pickle", "loads"), raw(EVIL)))),
        )
    ),
    "an unpickler's method": pickled(
        call(
            call(name("operator", "methodcaller"), text("load")),
            call(name("pickle", "Unpickler"), call(name("io", "BytesIO"), raw(EVIL))),
        )
    ),
    "multiprocessing's loads": dotted(
        "multiprocessing.reduction", "ForkingPickler.loads", raw(EVIL)
    ),
}  # fmt: skip
_CHAINED: Samples = {
    "a second pickle after the weights": Sample(
        archive(GOOD + EVIL, NUMBERS), "follow its end", DAMAGED, "archive"
    ),
    "a second pickle after a line": Sample(
        archive(GOOD + b"N." + EVIL, NUMBERS), "follow its end", DAMAGED, "archive"
    ),
    "the weights as the second pickle": Sample(
        archive(EVIL + GOOD, NUMBERS), "posix.system", UNSAFE, "archive"
    ),
}
_EXTENSIONS: Samples = {
    f"an extension's code of {size} bytes": Sample(
        archive(pickled(code, arguments(*values), b"R")), "which torch never writes", UNSAFE,
        "extension registry",
    )
    for size, code, values in (
        (1, b"\x82\x7f", [text(TOUCH)]),
        (2, b"\x83\xff\x7f", [text(TOUCH)]),
        (4, b"\x84\xff\xff\xff\x7f", []),
    )
}  # fmt: skip
SAMPLES: Samples = {
    **in_archives({f"spelling: {what}": it for what, it in _SPELLINGS.items()}, ""),
    **in_archives({f"memo: {what}": it for what, it in _MEMO.items()}),
    **in_archives({f"frame: {what}": it for what, it in _FRAMES.items()}, "posix.system"),
    **in_archives({f"dotted: {what}": it for what, it in _DOTTED.items()}, "it refers to"),
    **in_archives({f"hidden {what}": it for what, it in _PLACES.items()}),
    **in_archives({f"nested: {what}": it for what, it in _NESTED.items()}, "it refers to"),
    **{
        f"through torch: {what}": Sample(archive(it), "it refers to", UNSAFE, "torch")
        for what, it in _IN_TORCH.items()
    },
    **{f"chained: {what}": sample for what, sample in _CHAINED.items()},
    **{f"registry: {what}": sample for what, sample in _EXTENSIONS.items()},
    # Files with code after good weights or before them.
    "after the weights": Sample(
        archive(GOOD[:-1] + RUN + POP + b".", NUMBERS), "posix.system", UNSAFE, "archive"
    ),
    "before the weights": Sample(
        archive(GOOD[:2] + THING + POP + GOOD[2:], NUMBERS), "canary_module", UNSAFE, "archive"
    ),
}
