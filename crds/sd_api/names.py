"""Names that more than one side must agree on: API group, labels, Jobs, paths on the volume."""

from __future__ import annotations

import hashlib

GROUP = "sd-operator.dev"
VERSION = "v1alpha1"
KIND = "StableDiffusionModel"
PLURAL = "stablediffusionmodels"
SINGULAR = "stablediffusionmodel"
SHORT_NAME = "sdm"
API_VERSION = f"{GROUP}/{VERSION}"

FIELD_MANAGER = "sd-operator"
FINALIZER = f"{GROUP}/cleanup"

ANNOTATION_RELOAD = f"{GROUP}/reload"
"""Any new value loads the same spec again."""
ANNOTATION_REQUESTED_BY = f"{GROUP}/requested-by"
"""On models: REQUESTED_BY_GATEWAY if a caller of the gateway chose one of the sources."""
REQUESTED_BY_GATEWAY = "gateway"
ANNOTATION_SKIP_CLEANUP = f"{GROUP}/skip-cleanup"
"""The value "true" releases the finalizer without a clean-up Job."""
ANNOTATION_MODEL = f"{GROUP}/model"
"""On Jobs and Pods: <namespace>/<name> of the model they work for."""
ANNOTATION_LOAD_HASH = f"{GROUP}/load-hash"
"""On loader Jobs: the loadHash of the version that they load."""
ANNOTATION_ATTEMPT = f"{GROUP}/attempt"
"""On Jobs: counts the Jobs of the same model and loadHash, from 0."""
ANNOTATION_CLAIM_UID = f"{GROUP}/claim-uid"
"""On loader Jobs: the uid of the PersistentVolumeClaim that they load onto."""
ANNOTATION_GENERATION = f"{GROUP}/generation"
"""On loader Jobs: the metadata.generation of the model whose spec they load."""
ANNOTATION_SWEEP_UID = f"{GROUP}/sweep-uid"
"""On the Lease of sweeps: the uid of the Job that fulfilled the last request."""

LABEL_NAME = "app.kubernetes.io/name"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_MODEL_UID = f"{GROUP}/model-uid"
LABEL_ROLE = f"{GROUP}/role"
LABEL_MODELS = f"{GROUP}/models"
"""On PersistentVolumeClaims: the value "true" lets every model of the namespace use the PVC."""
LOADER_NAME = "sd-loader"
SWEEP_NAME = "sd-loader-sweep"
"""Value of the name label of sweep Jobs, which do not load a model."""
CHECK_NAME = "sd-loader-check"
"""Value of the name label of check Jobs, which read the published models of a PVC."""
SWEEP_LEASE = f"{FIELD_MANAGER}-sweep"
"""Name of the Lease by which a sweep is requested, in each namespace with models."""
ROLE_LOAD = "load"
ROLE_REMOVE = "remove"

CONTAINER_FETCH = "fetch"
CONTAINER_CONVERT = "convert"
CONTAINER_REMOVE = "remove"
CONTAINER_CHECK = "check"

NAME_MAX_LENGTH = 63
"""Maximum length of a model's name, which ends up in labels, folder names and URLs."""
MODEL_ID_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"

STORE_DIR = ".store"
OWNER_FILE = "owner.json"
"""In STORE_DIR, in the folder of a uid: the record of the model that owns the folder."""
STAGING_DIR = ".staging"
BLOBS_DIR = ".blobs"
INDEX_DIR = ".index"
"""Has the list of each namespace's models, for programs without access to the API server."""
RECEIPT_FILE = ".sd-receipt.json"
"""In the model's folder: its files, and how they were made."""
PREVIEW_FILE = "preview.png"
"""The rendered image in the model's folder. Programs that open the pipeline ignore it."""
PICTURE_FILE = "picture.jpg"
"""In the model's folder: a picture that its source shows."""
CARD_FILE = ".sd-card.json"
"""The whole model card in the model's folder."""
ADDED_FILES = frozenset({CARD_FILE, PICTURE_FILE, PREVIEW_FILE, RECEIPT_FILE})
"""Files that a load adds to the converted ones. The folder's digest and size leave them out."""


def job_name(model_name: str, uid: str, load_hash: str, attempt: int) -> str:
    """Name of a model's Job: readable, and the same for the same uid, loadHash and attempt."""
    digest = hashlib.sha256(f"{uid}/{load_hash}/{attempt}".encode()).hexdigest()[:10]
    return f"{model_name[:40].replace('.', '-').rstrip('-')}-{digest}"


def artifact_path(model_id: str) -> str:
    """Path of the published folder on the volume; a symbolic link that a reload moves."""
    return model_id


def immutable_path(uid: str, load_hash: str) -> str:
    """Path on the volume of one load's folder; its content never changes."""
    return f"{STORE_DIR}/{uid}/{load_hash}"


def picture_path(uid: str, load_hash: str) -> str:
    """Path on the volume of the picture from the source of one load."""
    return f"{immutable_path(uid, load_hash)}/{PICTURE_FILE}"


def preview_path(uid: str, load_hash: str) -> str:
    """Path on the volume of the image that one load rendered."""
    return f"{immutable_path(uid, load_hash)}/{PREVIEW_FILE}"
