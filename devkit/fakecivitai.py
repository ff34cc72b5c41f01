"""A Civitai on loopback: the public REST API, downloads and pages; it also serves plain links.

For example:

    with FakeCivitai() as civitai:
        civitai.add(Model(7, "LORA", [Version(70, [File(700, path)])]))
        answer = json.load(urlopen(f"{civitai.url}/api/v1/model-versions/70"))
        assert answer["files"][0]["hashes"]["SHA256"] == sha256(path).upper()

The answers imitate these sources:

- a version, its files, hashes and images, and what an archived or taken down model lacks:
  github.com/civitai/civitai, src/pages/api/v1/model-versions/[id].ts; values of a real answer:
  github.com/civitai/civitai-developer-docs, site/reference/model-versions.md
- a model with its versions, creator and permissions: src/pages/api/v1/models/[id].ts, and
  site/reference/models.md; `allowCommercialUse` is text in braces in one and a list in the other
- download links with `fileId`, and those of a VAE that is listed with its checkpoint:
  createModelFileDownloadUrl in src/server/common/model-helpers.ts, and models/[id].ts
- the choice by type, format, size and fp, and every refusal of a download:
  src/pages/api/download/models/[modelVersionId].ts
- the file that a link without a choice means: getPrimaryFile in src/server/utils/model-helpers.ts
- errors: site/guide/errors.md; AIR: site/guide/air.md; types: site/reference/enums.md
- `paidAccess`, which replaces `earlyAccessEndsAt`:
  github.com/eduardoabreu81/sd-civitai-browser-neo

This module needs only the standard library, because the demo uses it too.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from devkit.fakefiles import Faults, FileServer, json_answer
from devkit.fakehub import sha256
from devkit.loopback import Answer, Request

_TIME = "2025-12-18T09:16:12.062Z"
_CHOICES = ("type", "format", "size", "fp")


@dataclass(frozen=True)
class File:
    """A file of a version."""

    file_id: int
    path: Path
    name: str = "tiny.safetensors"
    type: str = "Model"
    format: str | None = "SafeTensor"
    size: str | None = "pruned"
    fp: str | None = "fp16"
    sha256: str | None = None
    """The SHA-256 that the API states. None: the file's own. Empty: the API states none."""
    faults: Faults = field(default_factory=Faults)

    def metadata(self) -> dict[str, str | None]:
        """Return the properties of the file's content that the API states."""
        return {"format": self.format, "size": self.size, "fp": self.fp}


@dataclass(frozen=True)
class Version:
    """A version of a model."""

    version_id: int
    files: Sequence[File] = ()
    name: str = "v1.0"
    base_model: str = "SD 1.5"
    trained_words: Sequence[str] = ()
    images: Sequence[Mapping[str, Any]] = ()
    status: str = "Published"
    usage_control: str = "Download"
    early_access_ends: str | None = None
    needs_login: bool = False
    nsfw_level: int = 1
    more: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the API's answer that replace or extend the usual ones."""

    def primary(self) -> File | None:
        """Return the file that a link without a choice means."""
        wanted = {"format": "SafeTensor", "size": "pruned", "fp": "fp16"}
        weights = {"format": 100, "size": 10, "fp": 1}

        def score(file: File) -> int:
            points = sum(
                weights[key] * (1 if value == wanted[key] else -1)
                for key, value in file.metadata().items()
                if value is not None
            )
            return points + (1000 if file.type in {"Model", "Pruned Model"} else 0)

        return max(self.files, key=score, default=None)


@dataclass(frozen=True)
class Model:
    """A model, with its newest version first."""

    model_id: int
    type: str
    versions: Sequence[Version]
    name: str = "Tiny model"
    mode: str | None = None
    """Archived or TakenDown. None: the model is neither."""
    creator: str | None = "someone"
    commercial_use: Any = ("Image", "RentCivit")
    more: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the API's answer that replace or extend the usual ones."""


class FakeCivitai(FileServer):
    """Serves models and links until its context ends."""

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(address=address, port=port)
        self.models: dict[int, Model] = {}
        self.token = ""
        """The token of the account that may download what needs a login."""
        self.api_faults = Faults()
        """The faults of all paths below /api/v1."""
        self.cdn_host = self.add_origin()
        """The host and port of the files, to which download links redirect."""

    def add(self, model: Model) -> Model:
        """Serve a model; a second one with the same id replaces the first."""
        self.models[model.model_id] = model
        return model

    def asked(self) -> list[str]:
        """Return the paths and queries of all requests to the API, in order."""
        return [request.target for request in self.requests if request.path.startswith("/api/v1/")]

    def other(self, request: Request) -> Answer:
        """Answer a request for the API, a download, a file or a page."""
        kind, _, rest = request.path.strip("/").rpartition("/")
        match kind:
            case "api/v1/models" | "api/v1/model-versions":
                failed = self.failure(request, "api", self.api_faults)
                return failed or self._api(kind.removeprefix("api/v1/"), rest)
            case "api/download/models":
                return self._download(request, rest)
            case "cdn":
                return self._file(request, rest)
        if request.path.startswith("/models/"):
            return Answer(200, b"<!DOCTYPE html><title>Tiny</title>", {"Content-Type": "text/html"})
        return super().other(request)

    def _api(self, kind: str, rest: str) -> Answer:
        if kind == "models":
            model = self.models.get(int(rest)) if rest.isdecimal() else None
            if model is None:
                return json_answer(404, {"error": f"No model with id {rest}"})
            return json_answer(200, self._model(model))
        for model, version in self._versions():
            if str(version.version_id) == rest and version.status == "Published":
                return json_answer(200, self._version(model, version))
        return json_answer(404, {"error": "Model not found"})

    def _versions(self) -> list[tuple[Model, Version]]:
        return [(model, version) for model in self.models.values() for version in model.versions]

    def _model(self, model: Model) -> dict[str, Any]:
        answer = {
            "id": model.model_id,
            "name": model.name,
            "description": "<p>A <b>tiny</b> model.</p>",
            "type": model.type,
            "nsfw": False,
            "nsfwLevel": 31,
            "availability": "Public",
            "allowNoCredit": True,
            "allowCommercialUse": model.commercial_use,
            "allowDerivatives": True,
            "allowDifferentLicense": False,
            "stats": {"downloadCount": 3, "thumbsUpCount": 1},
            "tags": ["base model"],
            "modelVersions": [
                self._version(model, version)
                for version in model.versions
                if version.status == "Published"
            ],
        }
        if model.mode is not None:
            answer["mode"] = model.mode
        if model.creator is not None:
            answer["creator"] = {"username": model.creator, "image": None}
        return {**answer, **model.more}

    def _version(self, model: Model, version: Version) -> dict[str, Any]:
        offers_files = model.mode != "Archived"
        about: dict[str, Any] = {"name": model.name, "type": model.type, "nsfw": False}
        if model.mode is not None:
            about["mode"] = model.mode
        answer = {
            "id": version.version_id,
            "modelId": model.model_id,
            "name": version.name,
            "description": None,
            "baseModel": version.base_model,
            "baseModelType": "Standard",
            "air": f"urn:air:sd1:checkpoint:civitai:{model.model_id}@{version.version_id}",
            "status": version.status,
            "availability": "Public",
            "nsfwLevel": version.nsfw_level,
            "createdAt": _TIME,
            "publishedAt": _TIME,
            "usageControl": version.usage_control,
            "trainedWords": list(version.trained_words),
            "earlyAccessEndsAt": version.early_access_ends,
            "stats": {"downloadCount": 3, "thumbsUpCount": 1},
            "model": about,
            "files": [self._listed(version, file) for file in version.files if offers_files],
            "images": [] if model.mode == "TakenDown" else list(version.images),
        }
        if offers_files:
            answer["downloadUrl"] = f"{self.url}/api/download/models/{version.version_id}"
        return {**answer, **version.more}

    def _listed(self, version: Version, file: File) -> dict[str, Any]:
        digest = _stated(file)
        link = f"{self.url}/api/download/models/{version.version_id}?fileId={file.file_id}"
        return {
            "id": file.file_id,
            "sizeKB": file.path.stat().st_size / 1024,
            "name": file.name,
            "type": file.type,
            "pickleScanResult": "Success",
            "virusScanResult": "Success",
            "scannedAt": _TIME,
            "metadata": file.metadata(),
            "hashes": {
                "AutoV2": digest[:10],
                "SHA256": digest,
                "CRC32": f"{zlib.crc32(digest.encode()):08X}",
            }
            if digest
            else {},
            "primary": file is version.primary(),
            "downloadUrl": link,
        }

    def _download(self, request: Request, rest: str) -> Answer:
        pairs = [pair for pair in self._versions() if str(pair[1].version_id) == rest]
        asked = {key: values[0] for key, values in parse_qs(request.query).items()}
        if not pairs or pairs[0][1].status != "Published":
            return json_answer(404, {"error": "Model not found"})
        model, version = pairs[0]
        if model.mode == "Archived":
            return json_answer(410, {"error": "Model archived, not available for download"})
        has_token = bool(self.token) and (
            request.headers.get("authorization") == f"Bearer {self.token}"
            or asked.get("token") == self.token
        )
        if version.early_access_ends is not None and not has_token:
            return json_answer(
                403,
                {
                    "error": "Early Access",
                    "deadline": version.early_access_ends,
                    "message": "This asset is in Early Access. You can use Buzz access it now!",
                },
            )
        if version.usage_control != "Download":
            words = "The creator of this asset has disabled downloads on this file"
            return json_answer(401, {"error": "Unauthorized", "message": words})
        if version.needs_login and not has_token:
            words = "The creator of this asset requires you to be logged in to download it"
            return json_answer(401, {"error": "Unauthorized", "message": words})
        file = _chosen(version, asked)
        if file is None:
            return json_answer(404, {"error": "File not found"})
        at = f"http://{self.cdn_host}/cdn/{quote(str(file.file_id))}?X-Amz-Signature=secret"
        return Answer(302, headers={"Location": at})

    def _file(self, request: Request, rest: str) -> Answer:
        files = [file for _, version in self._versions() for file in version.files]
        file = next(file for file in files if str(file.file_id) == rest)
        key = f"file {file.file_id}"
        failed = self.failure(request, key, file.faults)
        body = file.path.read_bytes() if file.faults.body is None else file.faults.body
        return failed or self.file_answer(request, key, body, file.faults, etag=sha256(file.path))


def _stated(file: File) -> str:
    """Return the SHA-256 that the API states, in upper case."""
    return (sha256(file.path) if file.sha256 is None else file.sha256).upper()


def _chosen(version: Version, asked: Mapping[str, str]) -> File | None:
    """Return the file that the query of a download link chooses. None if no file fits."""
    if "fileId" in asked:
        return next((file for file in version.files if str(file.file_id) == asked["fileId"]), None)
    choice = {key: asked[key] for key in _CHOICES if key in asked}
    if not choice:
        return version.primary()
    for file in version.files:
        properties = {**file.metadata(), "type": file.type}
        if all(properties[key] == value for key, value in choice.items()):
            return file
    return None
