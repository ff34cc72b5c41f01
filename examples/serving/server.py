"""An inference server for one published model: diffusers behind OpenAI's images API.

It needs diffusers and torch only, so it runs in the loader's image. It makes one image at a time.

    python3 server.py /models/sd15 --port 8000
    curl -d '{"prompt": "a lighthouse at dusk"}' http://127.0.0.1:8000/v1/images/generations

/readyz answers 200 once the model is open. /livez answers 503 when a reload has published another
version: Kubernetes then restarts the container, which opens the new one.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image

MAX_BODY = 64 << 10
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Model:
    """A pipeline and the folder that it was opened from."""

    def __init__(self, link: str, device: str, dtype: torch.dtype) -> None:
        self.link = link
        # A reload moves the link, so it is resolved once: all files come from one version.
        self.folder = os.path.realpath(link)
        self.pipe = AutoPipelineForText2Image.from_pretrained(self.folder, torch_dtype=dtype)
        self.pipe.to(device)
        self.device = device
        self._lock = threading.Lock()

    def is_current(self) -> bool:
        """Return whether the link still leads to the opened folder."""
        return os.path.realpath(self.link) == self.folder

    def paint(self, prompt: str, *, seed: int | None = None, **options: Any) -> list[bytes]:
        """Return PNG images. Requests wait for each other."""
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        with self._lock:
            images = self.pipe(prompt, generator=generator, **options).images
        return [_png(image) for image in images]


def _png(image: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, format="PNG")
    return data.getvalue()


def options_of(body: bytes) -> dict[str, Any]:
    """Read a request of the images API; raise ValueError with the cause."""
    request = json.loads(body)
    if not isinstance(request, dict) or not isinstance(request.get("prompt"), str):
        raise ValueError("prompt: must be a text")
    options = {
        "prompt": request["prompt"],
        "num_images_per_prompt": _number(request, "n", 1, 4) or 1,
        "num_inference_steps": _number(request, "num_inference_steps", 1, 100),
        "seed": _number(request, "seed", 0, 2**63 - 1),
    }
    if request.get("size") is not None:
        width, _, height = str(request["size"]).partition("x")
        sides = {"width": width, "height": height}
        for name, side in sides.items():
            if not side.isdecimal() or int(side) % 8 or not 64 <= int(side) <= 2048:
                raise ValueError("size: must be WIDTHxHEIGHT, multiples of 8 from 64 to 2048")
            options[name] = int(side)
    return {name: value for name, value in options.items() if value is not None}


def _number(request: dict[str, Any], name: str, low: int, high: int) -> int | None:
    value = request.get(name)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ValueError(f"{name}: must be a whole number from {low} to {high}")
    return value


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    model: Model
    timeout = 30

    def do_GET(self) -> None:
        """Answer the probes."""
        if self.path == "/readyz" or (self.path == "/livez" and self.model.is_current()):
            self._answer(200, {"folder": self.model.folder})
        elif self.path == "/livez":
            self._answer(503, {"error": f"{self.model.link} leads to another version now"})
        else:
            self._answer(404, {"error": "use POST /v1/images/generations"})

    def do_POST(self) -> None:
        """Make images."""
        if self.path != "/v1/images/generations":
            self._answer(404, {"error": "use POST /v1/images/generations"})
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MAX_BODY:
            self._answer(413, {"error": f"the body must have a length of at most {MAX_BODY} bytes"})
            return
        try:
            options = options_of(self.rfile.read(int(size)))
        except ValueError as error:
            self._answer(400, {"error": str(error)})
            return
        images = self.model.paint(**options)
        data = [{"b64_json": base64.b64encode(image).decode()} for image in images]
        self._answer(200, {"created": int(time.time()), "data": data})

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Open the model, then serve it until the process is stopped."""
    parser = argparse.ArgumentParser(description="Serve a published model.")
    parser.add_argument("model", help="path of the model's link, such as /models/sd15")
    parser.add_argument("--host", default="127.0.0.1", help="in a container: 0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", choices=DTYPES, help="fp16 on a GPU, else fp32")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES[args.dtype or ("fp16" if device == "cuda" else "fp32")]
    Handler.model = Model(args.model, device, dtype)
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    print(f"serving {Handler.model.folder} on port {server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
