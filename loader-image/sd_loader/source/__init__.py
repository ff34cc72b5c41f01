"""Where a model comes from: downloads a request's source into a folder, resumably."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.load import LoadRequest
from sd_api.spec import ModelType
from sd_loader.errors import LoaderError
from sd_loader.handover import ExtraComponent, Fetched
from sd_loader.progress import Report
from sd_loader.settings import Settings

if TYPE_CHECKING:
    from sd_loader.convert.write.files import FolderPlan
    from sd_loader.convert.write.weights import Weights
    from sd_loader.streaming import Streaming
    from sd_loader.tensors import TensorFile


def fetch(
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    *,
    out: Path | None = None,
    allow_local: bool = False,
) -> Fetched:
    """Download the request's source into a folder, going on with what lies there already.

    out: where it may be converted to at once.
    allow_local: a url without a scheme may be a path on this machine. Only a person at the command
    line may say so: a request of the operator reads no files of the node.
    """
    name = None
    if request.original_config is not None:
        from sd_loader.source.original_config import fetch_config

        # Before the large download, for it may be refused.
        name = fetch_config(
            request.original_config, request, settings, into, allow_local=allow_local
        )
    parts: tuple[ExtraComponent, ...] = ()
    if request.vae is not None:
        from sd_loader.source.parts import fetch_vae

        parts = (fetch_vae(request.vae, request, settings, into, report, allow_local=allow_local),)
    beside = _Beside(request, settings, into, report, name, parts)
    streaming = None
    # A trained model may be a zip of a folder, which must be whole to be unpacked.
    if out is not None and request.model_type is not ModelType.API_TRAINED:
        from sd_loader.streaming import Streaming

        streaming = Streaming(beside.plan, out)
    fetched = _fetch_source(request, settings, into, report, streaming, allow_local=allow_local)
    if fetched.kind == "file" and fetched.converted is None:
        beside.complete(into / fetched.path)
    return fetched.model_copy(
        update={
            "original_config": name,
            "parts": beside.parts,
            "warnings": (*fetched.warnings, *beside.warnings),
        }
    )


@dataclass
class _Beside:
    """What is downloaded beside the source, more of it once the source is known."""

    request: LoadRequest
    settings: Settings
    into: Path
    report: Report
    original_config: str | None
    parts: tuple[ExtraComponent, ...]
    warnings: tuple[str, ...] = ()

    def plan(self, file: TensorFile, weights: Weights) -> FolderPlan | None:
        """Plan the folder of a file that is about to come; None where it must be whole for that."""
        from sd_loader.convert.plan.single import plan_single

        if self._add(file):
            return None
        return plan_single(file, self.request, self.into, self.original_config, self.parts, weights)

    def complete(self, path: Path) -> None:
        """Download what the file lacks."""
        from sd_loader.formats import open_tensor_file

        try:
            file = open_tensor_file(path)
        except LoaderError:
            return  # the conversion says why
        with file:
            self._add(file)

    def _add(self, file: TensorFile) -> bool:
        """Download what the file lacks; whether that is what diffusers' own conversion needs."""
        from sd_loader.convert import configs_needed

        repo = configs_needed(file, self.request)
        if repo is not None:
            from sd_loader.source.configs import fetch_configs

            fetch_configs(repo, self.request, self.settings, self.into, self.report)
            return True
        from sd_loader.source.parts import fetch_defaults

        found = fetch_defaults(
            file, self.parts, self.request, self.settings, self.into, self.report
        )
        if found is not None:
            part, said = found
            self.parts, self.warnings = (*self.parts, part), (*self.warnings, said)
        return False


def _fetch_source(
    request: LoadRequest,
    settings: Settings,
    into: Path,
    report: Report,
    streaming: Streaming | None,
    *,
    allow_local: bool,
) -> Fetched:
    # Imported here: the other commands do without the HTTP stack and start faster.
    from sd_loader.source.locate import HubFile, HubRepo, Link, LocalFile, locate

    found = locate(request.url, request.model_type, settings, allow_local=allow_local)
    match found:
        case HubRepo():
            from sd_loader.source.hub import fetch_repo

            fetched = fetch_repo(request, settings, into, report)
        case HubFile():
            from sd_loader.source.hub import fetch_file

            fetched = fetch_file(found, request, settings, into, report)
        case LocalFile():
            from sd_loader.source.local import take_file

            fetched = take_file(request, settings, into)
        case Link(url):
            from sd_loader.source.link import fetch_link

            asked = request.model_copy(update={"url": url})
            fetched = fetch_link(asked, settings, into, report, streaming=streaming)
    if request.model_type is ModelType.API_TRAINED:
        from sd_loader.source.archive import unpack_pipeline

        return unpack_pipeline(fetched, request, settings, into)
    return fetched
