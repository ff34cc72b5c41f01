"""The facts that Civitai states about one version of a model. All fields have types and limits.

`civitai_answers` reads the facts. A load makes its card from them.
All texts are untrusted: a creator wrote them. They are short, but may contain any characters.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints

from sd_api.fields import Contract, Count, Sha256, Url

TEXT_MAX_LENGTH = 200
"""Maximum length of a text. Longer texts are cut."""
CivitaiText = Annotated[str, StringConstraints(min_length=1, max_length=TEXT_MAX_LENGTH)]
MAX_WORDS = 64
"""Maximum number of trained words that are kept of a version."""
MAX_USES = 8
"""Maximum number of commercial uses that are kept."""
MAX_IMAGES = 10
"""Maximum number of images that are kept of a version. Civitai's API lists ten."""


class CivitaiFile(Contract):
    """One file of a version."""

    id: Count
    name: CivitaiText
    type: CivitaiText
    """Its role: Model, Pruned Model, VAE, Training Data and others."""
    path: str
    """The path of its download, with its query, at Civitai's endpoint."""
    size_bytes: Count | None = None
    """Approximate, because the API states kilobytes and may round them."""
    sha256: Sha256 | None = None
    """None while Civitai has not scanned the file."""
    format: CivitaiText | None = None
    """SafeTensor, PickleTensor, GGUF, Diffusers and others."""
    size: CivitaiText | None = None
    """full or pruned."""
    fp: CivitaiText | None = None
    """fp16, bf16, fp32, fp8 and others."""
    is_primary: bool = False
    """True if the version's download link without a query leads to this file."""


class CivitaiImage(Contract):
    """An image that the model's page shows."""

    url: Url
    nsfw_level: Count | None = None
    """Civitai's rating, a power of two: 1 is safe for everyone. None if it is not rated."""
    is_video: bool = False


class CivitaiLicence(Contract):
    """The permissions that the creator gives. A field is None if Civitai does not state it."""

    no_credit: bool | None = None
    """True if users may leave out the creator's name."""
    derivatives: bool | None = None
    """True if users may merge this model with others, and share the result."""
    different_licence: bool | None = None
    """True if a merged model may be shared with other permissions than this one has."""
    commercial_use: Annotated[tuple[CivitaiText, ...], Field(max_length=MAX_USES)] | None = None
    """The allowed uses: Image, RentCivit, Rent and Sell. Commercial use is not allowed if this is
    empty, or if its only item is the word None."""


class CivitaiFacts(Contract):
    """One version of a model."""

    version_id: Count
    model_id: Count | None = None
    model_name: CivitaiText | None = None
    version_name: CivitaiText | None = None
    model_type: CivitaiText | None = None
    """Checkpoint, LORA, LoCon, DoRA, TextualInversion, VAE, Controlnet and others."""
    base_model: CivitaiText | None = None
    """The trade name: SD 1.5, Pony, Illustrious and others."""
    trained_words: Annotated[tuple[CivitaiText, ...], Field(max_length=MAX_WORDS)] = ()
    creator: CivitaiText | None = None
    licence: CivitaiLicence = Field(default_factory=CivitaiLicence)
    nsfw_level: Count | None = None
    """Civitai's rating of the version: the ratings of its images, combined bit by bit."""
    images: Annotated[tuple[CivitaiImage, ...], Field(max_length=MAX_IMAGES)] = ()
    file: CivitaiFile | None = None
    """The file that is loaded. None if it is not known which one a download link means."""

    @property
    def label(self) -> str:
        """The name of the version in messages."""
        return f"version {self.version_id}"

    @property
    def loaded_version(self) -> str:
        """The value of status.source.version: MODEL@VERSION+FILE, without unknown parts."""
        model = "" if self.model_id is None else f"{self.model_id}@"
        file = "" if self.file is None else f"+{self.file.id}"
        return f"{model}{self.version_id}{file}"

    @property
    def file_name(self) -> str | None:
        """The value of status.source.file: the file's name in ASCII. None if it is not known."""
        name = None if self.file is None else self.file.name
        return None if name is None else re.sub(r"[^A-Za-z0-9 ._()+@-]", "_", name)[:128]
