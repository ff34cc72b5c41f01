"""A Civitai and a Hub on loopback, and look-ups that call them.

For example:

    with serving(tmp_path) as sources:
        assert sources.facts("org/Style.v2").name == "style-v2"
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devkit.fakecivitai import FakeCivitai, File, Model, Version
from devkit.fakehub import FakeHub
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.gateway.facts import Facts
from sd_operator.gateway.keys import Key
from sd_operator.gateway.lookups import Lookups, Pasted
from sd_operator.gateway.settings import GatewaySettings
from tests.support.gateway.gatewayrun import no_names

KEY = Key("painter", "art", b"")
WEIGHTS = b"weights" * 100


@dataclass
class Sources:
    """A Civitai and a Hub on loopback, and look-ups that may call them."""

    civitai: FakeCivitai
    hub: FakeHub
    folder: Path
    settings: GatewaySettings
    now: float = 0.0
    """The monotonic clock's time."""

    def lookups(self, **settings: Any) -> Lookups:
        """Return look-ups whose clock shows `now`."""
        clock = replace(SYSTEM_CLOCK, monotonic=lambda: self.now)
        return Lookups(replace(self.settings, **settings), clock, no_names)

    def ask(self, *urls: str, **settings: Any) -> list[Facts | None]:
        """Look up these urls, one after the other."""

        async def run() -> list[Facts | None]:
            made = self.lookups(**settings)
            try:
                return [await made.find(Pasted(url), KEY) for url in urls]
            finally:
                await made.close()

        return asyncio.run(run())

    def facts(self, url: str, **settings: Any) -> Facts:
        """Look up a url that names a source, and return the facts."""
        (found,) = self.ask(url, **settings)
        assert found is not None
        return found

    @property
    def requests(self) -> list[Any]:
        """All requests that Civitai and the Hub received."""
        return [*self.civitai.requests, *self.hub.requests]


@contextmanager
def serving(folder: Path) -> Iterator[Sources]:
    """Serve the model 7 at Civitai, and the repo org/Style.v2 at the Hub."""
    weights = folder / "weights"
    weights.write_bytes(WEIGHTS)
    repo = folder / "repo"
    repo.mkdir()
    (repo / "style.safetensors").write_bytes(WEIGHTS)
    with ExitStack() as stack:
        civitai, hub = stack.enter_context(FakeCivitai()), stack.enter_context(FakeHub())
        version = Version(70, [File(700, weights)], trained_words=["fishy"], base_model="Pony")
        civitai.add(Model(7, "LORA", [version], name="Fish Stylé 魚"))
        card = {"license": "mit", "base_model": "stabilityai/stable-diffusion-xl-base-1.0"}
        hub.add_repo("org/Style.v2", repo, card_data=card)
        settings = GatewaySettings(
            folder / "keys", hub_endpoint=hub.url, civitai_endpoint=civitai.url
        )
        yield Sources(civitai, hub, folder, settings)
