"""The forms of a model's url, as patterns: those that are read, and those that are refused.

The patterns are written for RE2 and for Python, so that the CRD's rules and `sd_api.sources` reach
the same verdict. To read a new form, add its pattern here and its meaning in `sources`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BLANKS = " \t\r\n\f\v\xa0"
"""Characters that are ignored around a url, where people and YAML leave them, but not inside it."""
_BLANK = r" \t\r\n\f\v\xa0"
_EDGE = f"[{_BLANK}]*"
_REST = f"[^{_BLANK}]*"
_QUERY = f"(?:[?#]{_REST})?"

# The Hub allows neither two dots nor two dashes in a row, nor one at an end of a name.
_NAME = r"[A-Za-z0-9_]+(?:(?:\.-?|-\.?)[A-Za-z0-9_]+)*"
_REPO = f"{_NAME}/{_NAME}"
_OWNER = "[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+)*"
"""An owner that cannot be a host: it has no dot."""
_REVISION = r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9._-])?"
_REVISION_IN_PATH = f"refs/(?:pr|convert)/[^/?#{_BLANK}]+|[^/?#{_BLANK}]+"
_HUB_HOST = r"(?i:www\.)?(?i:huggingface\.co|hf\.co)(?::443)?"
_HUB = f"(?:(?i:https?)://)?{_HUB_HOST}"

PAGE_PATH = f"/({_REPO})(?:@({_REVISION}))?/?{_QUERY}"
_FILE = f"([^?#{_BLANK}]*[^/?#{_BLANK}])/?{_QUERY}"
TREE_PATH = f"/({_REPO})/(?:tree|commits?|resolve|blob|raw)/({_REVISION_IN_PATH})/?{_QUERY}"
FILE_PATH = f"/({_REPO})/(?:resolve|blob|raw|blame)/({_REVISION_IN_PATH})/{_FILE}"
"""PAGE_PATH, TREE_PATH and FILE_PATH are paths of the Hub and its mirrors: of a repo, of a repo at
a revision, and of one file."""

HUB_REPO_PATTERN = f"^{_REPO}$"
BARE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
LINK_PATTERN = r"^https?://[^\s/?#]+([/?#]\S*)?$"

REPO_ID = f"({_REPO})(?:@({_REVISION}))?/?"
HUB_PAGE = f"{_HUB}{PAGE_PATH}"
HUB_TREE = f"{_HUB}{TREE_PATH}"
HUB_FILE = f"{_HUB}{FILE_PATH}"
_PART = f"[^/?#{_BLANK}]+"
_OTHER_REPO = f"(?:datasets|spaces)/{_PART}(?:/{_PART})?"
PAGE_OF_OTHER_FILE = f"({_HUB}/{_OTHER_REPO})/(?:blob|raw)/({_PART}/{_REST})"
"""The page of a file of a dataset or a Space. The file itself is at /resolve/."""
HUB_OTHER_FILE = (
    f"(?:{_HUB}/(?:api/{_PART}/{_PART}/|{_REST}/resolve/{_PART}/){_REST}"
    f"|{_HUB}/{_OTHER_REPO}/(?:blob|raw)/{_PART}/{_REST})"
)
"""Urls of the Hub that are read as ordinary links, such as files of datasets and Spaces."""
_HF = f"(?i:hf)://(?:{_HUB_HOST}/)?"
HF_REPO = f"{_HF}(?:models/)?({_REPO})(?:@({_REVISION_IN_PATH}))?/?{_QUERY}"
HF_FILE = f"{_HF}(?:models/)?({_REPO})(?:@({_REVISION_IN_PATH}))?/{_FILE}"
HUB_FOLDER = f"{_HUB}/{_REPO}/tree/(?:{_REVISION_IN_PATH})/{_FILE}"
"""A folder in a repo, or a branch whose name has a slash."""
LINK = f"(?i:https?)://[^/?#{_BLANK}]+(?:[/?#]{_REST})?"
HOST_AND_PATH = (
    rf"[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{{2,}}(?::[0-9]+)?/[^/{_BLANK}]+/{_REST}"
)
"""A link without its scheme. Its path has two parts or more: HOST/NAME would be a repo id."""
_CIVITAI = r"(?i:www\.)?(?i:civitai\.(?:com|red|green))(?::443)?"
CIVITAI_ORIGIN = f"(?i:https?)://{_CIVITAI}"
_CIVITAI_HOST = f"(?:(?i:https?)://)?{_CIVITAI}"
NUMBER = "[0-9]{1,15}"
"""A number of a model, version or file at Civitai."""
CIVITAI_PAGE = f"{_CIVITAI_HOST}/(?:api/v1/)?models/({NUMBER})(?:/{_PART})?/?({_QUERY})"
CIVITAI_VERSION = f"{_CIVITAI_HOST}/(?:api/v1/)?model-versions/({NUMBER})/?({_QUERY})"
CIVITAI_AIR = (
    "(?:(?:(?i:urn):)?(?i:air):)?(?:[A-Za-z0-9_-]+:){0,2}(?i:civitai):"
    rf"({NUMBER})(?:@({NUMBER}))?(?:\+({NUMBER}))?(?:\.([A-Za-z]+))?({_QUERY})"
)
"""CIVITAI_PAGE and CIVITAI_VERSION are urls of a model and a version at Civitai, also at its API.
CIVITAI_AIR is the resource identifier of a model."""
_OWN_PAGES = (
    "(?:api|blog|chat|collections|datasets|docs|enterprise|join|learn|login|models|new|notifications"
    "|organizations|papers|posts|pricing|search|settings|spaces|tasks)"
)
"""First words of the Hub's own pages, which therefore are not names of a repo's owner."""
_OWN_PAGE = f"{_HUB}/{_OWN_PAGES}(?:[/?#]{_REST})?"
_BARE_ID = BARE_ID_PATTERN.strip("^$")

_LINKS = (
    *(HUB_PAGE, HUB_TREE, HUB_FILE, HUB_OTHER_FILE, HF_REPO, HF_FILE),
    *(CIVITAI_AIR, LINK, HOST_AND_PATH),
)


def whole(*forms: str) -> str:
    """Return the pattern of a whole url in one of these forms, with blanks around it."""
    return f"^{_EDGE}(?:{'|'.join(forms)}){_EDGE}$"


def _begins(form: str) -> str:
    return f"^{_EDGE}(?:{form})"


WHOLE_REPO = whole(HUB_PAGE, HUB_TREE, HF_REPO, REPO_ID)
"""All forms that mean a whole repo of the Hub."""
LINK_OR_REPO = whole(*_LINKS, REPO_ID)
LINK_OR_TRAINED_ID = whole(*_LINKS, _BARE_ID)

_BEFORE_REVISION = (
    f"(?:(?:(?:{_HF}(?:models/)?|{_HUB}/)?{_REPO}@)"
    f"|(?:{_HUB}/{_REPO}/(?:tree|commits?|resolve|blob|raw|blame)/))"
)
NAMES_REVISION = f"^{_EDGE}{_BEFORE_REVISION}"
"""Urls of the Hub that name a revision."""
NAMES_THIS_REVISION = (f"^{_EDGE}{_BEFORE_REVISION}(?:", f")(?:[/?#]|{_EDGE}$)")
"""The pattern of the Hub's urls that name a certain revision: put it between both parts."""


@dataclass(frozen=True)
class Refusal:
    """A kind of url that is refused, and the words for it."""

    pattern: str

    words: str
    """The rest of a sentence that begins with the field's name: what is wrong, and what to give
    instead."""

    unless: str | None = None
    """Pattern of the urls that are not of this kind although they match."""

    concerns_trained: bool = True
    """Whether urls of modelType api_trained are refused with these words as well."""

    def matches(self, url: str) -> bool:
        """Whether a url is of this kind."""
        excepted = self.unless is not None and re.search(self.unless, url) is not None
        return re.search(self.pattern, url) is not None and not excepted


_MARKS = r"[.,;!)\]}>\"\x27\x60”]+"
_PUNCTUATED = f"(?:{_HUB}/)?{_REPO}{_MARKS}"
"""A repo id or a repo's page, copied from a text together with the mark that followed it."""
_MISTYPED = (
    rf"(?i:https?)(?::/[^/{_BLANK}]|:[A-Za-z0-9-]+\.|//|:?\\\\|://(?i:https?):?//)|//[^/{_BLANK}]"
)
"""The beginning of a link whose scheme is there twice, or lacks a colon or a slash."""
_OBJECT_STORE = "(?i:s3[an]?|gs|gcs|az|azure|adl|abfss?|wasbs?|r2|b2|oss|cos|swift|minio)://"
_REGISTRY = (
    r"(?i:oci|docker|ollama)://"
    r"|(?:(?i:https?)://)?(?:[A-Za-z0-9-]+\.)*(?i:ghcr|quay|docker|gcr|nvcr|azurecr)\.(?i:io)/"
)
_GIT = r"(?i:git|ssh)(?:\+[A-Za-z]+)?://|git@"
_READ_SCHEME = "(?i:https?|hf)://"
_AIR = "(?i:urn:(?:air:)?|air:)"
_WEB = r"(?:(?i:https?)://)?(?:[A-Za-z0-9-]+\.)*"
_MODELSCOPE = rf"(?:(?i:modelscope)://|{_WEB}(?i:modelscope\.(?:cn|ai))/models/){_REST}"
_MODELSCOPE_FILE = f"{_WEB}[^/]+/models/{_PART}/{_PART}/resolve/"
_GITHUB = rf"(?:(?i:https?)://)?(?i:www\.)?(?i:github\.com)/{_PART}/{_PART}{_REST}"
_GITHUB_FILE = (
    f"{_WEB}[^/]+/{_PART}/{_PART}/(?:raw|archive|zipball|tarball|releases/(?:latest/)?download)/"
    f"|{_WEB}[^/]+/user-attachments/|{_REST}[?&]raw=(?:1|true)"
)
_GOOGLE_DRIVE = rf"{_WEB}(?i:drive\.google\.com)/(?:file|open|drive)(?:[/?#]{_REST})?"
_DROPBOX = rf"{_WEB}(?i:dropbox\.com)/{_PART}/{_REST}[?&]dl=0{_REST}"
_GALLERIES = (
    r"tensor\.art|tusiart\.com|seaart\.ai|liblib\.(?:art|ai)|shakker\.ai|openmodeldb\.info"
    r"|civarchive\.com|civitaiarchive\.com|kaggle\.com"
)
"""Sites with pages of models."""
_GALLERY = rf"{_WEB}(?i:{_GALLERIES})/(?:[a-z]{{2}}/)?(?:models?|modelinfo)(?:[/?#]{_REST})?"
_WEB_PAGE = rf"(?i:https?)://[^/?#{_BLANK}]+/[^?#{_BLANK}]*\.(?i:html?)(?:[?#]{_REST})?"
_MISTAKEN_VERSION = (
    f"{_CIVITAI_HOST}/[^#{_BLANK}]*[?&]modelVersionId="
    f"(?:[0-9]*[^0-9&#{_BLANK}]|&|#|[0-9]{{16}}|{_EDGE}$)"
)

NAMED = (
    Refusal(
        _begins(_OBJECT_STORE),
        "is in an object store, which the loader does not read; give an https link to the file,"
        " for example a presigned one",
    ),
    Refusal(
        _begins(_REGISTRY),
        "is in a container registry, which the loader does not read; give a Hugging Face repo id"
        " (ORG/NAME) or an http(s) link",
    ),
    Refusal(
        _begins(_GIT),
        "is an address for git, which the loader does not run; give a Hugging Face repo as"
        " ORG/NAME, and its branch, tag or commit in spec.gitRevision",
    ),
    Refusal(
        _begins("[A-Za-z][A-Za-z0-9+.-]*://"),
        "has a scheme that the loader does not read; give a Hugging Face repo id (ORG/NAME) or an"
        " http(s) link",
        unless=_begins(f"{_READ_SCHEME}|{_OBJECT_STORE}|{_REGISTRY}|{_GIT}|(?i:modelscope)://"),
    ),
    Refusal(
        whole(_MODELSCOPE),
        "names a repo of ModelScope, not a file; give the link to the file,"
        " https://modelscope.cn/models/ORG/NAME/resolve/master/FILE, or the same model's Hugging"
        " Face repo as ORG/NAME",
        unless=_begins(_MODELSCOPE_FILE),
    ),
    Refusal(
        whole(_GITHUB),
        "is a page of GitHub, not a file; give the link to the file,"
        " https://github.com/ORG/NAME/releases/download/TAG/FILE or"
        " https://github.com/ORG/NAME/raw/REVISION/FILE",
        unless=_begins(_GITHUB_FILE),
    ),
    Refusal(
        whole(_GOOGLE_DRIVE),
        "is a page of Google Drive, not a file; give the download link,"
        " https://drive.usercontent.google.com/download?id=ID&confirm=t, where ID is the id of the"
        " file in the address of the page",
    ),
    Refusal(
        whole(_DROPBOX),
        "is a page of Dropbox, not a file; write dl=1 instead of dl=0 in the link",
    ),
    Refusal(
        whole(_GALLERY),
        "is a page of a site whose pages the loader does not read; give the link of the page's"
        " download button, or the same model's page at Civitai or at the Hugging Face Hub",
    ),
    Refusal(
        whole(_WEB_PAGE),
        "is a web page, not a file; give the link of the page's download button",
        unless=_begins(f"{_REGISTRY}|{_CIVITAI_HOST}/|{_HUB}/|{_MISTYPED}")
        + f"|{whole(_MODELSCOPE, _GITHUB, _GOOGLE_DRIVE, _DROPBOX, _GALLERY)}",
    ),
    Refusal(
        _begins(_AIR),
        "is a resource identifier (AIR) that does not name a model of Civitai; give"
        " urn:air:ECOSYSTEM:TYPE:civitai:MODEL@VERSION, a Hugging Face repo id (ORG/NAME) or an"
        " http(s) link",
        unless=f"{whole(CIVITAI_AIR)}|{_begins('(?i:urn|air)://')}",
    ),
    Refusal(
        _begins(_MISTAKEN_VERSION),
        "has a modelVersionId that is not a number; copy the address of the version's page again,"
        " https://civitai.com/models/MODEL?modelVersionId=VERSION",
    ),
    Refusal(
        _begins(f"{_CIVITAI_HOST}/"),
        "is a page of Civitai, but not of a model; give the model's page,"
        " https://civitai.com/models/MODEL?modelVersionId=VERSION",
        unless=f"{_begins(f'{_CIVITAI_HOST}/api/(?:[a-z-]+/)*download/|{_MISTAKEN_VERSION}')}"
        f"|{whole(CIVITAI_PAGE, CIVITAI_VERSION)}",
    ),
    Refusal(
        _begins(f"(?i:https?)://[^{_BLANK}]+[{_BLANK}]+[^{_BLANK}]"),
        "is an http(s) link with a blank in it; write the blank as %20, or remove what is not part"
        " of the link",
        unless=_begins(f"{_CIVITAI_HOST}/|{_REGISTRY}|{_MISTYPED}"),
    ),
    Refusal(
        _begins(r"[\"\x27\x60“”<(\[{]"),
        "begins with a quotation mark or a bracket; give the address alone",
    ),
    Refusal(
        _begins(_MISTYPED),
        "has a mistyped scheme; begin the link with https:// once",
    ),
    Refusal(
        whole(_PUNCTUATED),
        "ends with a punctuation mark; give it without this mark",
        unless=_begins(
            f"{_REGISTRY}|{_CIVITAI_HOST}/|{_HUB}/{_OWN_PAGES}/"
            f"|{_HUB_HOST}/{_NAME}[^/{_BLANK}]*{_EDGE}$"
        ),
        concerns_trained=False,
    ),
    Refusal(
        _begins(f"(?i:hf|huggingface):/?[^/{_BLANK}]"),
        "has no // after its scheme; give ORG/NAME, or hf://ORG/NAME",
    ),
    Refusal(
        _begins(f"{_HF}(?:datasets|spaces|kernels|buckets)/"),
        "is not a model's repo; give ORG/NAME, or an http(s) link to a file",
    ),
    Refusal(
        whole(_OWN_PAGE),
        "is a page of the Hub, not a model's repo; give ORG/NAME",
        unless=whole(HUB_OTHER_FILE),
    ),
    Refusal(
        whole(HUB_FOLDER),
        "is a folder of a repo, or a branch with a slash in its name; give ORG/NAME with the branch"
        " in spec.gitRevision, or the link to a file",
        unless=whole(HUB_TREE, _OWN_PAGE),
    ),
    Refusal(
        whole(f"{_HUB}[/?#]{_REST}", f"(?i:https?)://{_HUB_HOST}", f"{_HF}{_REST}"),
        "is on the Hugging Face Hub, but neither a model's repo nor one of its files; give"
        " ORG/NAME, or the link to a file, https://huggingface.co/ORG/NAME/resolve/REVISION/FILE",
        unless=whole(
            *(HUB_PAGE, HUB_TREE, HUB_FILE, HUB_OTHER_FILE, HUB_FOLDER, HF_REPO, HF_FILE),
            *(_OWN_PAGE, f"{_HUB}/{_REPO}{_MARKS}"),
        ),
    ),
    Refusal(
        whole(f"{_REPO}(?:@{_REVISION})?:[^/{_BLANK}]*"),
        "has a tag after the repo id; give ORG/NAME, a precision such as fp16 in spec.revision, and"
        " a branch, tag or commit in spec.gitRevision",
        unless=_begins(f"{_REGISTRY}|{_CIVITAI_HOST}/|{_HUB_HOST}/"),
        concerns_trained=False,
    ),
    Refusal(
        whole(
            f"{_OWNER}/{_NAME}/?[?#]{_REST}",
            f"{_OWNER}/{_NAME}/(?:tree|commits?|resolve|blob|raw|blame)/{_REST}",
        ),
        "has the rest of a page's address after the repo id; give ORG/NAME, and a branch, tag or"
        " commit in spec.gitRevision, or the whole address, https://huggingface.co/ORG/NAME/…",
        concerns_trained=False,
    ),
    Refusal(
        whole(rf"(?:{_HUB}/)?{_REPO}\.git/?"),
        "ends with .git; give the Hugging Face repo as ORG/NAME",
        unless=_begins(
            f"{_REGISTRY}|{_CIVITAI_HOST}/|{_HUB}/{_OWN_PAGES}/|{_HUB_HOST}/{_NAME}/?{_EDGE}$"
        ),
        concerns_trained=False,
    ),
)
"""The kinds of url that get words of their own. No url is of two kinds."""

BARE_ID = Refusal(
    whole(_BARE_ID),
    "must be a Hugging Face repo id with its owner (ORG/NAME) or an http(s) link; a bare id needs"
    " spec.modelType: api_trained",
)
NEITHER = "must be a Hugging Face repo id (ORG/NAME) or an http(s) link"
"""The words for every url that is not read and that neither NAMED nor BARE_ID match."""
NOT_TRAINED = "must be a trained model's id or an http(s) link, as spec.modelType is api_trained"
"""The words for every url that is not read with api_trained and that NAMED does not match."""
NOT_A_SKELETON = "must be a diffusers repo of the Hub: ORG/NAME, or ORG/NAME@REVISION"
"""The message for a url in spec.components.from that is not a whole repo."""
NOT_ON_THE_HUB = (
    "must be a Hugging Face repo id (ORG/NAME), a repo's page or a link to one of its files, as"
    " spec.modelType is huggingface"
)
"""The words for an ordinary link with modelType huggingface. The CRD's rules cannot refuse it: they
do not know which links lead to a mirror of the Hub."""
