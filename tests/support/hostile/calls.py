"""Pickles that call functions which run code or write files, as known attacks do.

Most pickle scanners use a list of bad names. Each name here is missing from the list of some
scanner. `pickles.SAMPLES` has the usual names.
"""

from __future__ import annotations

import marshal

from tests.support.hostile.pickles import (
    CANARY_MODULE,
    CODE,
    IMPORT_OS,
    LIST,
    NONE,
    OS_SYSTEM,
    SHELL,
    TOUCH,
    arguments,
    call,
    name,
    pickled,
    text,
)
from tests.support.hostile.pickles import SAMPLES as USUAL
from tests.support.hostile.samples import Samples, in_archives

CANARY = text("canary")
ITSELF = text("model.ckpt")
WRITE = text("w")


def _dictionary(**items: bytes) -> bytes:
    entries = b"".join(text(key) + value for key, value in items.items())
    return b"}(" + entries + b"u"


def _listed(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def _raw(content: bytes) -> bytes:
    return b"B" + len(content).to_bytes(4, "little") + content


def _method(value: bytes, attribute: str) -> bytes:
    """Push a method of a value."""
    return call(name("builtins", "getattr"), value, text(attribute))


def _after(path: str, *steps: str) -> bytes:
    """Push the result of calling these methods on a Path, one after the other."""
    value = call(name("pathlib", "Path"), text(path))
    for step in steps:
        value = call(_method(value, step))
    return value


_CODE_OBJECT = call(name("marshal", "loads"), _raw(marshal.dumps(compile(CODE, "x", "exec"))))
_GLOBALS = call(name("builtins", "dict"))
_SPEC = call(
    name("importlib.util", "spec_from_file_location"), text("x"), text(f"{CANARY_MODULE}.py")
)

_RUN_COMMANDS = {
    "os.execv": call(name("os", "execv"), text("/bin/sh"), SHELL),
    "os.spawnv": call(name("os", "spawnv"), b"K\0", text("/bin/sh"), SHELL),
    "os.spawnlp": call(
        name("os", "spawnlp"), b"K\0", text("sh"), text("sh"), text("-c"), text(TOUCH)
    ),
    "subprocess.getoutput": call(name("subprocess", "getoutput"), text(TOUCH)),
    "commands of Python 2": call(name("commands", "getoutput"), text(TOUCH)),
    "subprocess.Popen": call(name("subprocess", "Popen"), SHELL),
    "subprocess.run": call(name("subprocess", "run"), SHELL),
    "_osx_support": call(name("_osx_support", "_read_output"), text(TOUCH)),
    "subprocess.check_output": call(name("subprocess", "check_output"), SHELL),
    "uuid": call(name("uuid", "_get_command_stdout"), text("touch"), CANARY),
    "imaplib": call(name("imaplib", "IMAP4_stream"), text(TOUCH)),
    "pydoc.pipepager": call(name("pydoc", "pipepager"), text("x"), text(TOUCH)),
    "distutils by setuptools": call(
        name("setuptools._distutils.spawn", "spawn"), _listed(text("touch"), CANARY)
    ),
    "test.support": call(
        name("test.support.script_helper", "assert_python_ok"), text("-c"), text(CODE)
    ),
    "multiprocessing": call(
        _method(
            call(
                name("multiprocessing.context", "ForkProcess"), NONE, OS_SYSTEM, NONE,
                arguments(text(TOUCH)),
            ),
            "start",
        )
    ),
    "a thread": call(
        _method(call(name("threading", "Timer"), b"K\0", OS_SYSTEM, _listed(text(TOUCH))), "start")
    ),
    "a pool of threads": call(
        _method(call(name("concurrent.futures", "ThreadPoolExecutor")), "submit"),
        OS_SYSTEM,
        text(TOUCH),
    ),
    "at exit": call(name("atexit", "register"), OS_SYSTEM, text(TOUCH)),
    "when it is collected": call(
        name("weakref", "finalize"), OS_SYSTEM, OS_SYSTEM, text(TOUCH)
    ),
    "ctypes": call(_method(call(name("ctypes", "CDLL"), NONE), "system"), _raw(TOUCH.encode())),
}  # fmt: skip
_RUN_CODE = {
    "code.InteractiveInterpreter": call(
        _method(call(name("code", "InteractiveInterpreter")), "runsource"), text(CODE)
    ),
    "compiled and executed": call(
        name("builtins", "exec"),
        call(name("builtins", "compile"), text(CODE), text("x"), text("exec")),
    ),
    "marshal": call(name("builtins", "exec"), _CODE_OBJECT),
    "a function made of bytecode": call(
        call(name("types", "FunctionType"), _CODE_OBJECT, _dictionary(open=name("io", "open")))
    ),
    "runpy._run_code": call(name("runpy", "_run_code"), _CODE_OBJECT, _GLOBALS),
    "runpy.run_path": call(name("runpy", "run_path"), text(f"{CANARY_MODULE}.py")),
    "pdb": call(_method(call(name("bdb", "Bdb")), "run"), text(CODE)),
    "profile": call(name("profile", "run"), text(CODE)),
    "trace": call(
        _method(call(name("trace", "Trace"), b"K\0", b"K\0"), "run"), text(CODE)
    ),
    "doctest": call(name("doctest", "debug_src"), text(f">>> {CODE}"), b"\x88"),
    "timeit.timeit": call(
        name("timeit", "timeit"), text(CODE), text("pass"), name("time", "time"), b"K\x01"
    ),
    "numpy's test helper": call(
        name("numpy.testing._private.utils", "runstring"), text(CODE), _GLOBALS
    ),
    "numpy's Fortran reader": call(
        name("numpy.f2py.crackfortran", "myeval"), text(CODE), _GLOBALS, _GLOBALS
    ),
    "typing.ForwardRef": call(
        name("typing", "_eval_type"),
        call(name("typing", "ForwardRef"), text("open('canary', 'w') and int")),
        _dictionary(open=name("io", "open"), int=name("builtins", "int")),
        _GLOBALS,
    ),
    "logging.config": call(
        name("logging.config", "dictConfig"),
        _dictionary(
            version=b"K\x01",
            formatters=_dictionary(x=b"}(" + text("()") + text(f"{CANARY_MODULE}.anything") + b"u"),
        ),
    ),
    "pydoc.locate": call(name("pydoc", "locate"), text(f"{CANARY_MODULE}.Thing")),
    "pkgutil": call(name("pkgutil", "resolve_name"), text(f"{CANARY_MODULE}:Thing")),
    "a module from a file": call(
        _method(
            call(
                name("importlib.machinery", "SourceFileLoader"), text("x"),
                text(f"{CANARY_MODULE}.py"),
            ),
            "load_module",
        )
    ),
    "a module's spec": call(
        _method(_method(_SPEC, "loader"), "exec_module"),
        call(name("importlib.util", "module_from_spec"), _SPEC),
    ),
}  # fmt: skip
_COMBINE = {
    "functools.reduce": call(
        call(name("functools", "reduce"), name("builtins", "getattr"),
             arguments(IMPORT_OS, text("system"))),
        text(TOUCH),
    ),
    "itertools.starmap": call(
        LIST, call(name("itertools", "starmap"), OS_SYSTEM, arguments(arguments(text(TOUCH))))
    ),
    "filter": call(LIST, call(name("builtins", "filter"), OS_SYSTEM, arguments(text(TOUCH)))),
    "imap of Python 2": call(
        LIST, call(name("itertools", "imap"), OS_SYSTEM, arguments(text(TOUCH)))
    ),
    "a method by name": call(
        call(name("operator", "methodcaller"), text("submit"), OS_SYSTEM, text(TOUCH)),
        call(name("concurrent.futures", "ThreadPoolExecutor")),
    ),
    "operator.call": call(name("operator", "call"), OS_SYSTEM, text(TOUCH)),
    "operator.itemgetter": call(
        call(
            call(name("operator", "itemgetter"), text("exec")),
            call(name("builtins", "vars"), call(name("builtins", "__import__"), text("builtins"))),
        ),
        text(CODE),
    ),
    "a default factory": call(
        _method(
            call(
                name("collections", "defaultdict"),
                call(name("functools", "partial"), OS_SYSTEM, text(TOUCH)),
            ),
            "__missing__",
        ),
        NONE,
    ),
}  # fmt: skip
_WRITE_FILES = {
    "pathlib": call(_method(call(name("pathlib", "Path"), CANARY), "touch")),
    "os.mknod": call(name("os", "mknod"), CANARY),
    "os.open": call(name("os", "open"), CANARY, b"K\x41"),
    "os.symlink": call(name("os", "symlink"), ITSELF, CANARY),
    "os.link": call(name("os", "link"), ITSELF, CANARY),
    "os.mkdir": call(name("os", "mkdir"), CANARY),
    "shutil": call(name("shutil", "copyfile"), ITSELF, CANARY),
    "urllib": call(
        name("urllib.request", "urlretrieve"), text("file:///proc/self/cwd/model.ckpt"), CANARY
    ),
    "codecs.open": call(name("codecs", "open"), CANARY, WRITE),
    "io.FileIO": call(name("_io", "FileIO"), CANARY, WRITE),
    "gzip": call(name("gzip", "GzipFile"), CANARY, WRITE),
    "zipfile": call(name("zipfile", "ZipFile"), CANARY, WRITE),
    "tarfile": call(name("tarfile", "open"), CANARY, WRITE),
    "logging": call(name("logging", "FileHandler"), CANARY),
    "sqlite3": call(name("sqlite3", "connect"), CANARY),
    "py_compile": call(name("py_compile", "compile"), text(f"{CANARY_MODULE}.py"), CANARY),
    "numpy.memmap": call(
        name("numpy", "memmap"), CANARY, text("uint8"), text("w+"), b"K\0", b"K\x08"
    ),
    "numpy.savetxt": call(name("numpy", "savetxt"), CANARY, _listed(b"K\1")),
}

PICKLES = {
    f"calls {what}": pickled(content)
    for group in (_RUN_COMMANDS, _RUN_CODE, _COMBINE, _WRITE_FILES)
    for what, content in group.items()
}
SAMPLES: Samples = in_archives({**USUAL, **PICKLES})
