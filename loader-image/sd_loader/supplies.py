"""Fetches the files that a load needs besides its source.

Some of them are known only once the header of the source has been read. Requests to hosts other
than the token's are sent without the token.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.card import NO_CARD, Card
from sd_api.choices import BaseModelName, ModelType
from sd_api.load import LoadRequest
from sd_api.reasons import Reason
from sd_api.redaction import hide
from sd_api.sites.civitai_card import picture_of
from sd_api.sites.civitai_facts import CivitaiFacts
from sd_api.sources import HubRepo, read_source
from sd_api.spec import Replacement
from sd_api.url_forms import NOT_A_SKELETON
from sd_loader.card import card_of_metadata
from sd_loader.convert.conversion import Conversion, refuse_impossible
from sd_loader.convert.detect.kinds import found_type
from sd_loader.convert.detect.transformers import TransformerFile
from sd_loader.convert.plan.all_in_one import refuse_incomplete
from sd_loader.convert.plan.needs import Needs, needs
from sd_loader.convert.plan.original import ORIGINAL_MAX_BYTES, read_original
from sd_loader.diffusers_repo.index import CONFIG_NAME
from sd_loader.errors import LoaderError, SourceChangedError, naming
from sd_loader.formats import open_tensor_file
from sd_loader.handover import (
    CONFIGS_FOLDER,
    Arrived,
    AtHand,
    ExtraComponent,
    Fetched,
)
from sd_loader.net.client import HttpClient
from sd_loader.net.patience import Pace, Retries
from sd_loader.picture import MAX_BYTES as PICTURE_MAX_BYTES
from sd_loader.progress import Report
from sd_loader.request import conversion_of
from sd_loader.snippet import snippet
from sd_loader.source import fetch
from sd_loader.source.civitai import explaining, look_up
from sd_loader.source.locate import Place, locate, naming_both_readings
from sd_loader.source.ref import Checks, SourceRef
from sd_loader.source.small_file import fetch_small_file
from sd_loader.tensors import TensorFile

if TYPE_CHECKING:
    from sd_loader.diffusers_repo.listed import AnyPipeline, ListedPipeline
    from sd_loader.net.ranges import RemoteFile
    from sd_loader.source.hub import ListedRepo
    from sd_loader.source.hub_copy import RepoCopy

FROM = "spec.components.from"
_VAE = "vae"
_DEFAULTS_FOLDER = "defaults"
_SKELETON_FOLDER = "skeleton"
_OUTLINE_FOLDER = "outline"
"""For files that are read before the source is downloaded."""
_ORIGINAL_CONFIG = "config"
_PICTURE = "picture"
_OF_PICTURES = Retries(delays=(1.0,), longest_wait=1.0)
_PACE_OF_PICTURES = Pace(bytes_per_second=50 << 10, window_seconds=10.0)
_WARNING_CHARS = 200


@dataclass
class Supplies:
    """The files of one load besides its source."""

    request: LoadRequest
    conversion: Conversion
    client: HttpClient
    into: Path
    report: Report
    at_hand: AtHand
    shown_type: ModelType | None = None
    """The type that the source shows. None while it is unknown."""

    skeleton: str | None = None
    """The repo of spec.components.from. None if the administrator's setting decides."""

    original_config: str | None = None
    skeleton_path: str | None = None
    """The folder of the repo that gives all components which the file lacks."""

    components_from: str | None = None
    """The repo that gave components which the source lacks, as ORG/NAME@COMMIT."""

    extras: list[ExtraComponent] = field(default_factory=list)
    files: dict[str, Arrived] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    picture: str | None = None
    card: Card = NO_CARD
    """What the file's metadata says about the model."""

    def fetch_original_config(self, url: str, *, allow_local: bool) -> None:
        """Download the checkpoint's original config. Refuse it now if it is not valid."""
        path = self.into / _ORIGINAL_CONFIG
        fetch_small_file(
            url,
            "spec.originalConfig",
            ORIGINAL_MAX_BYTES,
            self.client,
            path,
            allow_local=allow_local,
        )
        read_original(path)
        self.original_config = _ORIGINAL_CONFIG

    def check_skeleton(self) -> None:
        """Refuse the repo of spec.components.from now if it cannot be downloaded or read.

        The components are later downloaded at the commit that the repo has now.
        """
        url = self.request.components.from_
        if url is None:
            return
        with naming(FROM):
            repo = self._repo(url)
            ref = self._ref(url, FROM, ModelType.HUGGINGFACE)
            listed = self._check_pipeline(repo, ref, _SKELETON_FOLDER, required=True)
        self.skeleton = f"{repo.repo_id}@{listed.listing.commit}"

    def check_repo(self, place: Place, ref: SourceRef) -> Place:
        """Refuse the model's own repo now if it lacks a component that the request replaces.

        Return the repo with its list of files if the list was read, otherwise the place unchanged.
        """
        is_whole = ref.model_type in (None, ModelType.HUGGINGFACE)
        if not isinstance(place, HubRepo) or not is_whole or not self.conversion.replaced:
            return place
        return self._check_pipeline(place, ref, _OUTLINE_FOLDER)

    def _check_pipeline(
        self, repo: HubRepo, ref: SourceRef, folder: str, *, required: bool = False
    ) -> ListedRepo:
        from sd_loader.source.hub import check_pipeline  # imported here, as in acquire

        into = self._folder(folder)
        ref = replace(ref, replaced=self.conversion.replaced)
        return check_pipeline(repo, ref, self.client, into, self.report, required=required)

    def fetch_replacement(self, name: str, source: Replacement, *, allow_local: bool) -> None:
        """Download a component that replaces the pipeline's own."""
        model_type = ModelType.VAE if name == _VAE else ModelType.CUSTOM_CKPT
        ref = replace(self._ref(source.url, source.field, model_type), component=name)
        place = locate(ref, self.client.settings, allow_local=allow_local)
        folder = self._folder(name)
        with naming(source.field), naming_both_readings(ref, place, allow_local=allow_local):
            found = look_up(place, ref, self._checks, self.client, folder)
            with explaining(found):
                fetched = fetch(
                    found.place, ref, found.checks, self.client, folder, self.report, self.at_hand
                )
        fetched = found.noted(fetched)
        path = self._record(name, fetched)
        self.extras.append(ExtraComponent(components=(name,), kind=fetched.kind, path=path))

    def fetch_picture(self, facts: CivitaiFacts) -> None:
        """Download a picture that the setting allows. A failure is a warning."""
        url = picture_of(facts, self.client.settings.pictures)
        if url is None:
            return
        # A picture is not worth a long wait.
        client = replace(self.client, retries=_OF_PICTURES, pace=_PACE_OF_PICTURES)
        path = self.into / _PICTURE
        try:
            fetch_small_file(url, "the source's picture", PICTURE_MAX_BYTES, client, path)
        except (LoaderError, OSError) as error:
            why = error.message if isinstance(error, LoaderError) else error.strerror
            why = hide(f"the source's picture is not kept: {why}", client.secrets(url))
            self.warnings.append(snippet(why, _WARNING_CHARS))
        else:
            self.picture = _PICTURE

    def settle(self, found: ModelType) -> None:
        """Record the type that the source shows, and use it if the request names no type.

        In this case, refuse options that a model of this type cannot have.
        """
        self.shown_type = found
        if self.request.model_type is None:
            self.conversion = conversion_of(self.request, found)
            refuse_impossible(self.conversion)

    def peek(self, size: int, opened: Callable[[], RemoteFile | None]) -> None:
        """Download the components that a large file of the Hub lacks, before the file itself.

        In this way, a repo of components that may not be downloaded or does not fit is refused
        before the large download.
        """
        from sd_loader.streaming import LEAST_BYTES, open_incoming  # imported here, as in acquire

        remote = opened() if self.conversion.is_pipeline and size >= LEAST_BYTES else None
        if remote is None:
            return
        folder = self._folder(_OUTLINE_FOLDER)
        try:
            with suppress(SourceChangedError), open_incoming(remote, folder, Checks()) as incoming:
                if incoming is not None:
                    self.settle(found_type(incoming.file.tensors))
                    self.fetch_needed(incoming.file)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def complete(self, path: Path) -> None:
        """Download the configs and components that a downloaded file lacks."""
        try:
            file = open_tensor_file(path)
        except LoaderError:
            if self.request.model_type is None:
                raise
            return  # The conversion reports this error.
        with file:
            self.settle(found_type(file.tensors))
            self.fetch_needed(file)

    def fetch_needed(self, file: TensorFile) -> Needs:
        """Read the file's card, and download the configs and components that the file lacks.

        Raise LoaderError if the file is a transformer without its other components, and no repo is
        known for them. In all other cases without a repo, the conversion reports what is missing.
        """
        self.card = card_of_metadata(file.metadata)
        needed = needs(file, self.conversion)
        if needed.transformer is not None:
            self._fetch_skeleton(file, needed.transformer)
        elif needed.base_model is not None and needed.components:
            self._fetch_missing(needed.base_model, needed.components)
        elif self.skeleton is not None and (needed.base_model or needed.family):
            raise LoaderError(
                Reason.INVALID_SPEC,
                "does not apply: the file has all components; remove it from the spec",
                field=FROM,
            )
        if needed.config_repo is not None:
            self._fetch_configs(needed.config_repo)
        return needed

    def _fetch_configs(self, repo_id: str) -> None:
        from sd_loader.source.hub import fetch_configs  # imported here, as in acquire

        subject = f"the file needs the configs of {repo_id}"
        ref = self._ref(repo_id, subject, ModelType.HUGGINGFACE)
        with naming(subject):
            self.warnings += fetch_configs(
                ref, self.client, self.into / CONFIGS_FOLDER, self.report
            )

    def _fetch_skeleton(self, file: TensorFile, found: TransformerFile) -> None:
        """Download the pipeline that gives the components which a transformer's file lacks."""
        if self.skeleton_path is not None:
            return
        family = found.family.table or ""
        url = self._skeleton_of(family)
        if url is None:
            refuse_incomplete(found, file.tensors)
        judge = _Judge(file, found, self.conversion)

        def get(copy: RepoCopy, ref: SourceRef) -> Fetched:
            return copy.fetch_skeleton(judge, ref, self._checks)

        self.skeleton_path, repo = self._fetch_for_file(url, family, _SKELETON_FOLDER, get)
        names = sorted({path.split("/")[2] for path in self.files if _is_of_skeleton(path)})
        self.warnings.append(f"{', '.join(names)}: taken from {repo}")

    def _fetch_missing(self, base: BaseModelName, needed: Iterable[str]) -> None:
        """Download components that a checkpoint lacks.

        If no repo is known for them, the conversion reports what is missing.
        """
        present = {component for extra in self.extras for component in extra.components}
        missing = [component for component in needed if component not in present]
        url = self._skeleton_of(base.value)
        if url is None or not missing:
            return

        def get(copy: RepoCopy, ref: SourceRef) -> Fetched:
            return copy.fetch_pipeline(ref, self._checks, missing)

        path, repo = self._fetch_for_file(url, base.value, _DEFAULTS_FOLDER, get)
        self.extras.append(ExtraComponent(components=tuple(missing), kind="repo", path=path))
        self.warnings.append(f"the checkpoint has no {' and no '.join(missing)}: taken from {repo}")

    def _fetch_for_file(
        self, url: str, family: str, folder: str, get: Callable[[RepoCopy, SourceRef], Fetched]
    ) -> tuple[str, str]:
        """Download the components that a file lacks from the repo for the file's family.

        Return where the files are, and the repo with the beginning of its commit, for messages.
        """
        from sd_loader.source.hub import fetch_for_file  # imported here, as in acquire

        subject = FROM if self.skeleton is not None else f"the default components of {family}"
        ref = self._ref(url, subject, ModelType.HUGGINGFACE)
        with naming(subject):
            got = fetch_for_file(
                get,
                self._repo(url),
                ref,
                self.client,
                self._folder(folder),
                self.report,
                self.at_hand,
            )
        self.components_from = got.pinned
        return self._record(folder, got.fetched), _short(got.pinned)

    def _skeleton_of(self, family: str) -> str | None:
        return self.skeleton or self.client.settings.default_parts.get(family)

    def _repo(self, url: str) -> HubRepo:
        """Return the repo that a field or a setting names. Refuse any other source."""
        meaning = read_source(url, ModelType.HUGGINGFACE)
        if not isinstance(meaning, HubRepo):
            raise LoaderError(Reason.INVALID_SPEC, NOT_A_SKELETON)
        return meaning

    def _ref(self, url: str, field: str, model_type: ModelType) -> SourceRef:
        return SourceRef(url, field, model_type, precision=self.conversion.precision)

    @property
    def _checks(self) -> Checks:
        return Checks(safetensors_only=self.conversion.safetensors_only)

    def _folder(self, name: str) -> Path:
        folder = self.into / name
        folder.mkdir(exist_ok=True)
        return folder

    def _record(self, folder: str, fetched: Fetched) -> str:
        self.warnings += fetched.warnings
        self.files |= {f"{folder}/{name}": arrived for name, arrived in fetched.files.items()}
        return f"{folder}/{fetched.path}"


@dataclass(frozen=True)
class _Judge:
    """Compares a pipeline with the header of the file that it is for."""

    file: TensorFile
    found: TransformerFile
    conversion: Conversion

    def accept(self, pipeline: AnyPipeline) -> ListedPipeline:
        from sd_loader.convert.plan.skeleton import check_skeleton  # only these loads need it

        return check_skeleton(pipeline, self.found, self.conversion)

    def compare(self, pipeline: ListedPipeline, folder: Path) -> None:
        from sd_loader.convert.plan.skeleton import check_sizes

        with naming("spec.url"):
            check_sizes(folder, pipeline, self.file, self.found, self.conversion)


def _short(pinned: str) -> str:
    """Return a repo and the beginning of its commit, for messages."""
    repo, _, commit = pinned.partition("@")
    return f"{repo[:100]}@{commit[:7]}"


def _is_of_skeleton(path: str) -> bool:
    """Whether this is a component's file from the skeleton, and not only the component's config."""
    is_in_folder = path.startswith(f"{_SKELETON_FOLDER}/") and path.count("/") > 2
    return is_in_folder and not path.endswith(f"/{CONFIG_NAME}")
