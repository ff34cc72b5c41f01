"""Runs the operator until a signal stops it; an error is raised if a part of it ends earlier."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
from collections.abc import Callable, Sequence

import kopf

# The only way to change which namespaces kopf watches without ending all watches.
from kopf._cogs.structs.references import Insights, NamespaceName

from sd_operator.base.errors import (
    ApiError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    WatchEndedError,
)
from sd_operator.base.metrics import Metrics
from sd_operator.base.probes import BEAT_SECONDS, Probes
from sd_operator.base.settings import Settings
from sd_operator.base.times import SYSTEM_CLOCK
from sd_operator.clients.kube import MODELS, Api
from sd_operator.clients.lease import Lease
from sd_operator.reconciler.controller import Controller
from sd_operator.reconciler.namespaces import Namespaces
from sd_operator.runtime import election
from sd_operator.runtime.handlers import kopf_settings, register

log = logging.getLogger(__name__)

GC_THRESHOLDS = (20_000, 10, 20)
START_RETRY_SECONDS = 2.0
CHECK_SECONDS = 30.0
"""How often a working operator checks that the API server responds."""
LOOK_SECONDS = 10.0
"""How often the rights in the listed namespaces are checked."""
AWAY_MAX_SECONDS = 600.0
"""How long the API server may be away before the operator ends."""


async def operate(settings: Settings, stop: asyncio.Event) -> None:
    """Serve all models until `stop` is set; SIGTERM and SIGINT set it in the main thread."""
    # Imported modules and thousands of models are long-lived: frequent collections find nothing.
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    metrics, probes = Metrics(), Probes()
    async with contextlib.AsyncExitStack() as stack:
        for what, serve, port in (
            ("metrics", metrics.serve, settings.metrics_port),
            ("probes", probes.serve, settings.probes_port),
        ):
            actual = _serve(stack, serve, settings.bind_address, port)
            log.info("%s on port %d", what, actual)
        api = await stack.enter_async_context(Api(settings.kubeconfig, metrics.count_request))
        beating = asyncio.create_task(_beat(probes), name="heartbeat")
        stack.callback(beating.cancel)
        _on_signals(stop)
        await _until_served(api, settings, stop)
        lease = None
        if settings.lease_namespace is not None:
            lease = await stack.enter_async_context(
                await Lease.open(
                    settings.kubeconfig, settings.lease_namespace, metrics.count_request
                )
            )
            stack.push_async_callback(lease.release)
            await election.acquire(lease, stop, probes.get_ready)
        if not stop.is_set():
            await _lead(api, settings, metrics, probes, lease, stop)


async def _lead(
    api: Api,
    settings: Settings,
    metrics: Metrics,
    probes: Probes,
    lease: Lease | None,
    stop: asyncio.Event,
) -> None:
    """Serve all models until `stop` is set; raise WatchEndedError if the watches end earlier."""
    async with contextlib.AsyncExitStack() as stack:
        metrics.leader.set(1)
        fatal = [asyncio.create_task(_until_lost(api, settings), name="lookout")]
        if lease is not None:
            fatal.append(asyncio.create_task(election.keep(lease), name="lease"))
        for task in fatal:
            stack.callback(task.cancel)
            task.add_done_callback(lambda _: stop.set())
        controller = Controller(api, settings, metrics, SYSTEM_CLOCK)
        stack.push_async_callback(controller.close)
        ending = asyncio.create_task(
            _step_down(controller, metrics, lease, fatal, stop), name="step down"
        )
        stack.push_async_callback(_until_done, ending, stop)
        watched = Insights()
        if settings.namespaces:
            namespaces = Namespaces(api, settings.namespaces, controller, metrics)
            await namespaces.look()
            watched.namespaces.update(map(NamespaceName, namespaces.served))
            serving = ", ".join(sorted(namespaces.served)) or "no namespace yet"
            looking = asyncio.create_task(_look(namespaces, watched), name="namespaces")
            stack.callback(looking.cancel)
        else:
            await controller.fill(None)
            serving = "all namespaces"
        probes.get_ready()
        log.info("serving %s", serving)
        await _watch(controller, settings, watched, stop)
        for task in fatal:
            if task.done() and not task.cancelled():
                raise WatchEndedError(task.result())


async def _step_down(
    controller: Controller,
    metrics: Metrics,
    lease: Lease | None,
    fatal: Sequence[asyncio.Task[str]],
    stop: asyncio.Event,
) -> None:
    """Wait until `stop` is set; then end all work and give the Lease back, while kopf ends."""
    await stop.wait()
    for task in fatal:
        task.cancel()
    await asyncio.wait(fatal)
    await controller.close()
    metrics.leader.set(0)
    if lease is not None:
        await lease.release()


async def _until_done(task: asyncio.Task[None], stop: asyncio.Event) -> None:
    stop.set()
    await task


def _serve(
    stack: contextlib.AsyncExitStack,
    serve: Callable[[str, int], tuple[int, Callable[[], None]]],
    address: str,
    port: int,
) -> int:
    actual, end = serve(address, port)
    stack.callback(end)
    return actual


async def _beat(probes: Probes) -> None:
    while True:
        probes.beat()
        await asyncio.sleep(BEAT_SECONDS)


async def _until_served(api: Api, settings: Settings, stop: asyncio.Event) -> None:
    """Wait until the API server answers and knows our kind."""
    namespace = settings.namespaces[0] if settings.namespaces else None
    while not stop.is_set():
        try:
            await _check(api, namespace)
        except NotFoundError:
            log.warning("the kind is unknown: kubectl apply -f crds/stablediffusionmodels.yaml")
        except ApiError as refused:
            log.warning("the API server does not serve us yet: %s", refused)
        else:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), START_RETRY_SECONDS)


async def _check(api: Api, namespace: str | None) -> None:
    """Raise ApiError if the API server does not serve our kind."""
    try:
        await api.check(MODELS, namespace)
    except ForbiddenError:
        # The server responds. A listed namespace may be gone: `Namespaces` serves the others.
        if namespace is None:
            raise


async def _until_lost(api: Api, settings: Settings) -> str:
    """Wait until the API server was away for AWAY_MAX_SECONDS; return the reason to end.

    kopf alone would retry for ever.
    """
    clock = asyncio.get_running_loop().time
    seen = clock()
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            await _check(api, settings.namespaces[0] if settings.namespaces else None)
        except UnavailableError as error:
            if clock() - seen > AWAY_MAX_SECONDS:
                return f"the API server is away for {clock() - seen:.0f} s: {error}"
        except ApiError as refused:
            log.warning("the API server refuses us: %s", refused)
            seen = clock()
        else:
            seen = clock()


async def _look(namespaces: Namespaces, watched: Insights) -> None:
    """Check the listed namespaces all the time; kopf starts and ends their watches accordingly."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        try:
            await namespaces.look()
        except Exception as error:
            # If this task ended, the process would live on, but serve no namespace that comes back.
            ours = not isinstance(error, ApiError)
            log.error("the namespaces cannot be checked: %s", error, exc_info=ours)
        if watched.namespaces != namespaces.served:
            async with watched.revised:
                watched.namespaces.clear()
                watched.namespaces.update(map(NamespaceName, namespaces.served))
                watched.revised.notify_all()


async def _watch(
    controller: Controller, settings: Settings, watched: Insights, stop: asyncio.Event
) -> None:
    before = asyncio.all_tasks()
    tasks = await kopf.spawn_tasks(
        registry=register(controller, settings),
        settings=kopf_settings(),
        clusterwide=not settings.namespaces,
        # kopf would watch exact names even without rights. Discovery is off, so kopf does not
        # resolve this pattern, and watches exactly the namespaces in `watched`.
        namespaces=["*"] if settings.namespaces else [],
        insights=watched,
        standalone=True,
        stop_flag=stop,
    )
    _on_signals(stop)  # kopf has just replaced the handlers
    try:
        await kopf.run_tasks(tasks, ignored=before)
    except Exception as error:  # kopf's errors of requests have no public class
        raise WatchEndedError(f"a watch failed: {str(error) or repr(error)}") from error
    if not stop.is_set():
        raise WatchEndedError("the watches ended by themselves")


def _on_signals(stop: asyncio.Event) -> None:
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
