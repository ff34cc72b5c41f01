"""`sd-loader inspect LINK`: shows what a link or a repo leads to, without loading it.

The source's API, the configs of a repo and the outline of a file are read. Only a file that is too
small for an outline is downloaded as a whole, into a folder that the caller removes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sd_api.card import NO_CARD, Card
from sd_api.choices import ModelType
from sd_api.fields import Contract
from sd_api.humanize import size
from sd_api.reasons import Reason
from sd_api.redaction import hide
from sd_api.sites.civitai_card import card_of_civitai
from sd_api.sites.civitai_facts import CivitaiFacts
from sd_api.sites.clean import without
from sd_api.sources import HubFile, HubRepo, Link
from sd_loader.card import card_of_metadata
from sd_loader.convert.conversion import Conversion
from sd_loader.convert.detect.kinds import found_type
from sd_loader.convert.plan.all_in_one import refuse_incomplete
from sd_loader.convert.plan.file import plan_file
from sd_loader.convert.plan.needs import Needs, needs
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.repo import family_of_unet
from sd_loader.convert.plan.repo_configs import component_config, read_json, read_small
from sd_loader.convert.tables.families import family_of_width
from sd_loader.diffusers_repo.index import CONFIG_NAME, INDEX_NAME
from sd_loader.diffusers_repo.listed import ListedPipeline, read_pipeline
from sd_loader.diffusers_repo.single_component import SINGLE, parse_component
from sd_loader.errors import LoaderError, SourceChangedError
from sd_loader.formats import open_tensor_file
from sd_loader.handover import Fetched
from sd_loader.inspect import as_text
from sd_loader.net.client import HttpClient
from sd_loader.net.ranges import RemoteFile
from sd_loader.progress import no_report
from sd_loader.settings import Settings
from sd_loader.source.civitai import explaining, look_up
from sd_loader.source.hub import outline_repo
from sd_loader.source.hub_copy import FOLDER_NAME
from sd_loader.source.link import OpenLink, open_link
from sd_loader.source.locate import Located, Place, naming_both_readings
from sd_loader.source.ref import Checks, SourceRef
from sd_loader.source.single import FILE_NAME
from sd_loader.streaming import LEAST_BYTES, open_incoming
from sd_loader.tensors import TensorFile

_NOT_READ = "the file was not read, because the server does not send parts of it"
_TYPES = {
    "Checkpoint": ModelType.CUSTOM_CKPT,
    "Controlnet": ModelType.CONTROLNET,
    "DoRA": ModelType.LORA,
    "LORA": ModelType.LORA,
    "LoCon": ModelType.LORA,
    "TextualInversion": ModelType.EMBEDDINGS,
    "VAE": ModelType.VAE,
}
"""Model types by Civitai's words. They count only if the file itself cannot be read."""


class LinkInspection(Contract):
    """The properties of the model behind a link.

    Fields of the same name as in the status have the same values. A field is None if it is
    unknown or does not apply.
    """

    model_type: ModelType | None = None
    format: str | None = None
    base_model: str | None = None
    variant: str | None = None
    pipeline_class: str | None = None
    prediction_type: str | None = None
    precision: str | None = None
    tensors: int | None = None
    """Number of tensors of a single file."""
    size_bytes: int | None = None
    """Size of the file, or of all files that a load downloads."""
    commit: str | None = None
    version: str | None = None
    file: str | None = None
    sha256: str | None = None
    """The digest that the source states, or that of a small file that was downloaded."""
    warnings: tuple[str, ...] = ()
    card: Card | None = None
    """The card from the source, and from the file's metadata."""

    def to_json(self) -> str:
        """Return one JSON object."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    def to_text(self) -> str:
        """Return one line for each field that has a value."""
        return as_text(
            {
                "model type": self.model_type or "unknown",
                "format": self.format,
                "base model": self.base_model,
                "variant": self.variant,
                "pipeline": self.pipeline_class,
                "prediction": self.prediction_type,
                "precision": self.precision,
                "tensors": None if self.tensors is None else str(self.tensors),
                "size": None if self.size_bytes is None else size(self.size_bytes),
                "commit": self.commit,
                "version": self.version,
                "file": self.file,
                "sha256": self.sha256,
                "warning": "; ".join(self.warnings) or None,
            },
            self.card,
        )


def inspect_link(
    ref: SourceRef, place: Located, client: HttpClient, into: Path
) -> tuple[LinkInspection, LoaderError | None]:
    """Inspect a source. Return what is known, and the error with which a load would fail, or None.

    If nothing is known, the error is raised. into: an empty folder for the downloaded files.
    """
    found = look_up(place, ref, Checks(), client, into)
    look = _Look(client, into)
    if found.facts is not None:
        look.take_facts(found.facts)
    refusal = None
    try:
        with naming_both_readings(ref, place, allow_local=True), explaining(found):
            look.take(found.place, ref)
    except SourceChangedError:
        refusal = LoaderError(
            Reason.SOURCE_UNREACHABLE,
            "the file changed while it was read",
            remedy="Run the command again.",
        )
    except LoaderError as error:
        refusal = error
    if refusal is not None and look.knows_nothing():
        raise refusal
    look.warn(*found.warnings)
    return look.cleaned(client.secrets(ref.url)), refusal


@dataclass
class _Look:
    """Collects what a source shows."""

    client: HttpClient
    into: Path
    shown: LinkInspection = field(default_factory=LinkInspection)
    card: Card = NO_CARD
    """The card from the source. Its fields take precedence over those of the file's card."""
    card_of_file: Card = NO_CARD

    def take_facts(self, facts: CivitaiFacts) -> None:
        """Record the facts that Civitai states."""
        self.card = card_of_civitai(facts, self.client.settings.civitai_endpoint)
        model_type = _TYPES.get(facts.model_type or "")
        if facts.file is not None:
            model_type = _TYPES.get(facts.file.type) or model_type
            self._add(size_bytes=facts.file.size_bytes, sha256=facts.file.sha256)
        self._add(model_type=model_type, version=facts.loaded_version, file=facts.file_name)

    def take(self, place: Place, ref: SourceRef) -> None:
        """Read a source as far as a load does before it downloads the weights."""
        match place:
            case HubRepo() | HubFile():
                self._take_repo(outline_repo(place, ref, self.client, self.into, self._peek))
            case Link(url):
                with open_link(replace(ref, url=url), Checks(), self.client) as link:
                    self._take_link(link)

    def warn(self, *warnings: str) -> None:
        """Add warnings, each once."""
        self._add(warnings=tuple(dict.fromkeys((*self.shown.warnings, *warnings))))

    def knows_nothing(self) -> bool:
        """Return whether the source has shown neither a field nor a card."""
        return self.shown == LinkInspection() and self.card == NO_CARD

    def cleaned(self, secrets: frozenset[str]) -> LinkInspection:
        """Return all known properties, without these secrets, which a server may have quoted."""
        file = self.shown.file
        return self.shown.model_copy(
            update={
                "file": None if file is None else hide(file, secrets),
                "warnings": tuple(hide(warning, secrets) for warning in self.shown.warnings),
                "card": without(self.card.over(self.card_of_file), secrets).or_none(),
            }
        )

    def _add(self, **values: Any) -> None:  # noqa: ANN401 - the values of any fields
        known = {name: value for name, value in values.items() if value is not None}
        self.shown = self.shown.model_copy(update=known)

    def _take_link(self, link: OpenLink) -> None:
        remote = link.open_ranges()
        if remote is not None:
            self._take_remote(remote)
            return
        # The size is not known, so a large file is refused while it arrives.
        settings = replace(self.client.settings, max_bytes=LEAST_BYTES)
        small = replace(link, client=replace(self.client, settings=settings))
        try:
            fetched = small.download(self.into, no_report)
        except LoaderError as error:
            if error.reason is not Reason.TOO_LARGE:
                raise
            self.warn(_NOT_READ)
        else:
            self._add(size_bytes=fetched.source.size_bytes, sha256=fetched.source.sha256)
            self._take_file(self.into / fetched.path)

    def _peek(self, _size: int, opened: Callable[[], RemoteFile | None]) -> None:
        remote = opened()
        if remote is None:
            self.warn(_NOT_READ)
        else:
            self._take_remote(remote)

    def _take_remote(self, remote: RemoteFile) -> None:
        self._add(size_bytes=remote.size)
        if remote.size < LEAST_BYTES:
            path = self.into / FILE_NAME
            path.write_bytes(remote.read(0, remote.size))
            self._take_file(path)
            return
        with open_incoming(remote, self.into, Checks()) as incoming:
            if incoming is None:
                self.warn("the file was not read: only a whole download shows what it is")
            else:
                self._take_tensors(incoming.file, is_whole=False)

    def _take_file(self, path: Path) -> None:
        with open_tensor_file(path) as file:
            self._take_tensors(file, is_whole=True)

    def _take_tensors(self, file: TensorFile, *, is_whole: bool) -> None:
        """Record what a file's header shows. Raise the load's error for an unusable file."""
        model_type = found_type(file.tensors)
        self._add(model_type=model_type, format=file.format, tensors=len(file.tensors))
        self.card_of_file = card_of_metadata(file.metadata)
        conversion = Conversion(model_type, model_id="inspected")
        needed = needs(file, conversion)
        self._add(base_model=needed.base_model or needed.family)
        repo = _repo_for(needed, file, self.client.settings)
        if repo is not None:
            self.warn(f"the file lacks components of the pipeline: a load takes them from {repo}")
        elif needed.config_repo is None and (is_whole or not needed.whole_file):
            with ExitStack() as stack:
                plan = plan_file(file, conversion, OpenFiles(stack))
            self._add(
                base_model=plan.base_model,
                variant=plan.variant,
                pipeline_class=plan.pipeline_class,
                prediction_type=plan.prediction_type,
                precision=plan.precision,
            )
            self.warn(*plan.warnings)
            self.card_of_file = Card(word=plan.word).over(self.card_of_file)

    def _take_repo(self, fetched: Fetched) -> None:
        self.card = fetched.card
        source = fetched.source
        self._add(commit=source.commit, size_bytes=source.size_bytes, sha256=source.sha256)
        self._add(format=source.format, model_type=fetched.model_type)
        self.warn(*fetched.warnings)
        folder = self.into / FOLDER_NAME
        if fetched.model_type is ModelType.HUGGINGFACE:
            self._take_pipeline(folder)
        elif fetched.model_type in SINGLE:
            component = parse_component(read_small(folder / CONFIG_NAME), fetched.model_type)
            family = family_of_width(component.config.get("cross_attention_dim"))
            self._add(
                pipeline_class=component.class_name, base_model=component.other_family or family
            )

    def _take_pipeline(self, folder: Path) -> None:
        pipeline = read_pipeline(read_small(folder / INDEX_NAME))
        self._add(pipeline_class=pipeline.class_name)
        if isinstance(pipeline, ListedPipeline):
            self._add(base_model=pipeline.base_model)
        else:
            config = read_json(folder / "unet" / CONFIG_NAME, rewritten=True)
            conversion = Conversion(ModelType.HUGGINGFACE, model_id="inspected")
            unet = component_config(config, "unet", pipeline, conversion)
            self._add(base_model=family_of_unet(pipeline, unet))


def _repo_for(needed: Needs, file: TensorFile, settings: Settings) -> str | None:
    """Return the repo that a load takes missing components from. None if it needs none.

    Raise the load's error if the file is only a transformer and no repo is set for its family.
    """
    found = needed.transformer
    if found is not None:
        repo = settings.default_parts.get(found.family.table or "")
        return repo or refuse_incomplete(found, file.tensors)
    if needed.base_model is None or not needed.components:
        return None
    return settings.default_parts.get(needed.base_model.value)
