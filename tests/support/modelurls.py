"""Urls in all usual forms, with their meaning or the message that rejects them.

The operator, the loader, the gateway and the CRD's rules are tested with the same tables.
"""

from __future__ import annotations

from sd_api.choices import ModelType
from sd_api.sources import (
    CivitaiModel,
    FileChoice,
    HubFile,
    HubRepo,
    Link,
    Meaning,
    TrainedId,
)

HUB = "https://huggingface.co"
REPO = HubRepo("org/name")
CIVITAI = "https://civitai.com/api/download/models/94640"

MEANT: dict[str, Meaning] = {
    "org/name": REPO,
    "org/name/": REPO,
    " org/name\n": REPO,
    "\torg/name\xa0": REPO,
    "org/name@main": HubRepo("org/name", "main"),
    "org/name@refs/pr/3": HubRepo("org/name", "refs/pr/3"),
    "org/name@v1.0-beta": HubRepo("org/name", "v1.0-beta"),
    f"{HUB}/org/name": REPO,
    f"{HUB}/org/name/": REPO,
    f" {HUB}/org/name ": REPO,
    f"{HUB}:443/org/name": REPO,
    f"{HUB}/org/name?library=diffusers": REPO,
    f"{HUB}/org/name/?not-for-all-audiences=true": REPO,
    f"{HUB}/org/name#usage": REPO,
    "https://www.huggingface.co/org/name": REPO,
    "https://hf.co/org/name": REPO,
    "HTTPS://HuggingFace.co/org/name": REPO,
    "http://huggingface.co/org/name": REPO,
    "http://hf.co/org/name/": REPO,
    "https://hf.co/org/name@main": HubRepo("org/name", "main"),
    f"{HUB}/org/name@refs/pr/1?x=1": HubRepo("org/name", "refs/pr/1"),
    f"{HUB}/org/name/resolve/main": HubRepo("org/name", "main"),
    f"{HUB}/org/name/resolve/main/?download=true": HubRepo("org/name", "main"),
    f"{HUB}/org/name/resolve/refs/pr/1": HubRepo("org/name", "refs/pr/1"),
    "huggingface.co/org/name": REPO,
    "www.huggingface.co/org/name": REPO,
    "hf.co/org/name/tree/main": HubRepo("org/name", "main"),
    f"{HUB}/org/name/tree/main": HubRepo("org/name", "main"),
    f"{HUB}/org/name/tree/main/": HubRepo("org/name", "main"),
    f"{HUB}/org/name/tree/v2?x=1": HubRepo("org/name", "v2"),
    f"{HUB}/org/name/tree/refs%2Fpr%2F1": HubRepo("org/name", "refs/pr/1"),
    f"{HUB}/org/name/tree/refs/pr/1": HubRepo("org/name", "refs/pr/1"),
    f"{HUB}/org/name/commit/0123abc": HubRepo("org/name", "0123abc"),
    f"{HUB}/org/name/commits/main": HubRepo("org/name", "main"),
    f"{HUB}/org/name/resolve/main/a/b.ckpt?download=true": HubFile("org/name", "main", "a/b.ckpt"),
    f"{HUB}/org/name/blob/main/b.ckpt": HubFile("org/name", "main", "b.ckpt"),
    f"{HUB}/org/name/raw/main/b.ckpt": HubFile("org/name", "main", "b.ckpt"),
    "http://huggingface.co/org/name/blob/v1/b.ckpt#L1": HubFile("org/name", "v1", "b.ckpt"),
    "huggingface.co/org/name/resolve/main/a%20b.ckpt": HubFile("org/name", "main", "a b.ckpt"),
    f"{HUB}/org/name/resolve/main/a/b.ckpt/": HubFile("org/name", "main", "a/b.ckpt"),
    f"{HUB}/org/name/blob/main/b.ckpt/?download=true": HubFile("org/name", "main", "b.ckpt"),
    f"{HUB}/org/name/blob/main/": HubRepo("org/name", "main"),
    "hf://org/name/b.ckpt?download=true": HubFile("org/name", "main", "b.ckpt"),
    "hf://org/name@v2?x=1": HubRepo("org/name", "v2"),
    "hf://org/name": REPO,
    "hf://org/name/": REPO,
    "hf://models/org/name": REPO,
    "hf://org/name@v2": HubRepo("org/name", "v2"),
    "hf://org/name@refs/pr/1": HubRepo("org/name", "refs/pr/1"),
    "hf://org/name@my%2Fbranch": HubRepo("org/name", "my/branch"),
    "hf://org/name/a/b.ckpt": HubFile("org/name", "main", "a/b.ckpt"),
    "hf://org/name@v2/b.ckpt": HubFile("org/name", "v2", "b.ckpt"),
    "hf://org/name@refs/pr/1/b.ckpt": HubFile("org/name", "refs/pr/1", "b.ckpt"),
    CIVITAI: Link(CIVITAI),
    f"{CIVITAI}\n": Link(CIVITAI),
    f"{CIVITAI}?type=Model&format=SafeTensor": Link(f"{CIVITAI}?type=Model&format=SafeTensor"),
    "civitai.com/api/download/models/94640": Link(CIVITAI),
    "https://civitai.com/models/1": CivitaiModel(1, None),
    "https://civitai.com/models/1/": CivitaiModel(1, None),
    " civitai.com/models/1/some-slug\n": CivitaiModel(1, None),
    "https://civitai.com/models/1/some-slug?modelVersionId=2": CivitaiModel(1, 2),
    "https://www.civitai.com:443/models/1?modelVersionId=2#comments": CivitaiModel(1, 2),
    "https://civitai.red/models/1/a%20b?dialog=x&modelVersionId=2": CivitaiModel(1, 2),
    "https://civitai.com/models/1?modelVersionId=2&format=SafeTensor&size=full&fp=fp32": (
        CivitaiModel(1, 2, FileChoice(format="SafeTensor", size="full", fp="fp32"))
    ),
    "https://civitai.com/models/1?type=Pruned%20Model": (
        CivitaiModel(1, None, FileChoice(type="Pruned Model"))
    ),
    "https://civitai.red/model-versions/2": CivitaiModel(None, 2),
    "https://civitai.com/api/v1/models/1": CivitaiModel(1, None),
    "https://civitai.com/api/v1/model-versions/2?fileId=3": (
        CivitaiModel(None, 2, FileChoice(file_id=3))
    ),
    "urn:air:sdxl:checkpoint:civitai:1@2": CivitaiModel(1, 2),
    "URN:AIR:sd1:lora:Civitai:1@2": CivitaiModel(1, 2),
    "air:sdxl:lora:civitai:1": CivitaiModel(1, None),
    "sdxl:lora:civitai:1@2": CivitaiModel(1, 2),
    "civitai:1@2": CivitaiModel(1, 2),
    "urn:air:sdxl:checkpoint:civitai:1@2+3.safetensor": (
        CivitaiModel(1, 2, FileChoice(file_id=3, format="safetensor"))
    ),
    "urn:air:sdxl:checkpoint:civitai:1@2?fp=fp16": CivitaiModel(1, 2, FileChoice(fp="fp16")),
    "https://modelscope.cn/models/o/n/resolve/master/x.safetensors": (
        Link("https://modelscope.cn/models/o/n/resolve/master/x.safetensors")
    ),
    "github.com/o/n/releases/download/v1/x.safetensors": (
        Link("https://github.com/o/n/releases/download/v1/x.safetensors")
    ),
    "https://github.com/o/n/blob/main/x.ckpt?raw=true": (
        Link("https://github.com/o/n/blob/main/x.ckpt?raw=true")
    ),
    "https://www.dropbox.com/s/k/x.ckpt?dl=1": Link("https://www.dropbox.com/s/k/x.ckpt?dl=1"),
    "https://drive.google.com/uc?export=download&id=k": (
        Link("https://drive.google.com/uc?export=download&id=k")
    ),
    "example.com/files/x.bin": Link("https://example.com/files/x.bin"),
    "files.example.com:8443/a/b?c": Link("https://files.example.com:8443/a/b?c"),
    "http://example.com/x": Link("http://example.com/x"),
    "https://me:pw@huggingface.co/org/name": Link("https://me:pw@huggingface.co/org/name"),
    f"{HUB}.evil.example/org/name": Link(f"{HUB}.evil.example/org/name"),
    "hf://huggingface.co/org/name": REPO,
    "hf://hf.co/org/name@v2/b.ckpt": HubFile("org/name", "v2", "b.ckpt"),
    f"{HUB}/datasets/o/n/blob/main/a/x": Link(f"{HUB}/datasets/o/n/resolve/main/a/x"),
    "hf.co/spaces/o/n/raw/main/x": Link("https://hf.co/spaces/o/n/resolve/main/x"),
    f"{HUB}/datasets/o/n/resolve/main/x": Link(f"{HUB}/datasets/o/n/resolve/main/x"),
    "http://hf.co/datasets/o/n/resolve/main/x": Link("https://hf.co/datasets/o/n/resolve/main/x"),
}
"""Accepted urls and their meaning, for every model type except huggingface and api_trained."""

OBJECT_STORE = "is in an object store, which the loader does not read; give an https link"
REGISTRY = "is in a container registry, which the loader does not read; give"
GIT = "is an address for git, which the loader does not run; give a Hugging Face repo as ORG/NAME"
SCHEME = "has a scheme that the loader does not read; give a Hugging Face repo id (ORG/NAME) or an"
NO_NUMBER = "has a modelVersionId that is not a number; copy the address of the version's page"
AIR = "is a resource identifier (AIR) that does not name a model of Civitai; give urn:air:ECOSYSTEM"
MODELSCOPE = "names a repo of ModelScope, not a file; give the link to the file, https://"
GITHUB = "is a page of GitHub, not a file; give the link to the file, https://github.com/ORG/NAME/"
DRIVE = "is a page of Google Drive, not a file; give the download link, https://drive."
DROPBOX = "is a page of Dropbox, not a file; write dl=1 instead of dl=0 in the link"
GALLERY = "is a page of a site whose pages the loader does not read; give the link of the page's"
WEB_PAGE = "is a web page, not a file; give the link of the page's download button"
OTHER_KIND = "is not a model's repo; give ORG/NAME, or an http(s) link to a file"
OTHER_PAGE = "is on the Hugging Face Hub, but neither a model's repo nor one of its files; give"
FOLDER = "is a folder of a repo, or a branch with a slash in its name; give ORG/NAME with the"
OWN_PAGE = "is a page of the Hub, not a model's repo; give ORG/NAME"
CIVITAI_OTHER = "is a page of Civitai, but not of a model; give the model's page, https://civitai"
BLANK = "is an http(s) link with a blank in it; write the blank as %20, or remove what is not part"
QUOTED = "begins with a quotation mark or a bracket; give the address alone"
MISTYPED = "has a mistyped scheme; begin the link with https:// once"
PUNCTUATED = "ends with a punctuation mark; give it without this mark"
NO_SLASHES = "has no // after its scheme; give ORG/NAME, or hf://ORG/NAME"
REST_OF_PAGE = (
    "has the rest of a page's address after the repo id; give ORG/NAME, and a branch, tag"
)
TAG = "has a tag after the repo id; give ORG/NAME, a precision such as fp16 in spec.revision, and"
DOT_GIT = "ends with .git; give the Hugging Face repo as ORG/NAME"
BARE = "must be a Hugging Face repo id with its owner (ORG/NAME) or an http(s) link; a bare id"
NEITHER = "must be a Hugging Face repo id (ORG/NAME) or an http(s) link"
NOT_TRAINED = "must be a trained model's id or an http(s) link, as spec.modelType is api_trained"
NOT_ON_THE_HUB = "must be a Hugging Face repo id (ORG/NAME), a repo's page or a link to one of its"

REFUSED: dict[str, str] = {
    "s3://bucket/key.ckpt": OBJECT_STORE,
    "S3://bucket/key.ckpt": OBJECT_STORE,
    " s3a://bucket/key.ckpt": OBJECT_STORE,
    "gs://bucket/a b.ckpt": OBJECT_STORE,
    "abfss://box@account/x": OBJECT_STORE,
    "oci://registry.example.com/model:v1": REGISTRY,
    "docker://registry.example.com/model": REGISTRY,
    "ghcr.io/org/name:tag": REGISTRY,
    "ghcr.io/name:tag": REGISTRY,
    "https://ghcr.io/org/name": REGISTRY,
    "us.gcr.io/org/name": REGISTRY,
    "quay.io/org/name@sha256:0123": REGISTRY,
    "git+ssh://git@hf.co/org/name": GIT,
    "git+https://huggingface.co/org/name": GIT,
    "ssh://git@hf.co/org/name": GIT,
    "git@hf.co:org/name": GIT,
    "ftp://example.com/x": SCHEME,
    "file:///etc/passwd": SCHEME,
    "pvc://models/x": SCHEME,
    "https://civitai.com/models": CIVITAI_OTHER,
    "civitai.com/models": CIVITAI_OTHER,
    "civitai.com/models:x": CIVITAI_OTHER,
    "https://civitai.com/images/1": CIVITAI_OTHER,
    "https://civitai.com/models/1/slug/more": CIVITAI_OTHER,
    "https://civitai.com/api/v1/images": CIVITAI_OTHER,
    "https://civitai.com/models/some-name": CIVITAI_OTHER,
    "https://civitai.com/models/1?modelVersionId=": NO_NUMBER,
    "https://civitai.com/models/1?modelVersionId=latest": NO_NUMBER,
    "civitai.com/models/1/slug?x=1&modelVersionId=2a#top": NO_NUMBER,
    "urn:air:sdxl:checkpoint:huggingface:org/name@main": AIR,
    "urn:air:other:other:civitai-r2:assets@sam.pth": AIR,
    "air:sdxl:lora:civitai:x": AIR,
    "urn:isbn:0451450523": AIR,
    "modelscope://org/name": MODELSCOPE,
    "https://modelscope.cn/models/org/name": MODELSCOPE,
    "www.modelscope.cn/models/org/name/summary": MODELSCOPE,
    "https://modelscope.cn/models/org/name/file/view/master/x.safetensors": MODELSCOPE,
    "https://github.com/org/name": GITHUB,
    "github.com/org/name.git": GITHUB,
    "https://github.com/org/name/blob/main/x.ckpt": GITHUB,
    "https://github.com/org/name/releases/tag/v1": GITHUB,
    "https://github.com/org/name/a b": BLANK,
    "https://drive.google.com/file/d/0a1B/view?usp=sharing": DRIVE,
    "https://www.dropbox.com/s/k/x.ckpt?dl=0": DROPBOX,
    "https://tensor.art/models/1/name": GALLERY,
    "https://www.liblib.art/modelinfo/0a1b": GALLERY,
    "https://www.seaart.ai/models/detail/1": GALLERY,
    "https://openmodeldb.info/models/4x-name": GALLERY,
    "https://www.kaggle.com/models/org/name": GALLERY,
    "https://example.com/models/x.html": WEB_PAGE,
    "http://example.com/x.HTM?id=1": WEB_PAGE,
    "https://civitai.com/user/someone": CIVITAI_OTHER,
    "hf://datasets/org/name": OTHER_KIND,
    "hf://spaces/org/name": OTHER_KIND,
    HUB: OTHER_PAGE,
    f"{HUB}/gpt2": OTHER_PAGE,
    "huggingface.co/gpt2": OTHER_PAGE,
    f"{HUB}/datasets/org/name": OWN_PAGE,
    f"{HUB}/spaces/org/name": OWN_PAGE,
    f"{HUB}/docs/diffusers": OWN_PAGE,
    f"{HUB}/docs/diffusers/index": OWN_PAGE,
    f"{HUB}/docs/x.git": OWN_PAGE,
    f"{HUB}/papers/2112.10752": OWN_PAGE,
    f"{HUB}/blog/sdxl": OWN_PAGE,
    f"{HUB}/settings/tokens": OWN_PAGE,
    f"{HUB}/datasets/name": OWN_PAGE,
    f"{HUB}/datasets/name/resolve/main": OWN_PAGE,
    f"{HUB}/spaces/foo": OWN_PAGE,
    f"{HUB}/collections/org/name-1": OWN_PAGE,
    f"{HUB}/models/name": OWN_PAGE,
    f"{HUB}/organizations/org/activity": OWN_PAGE,
    f"{HUB}/api/models": OWN_PAGE,
    "hf.co/docs/diffusers": OWN_PAGE,
    f"{HUB}/org/name/tree/main/vae": FOLDER,
    f"{HUB}/org/name/tree/feature/x/?y=1": FOLDER,
    "hf.co/org/name/tree/refs/pr/1/vae": FOLDER,
    f"{HUB}/org/name/discussions/3": OTHER_PAGE,
    f"{HUB}/models?search=sdxl": OWN_PAGE,
    "huggingface.co/gpt2.git": OTHER_PAGE,
    "huggingface.co/gpt2:fp16": OTHER_PAGE,
    "hf://org": OTHER_PAGE,
    "org/name:fp16": TAG,
    "org/name:latest": TAG,
    "org/name@v1.0:fp16": TAG,
    "org/name/tree/main": REST_OF_PAGE,
    "org/name/blob/main/x.ckpt": REST_OF_PAGE,
    "org/name?library=diffusers": REST_OF_PAGE,
    "org/name/#usage": REST_OF_PAGE,
    "org/name#usage": REST_OF_PAGE,
    "hf:org/name": NO_SLASHES,
    "HF:/org/name": NO_SLASHES,
    "huggingface:org/name": NO_SLASHES,
    '"org/name"': QUOTED,
    "'org/name'": QUOTED,
    " “https://example.com/x”": QUOTED,
    "org/name.git": DOT_GIT,
    f"{HUB}/org/name.git": DOT_GIT,
    "[name](https://huggingface.co/org/name)": QUOTED,
    "<https://example.com/x>": QUOTED,
    "(org/name)": QUOTED,
    "{{ url }}": QUOTED,
    "https:/huggingface.co/org/name": MISTYPED,
    "https:huggingface.co/org/name": MISTYPED,
    "http//huggingface.co/org/name": MISTYPED,
    "//huggingface.co/org/name": MISTYPED,
    "https:\\\\example.com\\x": MISTYPED,
    "https://https://example.com/x.html": MISTYPED,
    "https://http//example.com/a b": MISTYPED,
    "org/name.": PUNCTUATED,
    "org/name,": PUNCTUATED,
    f"{HUB}/org/name).": PUNCTUATED,
    'hf.co/org/name"': PUNCTUATED,
    "huggingface.co/gpt2.": OTHER_PAGE,
    f"{HUB}/docs/name.": OWN_PAGE,
    "gpt2": BARE,
    "x.ckpt": BARE,
    "huggingface.co": BARE,
    "": NEITHER,
    " ": NEITHER,
    "not a link": NEITHER,
    "org / name": NEITHER,
    "git clone https://huggingface.co/org/name": NEITHER,
    "https://example.com/a b": BLANK,
    "https://": NEITHER,
    "https:///x": NEITHER,
    "/etc/passwd": NEITHER,
    "../name": NEITHER,
    "org/..": NEITHER,
    "org/-name": NEITHER,
    "org/na--me": NEITHER,
    "org/name/more": NEITHER,
    "localhost:8000/x": NEITHER,
}
"""Rejected urls, for every model type except api_trained.

The value is the start of the message, without the name of the field before it.
"""

TRAINED: dict[str, Meaning | str] = {
    "abc-1": TrainedId("abc-1"),
    " abc-1\n": TrainedId("abc-1"),
    CIVITAI: Link(CIVITAI),
    f"{HUB}/org/name": REPO,
    f"{HUB}/org/name/resolve/main/b.ckpt": HubFile("org/name", "main", "b.ckpt"),
    "s3://bucket/key.ckpt": OBJECT_STORE,
    f"{HUB}/spaces/org/name": OWN_PAGE,
    "org/name": NOT_TRAINED,
    "org/name:fp16": NOT_TRAINED,
    "../x": NOT_TRAINED,
    "two words": NOT_TRAINED,
    "": NOT_TRAINED,
}
"""Urls with modelType api_trained: their meaning, or the message as in REFUSED."""

OTHER_TYPES = tuple(kind for kind in ModelType if kind is not ModelType.API_TRAINED)
