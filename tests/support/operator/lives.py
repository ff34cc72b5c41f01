"""Whole lives of models, many at once: created, loaded, loaded anew, deleted; and what is seen.

What a life leaves at each of its stages is made comparable: times, uids and generated names are
replaced by what they stand for, so that a disturbed life can be held against an undisturbed one.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from devkit.webhook_receiver import WebhookReceiver
from sd_api import names
from tests.support.kube.cluster import Cluster, model_manifest
from tests.support.kube.rawapi import RawApi
from tests.support.operator.operated import condition
from tests.support.operator.operators import Operators
from tests.support.proxies.faultproxy import Attack, Fault, FaultProxy, Point

Json = dict[str, Any]

LINKS = [f"https://models.example.com/{which}?seconds=0.1" for which in ("first", "second")]
BEST_EFFORT = "model.deleted"
"""The one webhook call that is tried once only."""
SURE = ("create jobs", f"patch {names.PLURAL}")
"""What every life asks for equally often."""
STAGES = ("loaded", "loaded anew", "deleted")
LIFE_SECONDS = 120.0
SETTLE_SECONDS = 20.0
CALM_LIVES = 3
ATTACKS_PER_LIFE = 6
LIVES_AT_ONCE = 24
ROUNDS = 2
MADE_AT_LEAST = 0.7
"""The share of attacks that must find their request: how many status patches there are depends on
what comes together."""

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z")
_JOB = re.compile(r"MODEL-[0-9a-f]{10}")
_LAST_CALL = re.compile(r"model\.[a-z_]+ was delivered")
"""Calls that are owed at the same time end in any order."""


@dataclass
class Life:
    """One model, and what was seen of it at each stage. attacks: what is to disturb it."""

    name: str
    attacks: Sequence[Attack] = ()
    uid: str = ""
    hashes: list[str] = field(default_factory=list)
    seen: dict[str, Json] = field(default_factory=dict)

    @property
    def stage(self) -> str | None:
        """What it lives towards; None once it is over."""
        return next((one for one in STAGES if one not in self.seen), None)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.attacks)) or 'undisturbed'})"

    def comparable(self, found: object) -> Any:
        """What was found, without what differs from life to life."""
        text = json.dumps(found).replace(self.uid, "UID").replace(self.name, "MODEL")
        for at, load_hash in enumerate(self.hashes):
            text = text.replace(load_hash, f"LOAD {at}")
        for pattern, word in ((_TIME, "TIME"), (_JOB, "JOB"), (_LAST_CALL, "CALL was delivered")):
            text = pattern.sub(word, text)
        return json.loads(text)


class World:
    """A namespace with operators behind a proxy, where lives are led."""

    def __init__(self, cluster: Cluster, proxy: FaultProxy, receiver: WebhookReceiver) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.receiver = receiver
        self._api = RawApi(cluster.kubeconfig)
        self._space = f"namespaces/{cluster.namespace}"
        self._models = f"/apis/{names.API_VERSION}/{self._space}/{names.PLURAL}"

    def lead(self, lives: Sequence[Life], operators: Operators) -> None:
        """Lead lives side by side to their ends; what each was at its stages is noted in it."""
        for life in lives:
            self.proxy.attacks[life.name] = list(life.attacks)
            manifest = model_manifest(life.name, url=LINKS[0], webhook=self.receiver.url)
            made = self._ask("POST", self._models, manifest)
            life.uid = made["metadata"]["uid"]
            self.proxy.models[life.uid] = life.name
            self.proxy.versions[life.name] = made["metadata"]["resourceVersion"]
        deadline = time.monotonic() + LIFE_SECONDS
        while left := [life for life in lives if life.stage]:
            if time.monotonic() > deadline:
                raise AssertionError(self._stuck(left))
            operators.keep()
            time.sleep(0.1)
            models = {item["metadata"]["uid"]: item for item in self._list(self._models)}
            self._go_on(left, models)

    def _go_on(self, lives: Iterable[Life], models: dict[str, Json]) -> None:
        """Take those that have reached their stage to the next."""
        arrived = [life for life in lives if self._has_arrived(life, models.get(life.uid))]
        if not arrived:
            return
        jobs = self._list(f"/apis/batch/v1/{self._space}/jobs")
        for life in arrived:
            stage = life.stage
            assert stage is not None
            item = models.get(life.uid)
            if item is not None:
                life.hashes.append(item["status"]["loadHash"])
            life.seen[stage] = {
                "status": item and item["status"],
                "jobs": _jobs_of(life, jobs),
                "volume": self._volume_of(life),
            }
            path = f"{self._models}/{life.name}"
            if stage == "loaded":
                self._api.patch(path, {"spec": {"url": LINKS[1]}})
            elif stage == "loaded anew":
                self._ask("DELETE", path)

    def _has_arrived(self, life: Life, item: Json | None) -> bool:
        if life.stage == "deleted":
            return item is None
        if item is None:
            return False
        status, generation = item.get("status", {}), item["metadata"]["generation"]
        if life.stage == "loaded anew" and generation == 1:
            return False
        ready, told = condition(item, "Ready"), condition(item, "WebhookDelivered")
        return (
            (ready.get("status"), ready.get("observedGeneration")) == ("True", generation)
            and not condition(item, "Reconciling")
            and told.get("status") == "True"
            and "webhook" not in status
        )

    def story(self, life: Life) -> Json:
        """All that is to be the same in every life."""
        loads = self.cluster.store / "loads"
        calls: defaultdict[str, set[str]] = defaultdict(set)
        for call in self.receiver.calls:
            if call.body["model_id"] == life.name:
                calls[f"{call.body['event']} {call.body['model']['load_hash']}"].add(call.id)
        worked = {
            load_hash: len((loads / f"{life.name}-{load_hash}").read_text())
            for load_hash in life.hashes
        }
        return life.comparable(
            {
                "stages": life.seen,
                "loads that did work": worked,
                "ids per event": {event: len(ids) for event, ids in calls.items()},
            }
        )

    def events(self) -> defaultdict[str, Counter[str]]:
        """The reasons of the Events about each model, counted."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for item in self._list(f"/api/v1/{self._space}/events"):
            if item["involvedObject"]["kind"] == names.KIND:
                found[item["involvedObject"]["name"]][item["reason"]] += 1
        return found

    def _volume_of(self, life: Life) -> list[str]:
        store = self.cluster.store
        link, home = store / life.name, store / names.STORE_DIR / life.uid
        found = [f"{life.name} -> {link.readlink()}"] if link.is_symlink() else []
        return found + sorted(
            path.relative_to(store).as_posix() for path in home.rglob("*") if path.is_file()
        )

    def _stuck(self, lives: Sequence[Life]) -> str:
        told = [f"{life} is not {life.stage}" for life in lives]
        item = self._api.ask("GET", f"{self._models}/{lives[0].name}").text
        log = self.cluster.operator_log()[-3000:]
        return "\n".join([*told, item, "\n".join(map(str, self.proxy.asked[lives[0].name])), log])

    def _list(self, path: str) -> list[Json]:
        items: list[Json] = self._ask("GET", path)["items"]
        return items

    def _ask(self, method: str, path: str, body: object = None) -> Json:
        answer = self._api.ask(method, path, body)
        assert answer.code < 300, answer
        return answer.body


def _jobs_of(life: Life, jobs: Iterable[Json]) -> dict[str, str]:
    """The Jobs that work for a model, and how they ended.

    Those of a deleted model that are owned by it are the garbage collector's.
    """
    roles = [names.ROLE_REMOVE] if life.stage == "deleted" else [names.ROLE_LOAD]
    found = {}
    for one in jobs:
        labels, annotations = one["metadata"]["labels"], one["metadata"]["annotations"]
        role = labels[names.LABEL_ROLE]
        if labels.get(names.LABEL_MODEL_UID) == life.uid and role in roles:
            load_hash = annotations.get(names.ANNOTATION_LOAD_HASH, "")
            what = f"{role} {load_hash} {annotations[names.ANNOTATION_ATTEMPT]}"
            status = one["status"]
            found[what] = f"{status.get('succeeded', 0)} done, {status.get('failed', 0)} failed"
    return found


@dataclass
class Trial:
    """Lives are led with faults, and held against undisturbed ones, which come first.

    points: what every undisturbed life asked for, in order. story, events: what was seen of them.
    """

    world: World
    operators: Operators
    points: list[Point] = field(default_factory=list)
    story: Json = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def rest(self) -> None:
        """Lead lives without faults."""
        first, *others = self._lead([()] * CALM_LIVES)
        world = self.world
        assert _eventually(lambda: BEST_EFFORT in str(world.story(first)["ids per event"]))
        assert _eventually(lambda: world.events()[first.name]["ModelDeleted"])
        self.story, self.events = world.story(first), world.events()[first.name]
        for life in others:
            self._is_as_undisturbed(life)
        asked = [set(world.proxy.asked[life.name]) for life in others]
        known = world.proxy.asked[first.name]
        self.points = [point for point in known if all(point in one for one in asked)]

    def survive(self, attacks: Sequence[Attack]) -> int:
        """Lead lives with these attacks; all must end as the undisturbed ones.

        Returns how many attacks were made: all on what every life asks for equally often.
        """
        left, lives = list(attacks), list[Life]()
        for _ in range(ROUNDS):
            # Those of one life lie far apart: what one does is over before the next.
            many = -(-len(left) // ATTACKS_PER_LIFE)
            shares = [left[at::many] for at in range(many)]
            led = [
                life
                for at in range(0, many, LIVES_AT_ONCE)
                for life in self._lead(shares[at : at + LIVES_AT_ONCE])
            ]
            lives += led
            left = [one for life in led for one in self.world.proxy.attacks[life.name]]
            if not left:
                break
        for life in lives:
            self._is_as_undisturbed(life)
        if self.operators.count == 1:  # several share what there is to ask for
            assert not [str(one) for one in left if one.point.what in SURE]
        made = len(attacks) - len(left)
        assert made >= MADE_AT_LEAST * len(attacks), [str(one) for one in left]
        return made

    def _lead(self, attacks: Sequence[Sequence[Attack]]) -> list[Life]:
        lives = [Life(f"m{next(self._numbers)}-x", one) for one in attacks]
        self.world.lead(lives, self.operators)
        return lives

    def _is_as_undisturbed(self, life: Life) -> None:
        """What comes last may still be on its way."""
        several = self.operators.count > 1
        deaf = several or self.operators.deaths > 0 or any(one.deaf for one in life.attacks)
        expected = _promised(self.story, deaf)

        def seen() -> Json:
            return _promised(self.world.story(life), deaf)

        _eventually(lambda: seen() == expected)
        assert seen() == expected, f"{life}\n{_difference(expected, seen())}"
        events = self.world.events()[life.name]
        if several:
            return  # each tells what it does
        if deaf:
            assert events <= self.events, f"{life}: {events}"
        else:
            _eventually(lambda: self.world.events()[life.name] == self.events)
            assert self.world.events()[life.name] == self.events, f"{life}: {events}"


def _promised(story: Json, deaf: bool) -> Json:
    """A story without what may be lost where the operator was deaf."""
    ids = story["ids per event"]
    kept = {
        event: count
        for event, count in ids.items()
        if not (deaf and BEST_EFFORT in event and count == 1)
    }
    return story | {"ids per event": kept}


def _difference(expected: Json, found: Json) -> str:
    texts = [json.dumps(one, indent=1, sort_keys=True).splitlines() for one in (expected, found)]
    return "\n".join(difflib.unified_diff(*texts, "expected", "found", n=4, lineterm=""))


def _eventually(holds: Callable[[], object]) -> bool:
    """Wait until something holds; tells whether it does."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def attacks_at(points: Iterable[Point], faults: Iterable[Fault]) -> list[Attack]:
    """Each of these faults at each request that it can befall."""
    known = list(points)
    return [Attack(one, fault) for fault in faults for one in known if fault.on(one.what)]
