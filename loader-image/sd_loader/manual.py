"""`sd-loader load`: the request that a person at the command line means."""

from __future__ import annotations

import os
import re
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from sd_api.load import LoadRequest, Owner
from sd_api.loadhash import load_hash
from sd_api.names import NAME_MAX_LENGTH
from sd_api.reasons import Reason
from sd_api.spec import ModelType, Spec
from sd_loader.errors import LoaderError

NAMESPACE = "local"


def request_of(spec: Spec, model_id: str, *, credentials: bool = False) -> LoadRequest:
    """The load of this spec, owned by nobody but its model id; a path is a local file."""
    if spec.url is None:
        raise LoaderError(Reason.INVALID_SPEC, "url: a repo id, a link or a file is required")
    state = _file_state(spec.url)
    if state is not None:
        spec = spec.model_copy(
            update={
                "url": str(Path(spec.url).absolute()),
                "model_type": spec.model_type or ModelType.CUSTOM_CKPT,
            }
        )
    config = spec.original_config
    if config is not None and (of_config := _file_state(config)) is not None:
        state = f"{state} {of_config}"
        spec = spec.model_copy(update={"original_config": str(Path(config).absolute())})
    owner = owner_of(model_id)
    return LoadRequest(
        owner=owner,
        model_id=model_id,
        model_type=spec.effective_model_type(),
        url=spec.url,
        # A file that was changed in place is another source.
        load_hash=load_hash(spec, owner.name, reload=state),
        git_revision=spec.git_revision,
        revision=spec.revision,
        weights=spec.weights,
        from_safetensors=spec.from_safetensors,
        upcast_attention=spec.upcast_attention,
        sha256=spec.sha256,
        base_model=spec.base_model,
        prediction_type=spec.prediction_type,
        original_config=spec.original_config,
        verify=spec.verify,
        credentials=credentials,
    )


def _file_state(url: str) -> str | None:
    """Size and time of a file on this machine; None for a link or a repo."""
    # Unlike Path.is_file, isfile takes a repo id that no file could be named.
    if "://" in url or not os.path.isfile(url):  # noqa: PTH113
        return None
    status = Path(url).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def owner_of(model_id: str) -> Owner:
    """The owner of a model loaded by hand: the same for the same model id."""
    name = re.sub(r"[^a-z0-9.-]", "-", model_id.lower())[:NAME_MAX_LENGTH]
    uid = str(uuid5(NAMESPACE_URL, f"sd-loader:{model_id}"))
    return Owner(uid=uid, namespace=NAMESPACE, name=name)
