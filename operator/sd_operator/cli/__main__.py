"""The plugin's command line: `kubectl sdm list|status|logs|reload|doctor`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sd_api import names
from sd_operator.base import times
from sd_operator.cli import podlogs, views
from sd_operator.cli.doctor import examine
from sd_operator.cli.doctor.findings import Level
from sd_operator.cli.doctor.gather import view_cluster
from sd_operator.cli.kubectl import Json, Kubectl, KubectlError

KIND = f"{names.PLURAL}.{names.GROUP}"
REFRESH_SECONDS = 1.0
EVENTS_SHOWN = 5
LINE_WIDTH = 1000
"""Width of the list in characters: no row is so long. The terminal wraps rows, as with kubectl."""
_KUBECTL_OPTIONS = ("-n", "--namespace", "--context", "--kubeconfig")
_STYLES = {
    Level.OK: ("✓", "green"),
    Level.UNKNOWN: ("?", "dim"),
    Level.WARNING: ("!", "yellow"),
    Level.FAILED: ("✗", "red"),
}

app = typer.Typer(
    name="kubectl sdm",
    help="List, follow, reload and diagnose the Stable Diffusion models of a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@dataclass(frozen=True)
class Session:
    """The objects that every command uses."""

    kubectl: Kubectl
    console: Console


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"kubectl sdm {version('sd-operator')}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    namespace: Annotated[
        str | None,
        typer.Option("--namespace", "-n", help="Namespace; default: that of the context."),
    ] = None,
    kube_context: Annotated[
        str | None, typer.Option("--context", help="Kubeconfig context; default: the current one.")
    ] = None,
    kubeconfig: Annotated[
        str | None,
        typer.Option("--kubeconfig", help="Kubeconfig file; default: the one that kubectl uses."),
    ] = None,
) -> None:
    """Read the options that are passed on to kubectl."""
    kubectl = Kubectl(kube_context, kubeconfig, namespace)
    context.obj = Session(kubectl, Console(soft_wrap=True))


@app.command("list")
def list_models(
    context: typer.Context,
    everywhere: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="List the models of all namespaces.")
    ] = False,
) -> None:
    """List models with their phase and progress, or the reason why they are not ready."""
    session: Session = context.obj
    bodies = session.kubectl.list(KIND, everywhere=everywhere)
    if bodies:
        table = views.model_table(bodies, times.now(), everywhere=everywhere)
        Console(width=LINE_WIDTH).print(table)
    else:
        print("No models found.", file=sys.stderr)


@app.command()
def status(
    context: typer.Context,
    name: str,
    watch: Annotated[
        bool | None,
        typer.Option(
            "--watch/--no-watch",
            help="Wait until the model is loaded or stalled; default: only on a terminal.",
        ),
    ] = None,
) -> None:
    """Show a model; on a terminal, follow it until it is loaded or stalled.

    The exit code is 1 if it is stalled.
    """
    session: Session = context.obj
    follow = session.console.is_terminal if watch is None else watch
    body, panel = _fetch(session.kubectl, name)
    if follow and session.console.is_terminal:
        with Live(panel, console=session.console, auto_refresh=False) as live:
            while not views.is_settled(body):
                time.sleep(REFRESH_SECONDS)
                body, panel = _fetch(session.kubectl, name)
                live.update(panel, refresh=True)
    else:
        while follow and not views.is_settled(body):
            time.sleep(REFRESH_SECONDS)
            body, panel = _fetch(session.kubectl, name)
        session.console.print(panel)
    if views.is_stalled(body):
        raise typer.Exit(1)


@app.command()
def logs(
    context: typer.Context,
    name: str,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new lines until the newest Pod ends.")
    ] = False,
) -> None:
    """Print the loader's log from the model's current or last Job."""
    kubectl: Kubectl = context.obj.kubectl
    job = kubectl.get(KIND, name).get("status", {}).get("job")
    if job is None:
        raise KubectlError(f"model {name} has no Job yet; run kubectl sdm status {name} to see why")
    raise typer.Exit(podlogs.show(kubectl, job["name"], follow=follow))


@app.command()
def reload(context: typer.Context, name: str) -> None:
    """Load a model again, for example because its branch moved. The old version stays available."""
    kubectl: Kubectl = context.obj.kubectl
    value = f"{names.ANNOTATION_RELOAD}={times.now().isoformat(timespec='seconds')}"
    kubectl.run("annotate", KIND, name, value, "--overwrite")
    print(f"reload of model {name} requested; run kubectl sdm status {name} to follow it")


@app.command()
def doctor(context: typer.Context) -> None:
    """Check for problems that keep models from loading. The exit code is 1 if a check fails (✗)."""
    session: Session = context.obj
    namespace = session.kubectl.namespace
    cluster = view_cluster(session.kubectl, [namespace] if namespace else [])
    findings = examine(cluster)
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        sign, style = _STYLES[finding.level]
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        text = views.plain(finding.message) + remedy
        table.add_row(Text(sign, style=style), Text(finding.subject), Text(text))
    session.console.print(table)
    if any(finding.level is Level.FAILED for finding in findings):
        raise typer.Exit(1)


def _fetch(kubectl: Kubectl, name: str) -> tuple[Json, RenderableType]:
    """Return a model's resource and its panel."""
    body = kubectl.get(KIND, name)
    events = kubectl.list("events", fields=f"involvedObject.uid={body['metadata']['uid']}")
    events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return body, views.model_panel(body, events[-EVENTS_SHOWN:], times.now())


def kubectl_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return kubectl's options with their values, and the other words."""
    options: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in _KUBECTL_OPTIONS:
            options += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{option}=" for option in _KUBECTL_OPTIONS)):
            options.append(word)
        else:
            rest.append(word)
    return options, rest


def options_first(arguments: Sequence[str]) -> list[str]:
    """Move kubectl's options to the front: kubectl takes them anywhere, typer only there."""
    options, rest = kubectl_options(arguments)
    return options + rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        app(args=options_first(words), prog_name=app.info.name)
    except KubectlError as error:
        print(f"kubectl sdm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
