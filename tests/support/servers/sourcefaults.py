"""A server of a small model with one fault, and the faults to choose from.

A fault is a function of the server, the request and the correct response. Functions such as `once`
and `resumed` limit a fault to some requests.
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
    """Return a small LoRA that depends on the seed."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{BLOCK}.alpha": torch.tensor(2.0),
        f"{BLOCK}.lora_down.weight": torch.rand(64, 768, generator=generator),
        f"{BLOCK}.lora_up.weight": torch.rand(640, 64, generator=generator),
    }


@dataclass
class Files:
    """The model in two file formats, another version of it, and the digests of their loads."""

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
        """Return the digest of the folder that the loader makes from this content."""
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
    """A server of one file with one fault."""

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
        """Return a correct response that closes the connection."""
        version = {"ETag": '"1"'} if self.version is None else self.version
        good = honest(asked, self.content if content is None else content, version)
        return good.but(Date=formatdate(usegmt=True), Connection="close")


def _start(asked: Request) -> int:
    """Return the offset at which the requested range starts."""
    return int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


def once(fault: Fault, *, after: int = 1, times: int = 1) -> Fault:
    """Return a fault that disturbs `times` requests, starting with the request number `after`."""

    def respond(server: Server, asked: Request, good: Answer) -> bytes | Iterable[bytes]:
        wrong = after <= asked.number < after + times
        return fault(server, asked, good) if wrong else good.whole()

    return respond


def always(fault: Fault) -> Fault:
    """Return a fault of all requests but the first, with which the loader identifies the file."""
    return once(fault, times=1000)


def from_the_first(fault: Fault) -> Fault:
    """Return a fault of all requests."""
    return once(fault, after=0, times=1000)


def cut(at: int, _server: Server, _asked: Request, good: Answer) -> bytes:
    """Close the connection after `at` bytes of the response, counted from its end if negative."""
    return good.whole()[:at]


def cut_body(at: int, _server: Server, _asked: Request, good: Answer) -> bytes:
    """Close the connection after `at` bytes of the body."""
    return good.head() + good.body[:at]


def reset(at: int, _server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """Reset the connection after `at` bytes of the response."""
    yield good.whole()[:at]
    raise ResetError


def answer(change: Callable[[Request, Answer], Answer]) -> Fault:
    """Return a fault that changes the correct response."""
    return lambda _server, asked, good: change(asked, good).whole()


def begins(by: int) -> Fault:
    """Return a fault that shifts the start of the range and of Content-Range."""

    def respond(server: Server, asked: Request, _good: Answer) -> bytes:
        start = max(0, _start(asked) + by)
        moved = replace(asked, headers={"range": f"bytes={start}-"})
        return server.good(moved).whole()

    return respond


def other_version(headers: dict[str, str]) -> Fault:
    """Return a fault that ignores If-Range and serves the range of another version."""

    def respond(server: Server, asked: Request, _good: Answer) -> bytes:
        unconditional = {"range": asked.headers["range"]} if "range" in asked.headers else {}
        request = replace(asked, headers=unconditional)
        return server.good(request, server.files.other).but(**headers).whole()

    return respond


def replaced(server: Server, asked: Request, _good: Answer) -> bytes:
    """Serve another version from this request on, and ignore ranges of the old one."""
    server.content, server.version = server.files.other, {"ETag": '"2"'}
    return server.good(asked).whole()


def new_tag(server: Server, asked: Request, _good: Answer) -> bytes:
    """Give each response another ETag, as unsynchronized servers do."""
    server.version = {"ETag": f'"{asked.number}"'}
    return server.good(asked).whole()


def drip(head: bool, server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """Send the rest of the head or of the body one byte at a time, with pauses."""
    content = good.whole()
    begin = 12 if head else len(good.head()) + 100
    yield content[:begin]
    for position in range(begin, len(content)):
        yield content[position : position + 1]
        server.wire.pause(0.1)


def silence(server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """Send the head and then nothing, with the connection left open."""
    yield good.head()
    server.wire.pause(30)


def endless(_server: Server, _asked: Request, good: Answer) -> Iterable[bytes]:
    """Send a chunked body that never ends, whatever the headers state."""
    yield good.but(Content_Length="", Transfer_Encoding="chunked").head()
    body = good.body or b"x"
    while True:
        yield b"%x\r\n%b\r\n" % (len(body), body)


def interim(_server: Server, _asked: Request, _good: Answer) -> Iterable[bytes]:
    """Send interim responses without end."""
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 1000


def many_headers(_server: Server, _asked: Request, _good: Answer) -> Iterable[bytes]:
    """Send a head that never ends."""
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-More: and more\r\n" * 1000


def chain(length: int) -> Fault:
    """Return a fault that redirects `length` times before it serves the file."""

    def respond(_server: Server, asked: Request, good: Answer) -> bytes:
        step = int(asked.path.rpartition("-")[2]) if "-" in asked.path else 0
        if step == length:
            return good.whole()
        return redirect(f"/hop-{step + 1}").whole()

    return respond


def redirect(to: str) -> Answer:
    """Return a redirect."""
    headers = {"Location": to, "Content-Length": "0", "Connection": "close"}
    return Answer("302 Found", b"", headers)


def closed_by(status: str, **headers: str) -> Fault:
    """Return a fault that answers with another status and an empty body."""
    return answer(lambda _, good: good.but(b"", status, Content_Length="0", **headers))


def close_delimited(at: int | None, server: Server, asked: Request, _good: Answer) -> bytes:
    """Send the file, or its first `at` bytes, without a length: the closed connection ends it."""
    whole = server.good(replace(asked, headers={}))
    return whole.but(whole.body[:at], Content_Length="").whole()


def resumed(fault: Fault, *, times: int = 1000) -> Fault:
    """Return a fault of the requests that resume a download, which is cut off first."""

    def respond(server: Server, asked: Request, good: Answer) -> bytes | Iterable[bytes]:
        first = once(partial(cut_body, 50_000)) if asked.number < 2 else None
        return (first or once(fault, after=2, times=times))(server, asked, good)

    return respond


def total(by: int) -> Fault:
    """Return a fault that states another file size in Content-Range."""

    def change(_: Request, good: Answer) -> Answer:
        place, _, size = good.headers.get("Content-Range", "bytes 0-0/0").partition("/")
        return good.but(Content_Range=f"{place}/{int(size) + by}")

    return answer(change)


def length(by: float) -> Fault:
    """Return a fault that states a Content-Length other than the body's length."""
    return answer(lambda _, good: good.but(Content_Length=str(int(len(good.body) * by))))


def zipped(header: str) -> Fault:
    """Return a fault that compresses the body although the client did not ask for it."""

    def change(_: Request, good: Answer) -> Answer:
        body = gzip.compress(good.body)
        return good.but(body, Content_Length=str(len(body)), **{header: "gzip"})

    return answer(change)


def page(_: Server, _asked: Request, good: Answer) -> bytes:
    """Send a login page instead of the file."""
    headers = {"Content-Range": "", "ETag": "", "Content-Length": str(len(PAGE))}
    return good.but(PAGE, "200 OK").but(**headers).whole()


empty_range = answer(lambda _, good: good.but(b"", Content_Length="0"))
ten_bytes = answer(lambda _, good: good.but(good.body[:10], Content_Length="10"))
no_range = answer(lambda _, good: good.but(Content_Range=""))


def flip(at: int, _server: Server, asked: Request, good: Answer) -> bytes:
    """Flip one bit of the file in every response that contains it."""
    start = _start(asked)
    body = bytearray(good.body)
    if 0 <= at - start < len(body):
        body[at - start] ^= 1
    return good.but(bytes(body)).whole()
