"""Sources of models: finds the source that a url means, and downloads it or resumes its download.

`locate` finds the source, `civitai.look_up` finds the file of a model on Civitai, and `fetch`
downloads it. There is one module for each kind of source: `link`, `hub` (with `hub_api`), `local`,
and `archive` for a zip of a folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sd_api.choices import ModelType
from sd_api.sources import HubFile, HubRepo, Link
from sd_loader.handover import AtHand, Fetched
from sd_loader.net.client import HttpClient
from sd_loader.progress import Report
from sd_loader.source.local import take_file
from sd_loader.source.locate import LocalFile, Place
from sd_loader.source.peek import Peek, no_peek
from sd_loader.source.ref import Checks, SourceRef


def fetch(
    place: Place,
    ref: SourceRef,
    checks: Checks,
    client: HttpClient,
    into: Path,
    report: Report,
    at_hand: AtHand,
    peek: Peek = no_peek,
) -> Fetched:
    """Download a source into a folder, or resume its download.

    place: the place that `civitai.look_up` found. at_hand: takes files of the Hub from the volume
    instead of downloading them. peek: called with a single file of the Hub before its download.
    """
    max_bytes = client.settings.max_bytes
    # Imported here: a local file needs no HTTP, which takes 0.1 s to import.
    match place:
        case HubRepo():
            from sd_loader.source.hub import fetch_repo

            fetched = fetch_repo(place, ref, checks, client, into, report, at_hand, peek)
        case HubFile():
            from sd_loader.source.hub import fetch_file

            fetched = fetch_file(place, ref, checks, client, into, report, at_hand, peek)
        case LocalFile():
            fetched = take_file(place, checks, max_bytes, into)
        case Link(url):
            from sd_loader.source.link import fetch_link

            fetched = fetch_link(replace(ref, url=url), checks, client, into, report)
    if ref.model_type is ModelType.API_TRAINED:
        from sd_loader.source.archive import unpack_pipeline  # imported here, as above

        return unpack_pipeline(fetched, ref, checks, max_bytes, into)
    return fetched
