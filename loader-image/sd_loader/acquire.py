"""The order of a fetch: locate the source, stream or download it, then fetch missing components.

`source` knows where bytes come from. `convert` knows what a file needs. Only this module uses both.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sd_api.card import NO_CARD, Card
from sd_api.choices import BaseModelName, ModelType
from sd_api.load import LoadRequest
from sd_api.redaction import hide
from sd_api.sources import Link
from sd_api.wire import Sha256Missing
from sd_loader.card.civitai import card_of_civitai, safe_picture
from sd_loader.card.clean import without
from sd_loader.card.metadata import card_of_metadata
from sd_loader.civitai_facts import CivitaiFacts
from sd_loader.convert.conversion import Conversion, refuse_impossible
from sd_loader.convert.detect.kinds import found_type
from sd_loader.convert.plan.companions import Companions
from sd_loader.convert.plan.file import plan_download
from sd_loader.convert.plan.needs import Needs, needs
from sd_loader.convert.plan.open_files import OpenFiles
from sd_loader.convert.plan.original import ORIGINAL_MAX_BYTES, read_original
from sd_loader.errors import LoaderError, SourceChangedError, naming
from sd_loader.formats import open_tensor_file
from sd_loader.handover import (
    CONFIGS_FOLDER,
    Arrived,
    AtHand,
    ExtraComponent,
    Fetched,
    nothing_at_hand,
)
from sd_loader.net.client import HttpClient
from sd_loader.net.patience import Pace, Retries
from sd_loader.picture import MAX_BYTES as PICTURE_MAX_BYTES
from sd_loader.picture import can_decode
from sd_loader.progress import Report
from sd_loader.request import conversion_of
from sd_loader.snippet import snippet
from sd_loader.source import fetch
from sd_loader.source.civitai import explaining, look_up
from sd_loader.source.locate import locate, naming_both_readings
from sd_loader.source.ref import Checks, SourceRef
from sd_loader.source.single import FILE_NAME
from sd_loader.source.small_file import fetch_small_file
from sd_loader.tensors import TensorFile

if TYPE_CHECKING:
    from sd_loader.source.link import OpenLink
    from sd_loader.streaming import IncomingFile

_VAE = "vae"
_VAE_FIELD = "spec.vae.url"
_DEFAULTS_FOLDER = "defaults"
_ORIGINAL_CONFIG = "config"
_PICTURE = "picture"
_OF_PICTURES = Retries(delays=(1.0,), longest_wait=1.0)
_PACE_OF_PICTURES = Pace(bytes_per_second=50 << 10, window_seconds=10.0)
_WARNING = 200
_ATTEMPTS = 3
"""How often streaming is tried if the file changes while it is read."""


def acquire(
    request: LoadRequest,
    client: HttpClient,
    into: Path,
    report: Report,
    *,
    out: Path | None = None,
    at_hand: AtHand = nothing_at_hand,
    allow_local: bool = False,
) -> Fetched:
    """Download everything that a load needs into a folder. Resume an earlier download there.

    out: folder for the result if the source can be converted while it is downloaded. at_hand: finds
    files that need not be downloaded. allow_local: a url without a scheme may be a path on this
    machine. Only the command line sets it, so that a request of the operator cannot read files of
    the node.
    """
    conversion = conversion_of(request)
    ref = SourceRef(
        url=request.url,
        field="spec.url",
        model_type=request.model_type,
        git_revision=request.git_revision,
        precision=request.revision,
        replaced=frozenset() if request.vae is None else frozenset({_VAE}),
        base_model=request.base_model,
        only_for_sd=_only_for_sd(request),
        needs_token=True,
    )
    checks = Checks(request.sha256, safetensors_only=conversion.safetensors_only)
    place = locate(ref, client.settings, allow_local=allow_local)
    found = look_up(place, ref, checks, client, into)
    supplies = _Supplies(request, conversion, client, into, report, at_hand)
    # These may be refused, so they come before the large download.
    if request.original_config is not None:
        supplies.fetch_original_config(request.original_config, allow_local=allow_local)
    if request.vae is not None:
        supplies.fetch_vae(request.vae.url, allow_local=allow_local)
    with naming_both_readings(ref, place, allow_local=allow_local), explaining(found):
        if isinstance(found.place, Link) and out is not None and _may_stream(ref):
            # Imported here, as in all functions that call a server: a local file needs no HTTP,
            # which takes 0.1 s to import.
            from sd_loader.source.link import open_link

            with open_link(replace(ref, url=found.place.url), found.checks, client) as link:
                fetched = _stream(link, supplies, out) or link.download(into, report)
        else:
            fetched = fetch(found.place, ref, found.checks, client, into, report, at_hand)
    fetched = found.noted(fetched)
    if fetched.model_type is not None:
        supplies.settle(fetched.model_type)
    elif fetched.kind == "file" and fetched.converted is None:
        supplies.complete(into / fetched.path)
    card = fetched.card.over(supplies.card)
    if fetched.civitai is not None:
        card = card_of_civitai(fetched.civitai, client.settings.civitai_endpoint).over(card)
        supplies.fetch_picture(fetched.civitai)
    return fetched.model_copy(
        update={
            "card": without(card, client.secrets(request.model_dump())),
            "picture": supplies.picture,
            "model_type": supplies.found,
            "original_config": supplies.original_config,
            "extras": tuple(supplies.extras),
            "files": {**supplies.files, **fetched.files},
            # A component may have been fetched for several versions of the file.
            "warnings": tuple(dict.fromkeys((*fetched.warnings, *supplies.warnings))),
        }
    )


def _only_for_sd(request: LoadRequest) -> tuple[str, ...]:
    """The fields of the spec that are set and that only pipelines of Stable Diffusion can use."""
    fields = {
        "spec.predictionType": request.prediction_type,
        "spec.upcastAttention": request.upcast_attention,
        "spec.vae": request.vae,
    }
    return tuple(name for name, value in fields.items() if value is not None)


def _may_stream(ref: SourceRef) -> bool:
    """Whether a link's file may be converted while it is downloaded."""
    # A trained model may be a zip, which is unpacked as a whole.
    return ref.model_type is not ModelType.API_TRAINED


def _stream(link: OpenLink, supplies: _Supplies, out: Path) -> Fetched | None:
    """Convert the link's file while it is downloaded. None if it must be downloaded first."""
    from sd_loader.streaming import forget  # for the same reason

    if link.is_begun(supplies.into):
        return None  # An earlier attempt began a plain download, which is resumed.
    fetched = None
    for _ in range(_ATTEMPTS):
        with suppress(SourceChangedError):
            fetched = _stream_version(link, supplies, out)
            break
    if fetched is None:
        forget(supplies.into, out)
    return fetched


def _stream_version(link: OpenLink, supplies: _Supplies, out: Path) -> Fetched | None:
    """Convert the version of the file that the server has now. None if it must be downloaded."""
    from sd_loader.streaming import open_incoming  # for the same reason

    remote = link.open_ranges()
    if remote is None:
        return None
    with open_incoming(remote, supplies.into, link.checks) as incoming:
        if incoming is None:
            return None
        supplies.settle(found_type(incoming.file.tensors))
        if supplies.fetch_needed(incoming.file).whole_file:
            return None
        return _convert(incoming, supplies, out)


def _convert(incoming: IncomingFile, supplies: _Supplies, out: Path) -> Fetched:
    conversion = supplies.conversion
    with ExitStack() as stack:
        opened = OpenFiles(stack)
        companions = Companions(supplies.into, supplies.original_config, supplies.extras)
        plan = plan_download(incoming.file, conversion, companions, opened)
        converted, source = incoming.convert(
            plan, opened.files.values(), conversion.verify, out, supplies.report
        )
    warnings: tuple[str, ...] = ()
    if incoming.checks.is_stated and source.sha256_missing == Sha256Missing.RANGES_ONLY:
        warnings = ("sha256 not compared: ranges only",)
    return Fetched(
        kind="file",
        path=FILE_NAME,
        source=source,
        model_type=supplies.found,
        converted=converted,
        warnings=warnings,
    )


@dataclass
class _Supplies:
    """Fetches the files that a load needs besides its source.

    Some of them are known only once the header of the source has been read. Requests to hosts other
    than the token's are sent without the token.
    """

    request: LoadRequest
    conversion: Conversion
    client: HttpClient
    into: Path
    report: Report
    at_hand: AtHand
    found: ModelType | None = None
    """The type that the source shows. None as long as it is not known."""
    original_config: str | None = None
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

    def fetch_vae(self, url: str, *, allow_local: bool) -> None:
        """Download the VAE that replaces the source's own."""
        ref = self._ref(url, _VAE_FIELD, ModelType.VAE)
        place = locate(ref, self.client.settings, allow_local=allow_local)
        folder = self._folder(_VAE)
        with naming(_VAE_FIELD), naming_both_readings(ref, place, allow_local=allow_local):
            found = look_up(place, ref, self._checks, self.client, folder)
            with explaining(found):
                fetched = fetch(
                    found.place,
                    ref,
                    found.checks,
                    self.client,
                    folder,
                    self.report,
                    self.at_hand,
                )
        fetched = found.noted(fetched)
        self._add((_VAE,), _VAE, fetched)

    def fetch_picture(self, facts: CivitaiFacts) -> None:
        """Download a picture that the source rates as safe. A failure is a warning.

        The next container has the same image of the loader, so if this one cannot decode pictures,
        none is downloaded.
        """
        url = safe_picture(facts)
        if url is None or not can_decode():
            return
        # A picture is not worth a long wait.
        client = replace(self.client, retries=_OF_PICTURES, pace=_PACE_OF_PICTURES)
        path = self.into / _PICTURE
        try:
            fetch_small_file(url, "the source's picture", PICTURE_MAX_BYTES, client, path)
        except (LoaderError, OSError) as error:
            why = error.message if isinstance(error, LoaderError) else error.strerror
            why = hide(f"the source's picture is not kept: {why}", client.secrets(url))
            self.warnings.append(snippet(why, _WARNING))
        else:
            self.picture = _PICTURE

    def settle(self, found: ModelType) -> None:
        """Go on with the type that the source shows, unless the request names one.

        Refuse options that a model of this type cannot have.
        """
        self.found = found
        if self.request.model_type is None:
            self.conversion = conversion_of(self.request, found)
            refuse_impossible(self.conversion)

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

        Those whose repo is not known are left to the conversion.
        """
        self.card = card_of_metadata(file.metadata)
        needed = needs(file, self.conversion)
        if needed.config_repo is not None:
            self._fetch_configs(needed.config_repo)
        elif needed.base_model is not None:
            self._fetch_defaults(needed.base_model, needed.components)
        return needed

    def _fetch_configs(self, repo_id: str) -> None:
        from sd_loader.source.hub import fetch_configs  # for the same reason

        subject = f"the file needs the configs of {repo_id}"
        ref = self._ref(repo_id, subject, ModelType.HUGGINGFACE)
        with naming(subject):
            self.warnings += fetch_configs(
                ref, self.client, self.into / CONFIGS_FOLDER, self.report
            )

    def _fetch_defaults(self, base: BaseModelName, needed: tuple[str, ...]) -> None:
        """Download missing components from the administrator's repo for the base model.

        Without such a repo, the conversion reports what is missing.
        """
        present = {component for extra in self.extras for component in extra.components}
        missing = [component for component in needed if component not in present]
        repo_id = self.client.settings.default_parts.get(base.value)
        if repo_id is None or not missing:
            return
        from sd_loader.source.hub import fetch_components  # for the same reason

        subject = f"the default components of {base.value}"
        ref = self._ref(repo_id, subject, ModelType.HUGGINGFACE)
        with naming(subject):
            folder = self._folder(_DEFAULTS_FOLDER)
            fetched = fetch_components(
                missing, ref, self._checks, self.client, folder, self.report, self.at_hand
            )
        self._add(missing, _DEFAULTS_FOLDER, fetched)
        self.warnings.append(
            f"the checkpoint has no {' and no '.join(missing)}: taken from {repo_id[:100]}"
        )

    def _ref(self, url: str, field: str, model_type: ModelType) -> SourceRef:
        return SourceRef(url, field, model_type, precision=self.conversion.precision)

    @property
    def _checks(self) -> Checks:
        return Checks(safetensors_only=self.conversion.safetensors_only)

    def _folder(self, name: str) -> Path:
        folder = self.into / name
        folder.mkdir(exist_ok=True)
        return folder

    def _add(self, components: Sequence[str], folder: str, fetched: Fetched) -> None:
        self.warnings += fetched.warnings
        self.files |= {f"{folder}/{name}": arrived for name, arrived in fetched.files.items()}
        path = f"{folder}/{fetched.path}"
        self.extras.append(
            ExtraComponent(components=tuple(components), kind=fetched.kind, path=path)
        )
