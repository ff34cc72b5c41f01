"""A server of a small model with one fault, and the faults that it may have.

A fault is a function of the server, the request and the good answer; `once`, `resumed` and their
like say which requests it befalls.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import partial
from pathlib import Path

import torch

from devkit.fakefiles import honest
from devkit.loopback import Answer, Loopback, Request, ResetError
from sd_loader import stages
from sd_loader.settings import Settings
from tests.support.loader.loadercli import load_request
from tests.support.models.checkpoints import save_safetensors

BLOCK = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
PAGE = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body></body></html>"

Fault = Callable[["Server", Request, Answer], bytes | Iterable[bytes]]


def lora(seed: int = 0) -> dict[str, torch.Tensor]:
    """A small LoRA that differs by its seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{BLOCK}.alpha": torch.tensor(2.0),
        f"{BLOCK}.lora_down.weight": torch.rand(64, 768, generator=generator),
        f"{BLOCK}.lora_up.weight": torch.rand(640, 64, generator=generator),
    }


@dataclass
class Files:
    """The model in its two containers, another version of it, and what it becomes."""

    folder: Path
    content: bytes = b""
    other: bytes = b""
    archive: bytes = b""
    digests: dict[bytes, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.content = save_safetensors(self.folder / "one.safetensors", lora()).read_bytes()
        self.other = save_safetensors(self.folder / "two.safetensors", lora(1)).read_bytes()
        torch.save(lora(), self.folder / "one.ckpt")
        self.archive = (self.folder / "one.ckpt").read_bytes()

    def digest(self, content: bytes) -> str:
        """Digest of the folder that this becomes."""
        if content not in self.digests:
            path, store = self.folder / "local.safetensors", self.folder / f"{len(self.digests)}"
            path.write_bytes(content)
            store.mkdir()
            request = load_request(str(path), model_type="lora")
            result = stages.load(request, store, Settings(), lambda _: None)
            assert result.artifact is not None
            self.digests[content] = result.artifact.digest
        return self.digests[content]


@dataclass
class Server:
    """A server of one file, with one fault."""

    files: Files
    fault: Fault
    content: bytes
    version: dict[str, str] | None = None

    def __enter__(self) -> Server:
        self.wire = Loopback(self._respond)
        self.wire.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.stop()

    def _respond(self, asked: Request) -> bytes | Iterable[bytes]:
        return self.fault(self, asked, self.good(asked))

    def good(self, asked: Request, content: bytes | None = None) -> Answer:
        """Return the answer of a good server, which closes the connection."""
        version = {"ETag": '"1"'} if self.version is None else self.version
        good = honest(asked, self.content if content is None else content, version)
        return good.but(Date=formatdate(usegmt=True), Connection="close")


def _start(asked: Request) -> int:
    """Return the first byte that a request asks for."""
    return int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


def once(fault: Fault, *, after: int = 1, times: int = 1) -> Fault:
    """Wrong from the request of this number on, so many times."""

    def respond(server: Server, asked: Request, good: Answer) -> bytes | Iterable[bytes]:
        wrong = after <= asked.number < after + times
        return fault(server, asked, good) if wrong else good.whole()

    return respond


def always(fault: Fault) -> Fault:
    """Wrong from the second request on: the first one tells what the file is."""
    return once(fault, times=1000)


def from_the_first(fault: Fault) -> Fault:
    """Wrong whatever is asked."""
    return once(fault, after=0, times=1000)


def cut(at: int, _server: Server, _asked: Request, good: Answer) -> bytes:
    """The connection ends after so many bytes of the answer; negative: before its end."""
    return good.whole()[:at]


def cut_body(at: int, _server: Server, _asked: Request, good: Answer) -> bytes:
    """It ends after so many bytes of the body."""
    return good.head() + good.body[:at]


def reset(at: int, _server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """The connection is reset after so many bytes of the answer."""
    yield good.whole()[:at]
    raise ResetError


def answer(change: Callable[[Request, Answer], Answer]) -> Fault:
    """Another answer than the good one."""
    return lambda _server, asked, good: change(asked, good).whole()


def begins(by: int) -> Fault:
    """Content-Range begins elsewhere, and so does the body."""

    def respond(server: Server, asked: Request, _good: Answer) -> bytes:
        start = max(0, _start(asked) + by)
        moved = replace(asked, headers={"range": f"bytes={start}-"})
        return server.good(moved).whole()

    return respond


def other_version(headers: dict[str, str]) -> Fault:
    """If-Range is ignored: the range is that of another version."""

    def respond(server: Server, asked: Request, _good: Answer) -> bytes:
        unconditional = {"range": asked.headers["range"]} if "range" in asked.headers else {}
        request = replace(asked, headers=unconditional)
        return server.good(request, server.files.other).but(**headers).whole()

    return respond


def replaced(server: Server, asked: Request, _good: Answer) -> bytes:
    """Another version from here on, and ranges of the old one are not had any more."""
    server.content, server.version = server.files.other, {"ETag": '"2"'}
    return server.good(asked).whole()


def new_tag(server: Server, asked: Request, _good: Answer) -> bytes:
    """Every answer has another ETag, as from servers that each make their own."""
    server.version = {"ETag": f'"{asked.number}"'}
    return server.good(asked).whole()


def drip(head: bool, server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """A byte now and then, of the head or of the body."""
    content = good.whole()
    begin = 12 if head else len(good.head()) + 100
    yield content[:begin]
    for position in range(begin, len(content)):
        yield content[position : position + 1]
        server.wire.pause(0.1)


def silence(server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """Nothing more comes, and the connection stays."""
    yield good.head()
    server.wire.pause(30)


def endless(_server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """A body in chunks that never ends, whatever the headers state."""
    yield good.but(Content_Length="", Transfer_Encoding="chunked").head()
    body = good.body or b"x"
    while True:
        yield b"%x\r\n%b\r\n" % (len(body), body)


def interim(_server: Server, _asked: Request, _good: Answer) -> Iterable[bytes]:
    """One interim answer after another."""
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000


def many_headers(_server: Server, _asked: Request, _good: Answer) -> Iterable[bytes]:
    """A head that never ends."""
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-More: and more\r\n" * 1000


def chain(length: int) -> Fault:
    """So many redirects, and then the file."""

    def respond(_server: Server, asked: Request, good: Answer) -> bytes:
        step = int(asked.path.rpartition("-")[2]) if "-" in asked.path else 0
        if step == length:
            return good.whole()
        return redirect(f"/hop-{step + 1}").whole()

    return respond


def redirect(to: str) -> Answer:
    """A redirect."""
    headers = {"Location": to, "Content-Length": "0", "Connection": "close"}
    return Answer("302 Found", headers, b"")


def closed_by(status: str, **headers: str) -> Fault:
    """Another status, with nothing in the body."""
    return answer(lambda _, good: good.but(b"", status, Content_Length="0", **headers))


def close_delimited(at: int | None, server: Server, asked: Request, _good: Answer) -> bytes:
    """The whole file without its length, which ends where the connection does."""
    whole = server.good(replace(asked, headers={}))
    return whole.but(whole.body[:at], Content_Length="").whole()


def resumed(fault: Fault, *, times: int = 1000) -> Fault:
    """The download is cut off; the answers to what is asked for then are wrong."""

    def respond(server: Server, asked: Request, good: Answer) -> bytes | Iterable[bytes]:
        first = once(partial(cut_body, 50_000)) if asked.number < 2 else None
        return (first or once(fault, after=2, times=times))(server, asked, good)

    return respond


def total(by: int) -> Fault:
    """Content-Range states another size of the file."""

    def change(_: Request, good: Answer) -> Answer:
        place, _, size = good.headers.get("Content-Range", "bytes 0-0/0").partition("/")
        return good.but(Content_Range=f"{place}/{int(size) + by}")

    return answer(change)


def length(by: float) -> Fault:
    """Content-Length is not that of the body."""
    return answer(lambda _, good: good.but(Content_Length=str(int(len(good.body) * by))))


def zipped(header: str) -> Fault:
    """What nobody asked for: the body compressed."""

    def change(_: Request, good: Answer) -> Answer:
        body = gzip.compress(good.body)
        return good.but(body, Content_Length=str(len(body)), **{header: "gzip"})

    return answer(change)


def page(_: Server, _asked: Request, good: Answer) -> bytes:
    """A login page in place of the file."""
    headers = {"Content-Range": "", "ETag": "", "Content-Length": str(len(PAGE))}
    return good.but(PAGE, "200 OK").but(**headers).whole()


empty_range = answer(lambda _, good: good.but(b"", Content_Length="0"))
ten_bytes = answer(lambda _, good: good.but(good.body[:10], Content_Length="10"))
no_range = answer(lambda _, good: good.but(Content_Range=""))


def flip(at: int, _server: Server, asked: Request, good: Answer) -> bytes:
    """One bit of the file is another, in every answer that has it."""
    start = _start(asked)
    body = bytearray(good.body)
    if 0 <= at - start < len(body):
        body[at - start] ^= 1
    return good.but(bytes(body)).whole()
