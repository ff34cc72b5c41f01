"""Runs many models at once through their whole lives and records each stage.

In a life a model is created, loaded, reloaded and deleted. The records replace times, uids and
generated names with placeholders, so that tests can compare a disturbed life with an undisturbed
one.
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
"""The only webhook call that is not retried."""
SURE = ("create jobs", f"patch {names.PLURAL}")
"""The requests that every life makes equally often."""
STAGES = ("loaded", "loaded anew", "deleted")
LIFE_SECONDS = 120.0
SETTLE_SECONDS = 20.0
CALM_LIVES = 3
ATTACKS_PER_LIFE = 6
LIVES_AT_ONCE = 24
ROUNDS = 2
MADE_AT_LEAST = 0.7
"""The share of attacks that must happen.

Some cannot, because the number of status patches depends on timing.
"""

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z")
_JOB = re.compile(r"MODEL-[0-9a-f]{10}")
_LAST_CALL = re.compile(r"model\.[a-z_]+ was delivered")
"""The last delivered call in a message; calls that are due at the same time end in any order."""


@dataclass
class Life:
    """A model, the faults that disturb it and what was seen at each of its stages."""

    name: str
    attacks: Sequence[Attack] = ()
    """The faults that disturb the life."""
    uid: str = ""
    hashes: list[str] = field(default_factory=list)
    """The hashes of its loads, in order."""
    job_uids: dict[str, str] = field(default_factory=dict)
    """What each of its Jobs does, by the Job's uid."""
    seen: dict[str, Json] = field(default_factory=dict)
    """The status, Jobs and files of the model at each stage."""

    @property
    def stage(self) -> str | None:
        """The stage that the model must reach next; None if its life is over."""
        return next((stage for stage in STAGES if stage not in self.seen), None)

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.attacks)) or 'undisturbed'})"

    def comparable(self, found: object) -> Any:
        """Return a record with placeholders for everything that differs between lives."""
        text = json.dumps(found).replace(self.uid, "UID").replace(self.name, "MODEL")
        for uid, what in self.job_uids.items():
            text = text.replace(uid, f"UID of {what}")
        for at, load_hash in enumerate(self.hashes):
            text = text.replace(load_hash, f"LOAD {at}")
        for pattern, word in ((_TIME, "TIME"), (_JOB, "JOB"), (_LAST_CALL, "CALL was delivered")):
            text = pattern.sub(word, text)
        return json.loads(text)


class World:
    """A namespace with operators behind a proxy, in which models live."""

    def __init__(self, cluster: Cluster, proxy: FaultProxy, receiver: WebhookReceiver) -> None:
        self.cluster = cluster
        self.proxy = proxy
        self.receiver = receiver
        self._api = RawApi(cluster.kubeconfig)
        self._space = f"namespaces/{cluster.namespace}"
        self._models = f"/apis/{names.API_VERSION}/{self._space}/{names.PLURAL}"

    def lead(self, lives: Sequence[Life], operators: Operators) -> None:
        """Run the lives side by side to their ends and record each of their stages."""
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
        """Record the lives that reached their stage and start the next one."""
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
            own = [job for job in jobs if _is_of(life, job)]
            life.job_uids |= {job["metadata"]["uid"]: _describe(job) for job in own}
            life.seen[stage] = {
                "status": item and item["status"],
                "jobs": _ends_of(life, own),
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
        ready, delivered = condition(item, "Ready"), condition(item, "WebhookDelivered")
        return (
            (ready.get("status"), ready.get("observedGeneration")) == ("True", generation)
            and not condition(item, "Reconciling")
            and delivered.get("status") == "True"
            and "webhook" not in status
        )

    def story(self, life: Life) -> Json:
        """Return the record of a life, without what may differ between lives."""
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
        """Count the reasons of the Events about each model."""
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
        late = [f"{life} is not {life.stage}" for life in lives]
        item = self._api.ask("GET", f"{self._models}/{lives[0].name}").text
        log = self.cluster.operator_log()[-3000:]
        return "\n".join([*late, item, "\n".join(map(str, self.proxy.asked[lives[0].name])), log])

    def _list(self, path: str) -> list[Json]:
        items: list[Json] = self._ask("GET", path)["items"]
        return items

    def _ask(self, method: str, path: str, body: object = None) -> Json:
        answer = self._api.ask(method, path, body)
        assert answer.code < 300, answer
        return answer.body


def _is_of(life: Life, job: Json) -> bool:
    return bool(job["metadata"]["labels"].get(names.LABEL_MODEL_UID) == life.uid)


def _describe(job: Json) -> str:
    labels, annotations = job["metadata"]["labels"], job["metadata"]["annotations"]
    load_hash = annotations.get(names.ANNOTATION_LOAD_HASH, "")
    return f"{labels[names.LABEL_ROLE]} {load_hash} {annotations[names.ANNOTATION_ATTEMPT]}"


def _ends_of(life: Life, jobs: Iterable[Json]) -> dict[str, str]:
    """Return the Jobs that work for a model at its stage, and how they ended.

    Load Jobs of a deleted model are left out, because the garbage collector deletes them. So are
    clean-up Jobs that succeeded: the operator deletes them, or their TTL does if that fails.
    """
    is_deleted = life.stage == "deleted"
    role = names.ROLE_REMOVE if is_deleted else names.ROLE_LOAD
    return {
        _describe(job): f"{job['status'].get('succeeded', 0)} done,"
        f" {job['status'].get('failed', 0)} failed"
        for job in jobs
        if job["metadata"]["labels"][names.LABEL_ROLE] == role
        and not (is_deleted and job["status"].get("succeeded"))
    }


@dataclass
class Trial:
    """Runs undisturbed lives first, then lives with faults, and compares them."""

    world: World
    operators: Operators
    points: list[Point] = field(default_factory=list)
    """The requests that every undisturbed life makes, in order."""
    story: Json = field(default_factory=dict)
    """The story of an undisturbed life."""
    events: Counter[str] = field(default_factory=Counter)
    """The Events of an undisturbed life."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def rest(self) -> None:
        """Run lives without faults, assert that they are equal, and keep the record of one."""
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
        """Run lives with these attacks, and assert that all end like the undisturbed ones.

        Return how many attacks were made, which must be at least the share MADE_AT_LEAST. If only
        one operator runs, all attacks on the requests in SURE must be made.
        """
        left, lives = list(attacks), list[Life]()
        for _ in range(ROUNDS):
            # The attacks of one life are far apart, so that one is over before the next begins.
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
        if self.operators.count == 1:  # several operators share the requests
            assert not [str(one) for one in left if one.point.what in SURE]
        made = len(attacks) - len(left)
        assert made >= MADE_AT_LEAST * len(attacks), [str(one) for one in left]
        return made

    def _lead(self, attacks: Sequence[Sequence[Attack]]) -> list[Life]:
        lives = [Life(f"m{next(self._numbers)}-x", one) for one in attacks]
        self.world.lead(lives, self.operators)
        return lives

    def _is_as_undisturbed(self, life: Life) -> None:
        """Check that a life equals the undisturbed one; wait for calls that are still under way."""
        several = self.operators.count > 1
        deaf = several or self.operators.deaths > 0 or any(one.deaf for one in life.attacks)
        expected = _promised(self.story, deaf)

        def seen() -> Json:
            return _promised(self.world.story(life), deaf)

        _eventually(lambda: seen() == expected)
        assert seen() == expected, f"{life}\n{_difference(expected, seen())}"
        events = self.world.events()[life.name]
        if several:
            return  # each operator writes Events of its own
        if deaf:
            assert events <= self.events, f"{life}: {events}"
        else:
            _eventually(lambda: self.world.events()[life.name] == self.events)
            assert self.world.events()[life.name] == self.events, f"{life}: {events}"


def _promised(story: Json, deaf: bool) -> Json:
    """Return the parts of a story that must hold even if an operator missed events."""
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
    """Wait until the check holds; return whether it does."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def attacks_at(points: Iterable[Point], faults: Iterable[Fault]) -> list[Attack]:
    """Return an attack for each of these faults at each request that it applies to."""
    known = list(points)
    return [Attack(one, fault) for fault in faults for one in known if fault.on(one.what)]
