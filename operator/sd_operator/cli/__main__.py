"""The plugin's command line: `kubectl sdm list|status|logs|reload|doctor`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sd_api import names
from sd_operator.cli import doctor as diagnosis
from sd_operator.cli import gather, views
from sd_operator.cli.kubectl import Json, Kubectl, KubectlError

KIND = f"{names.PLURAL}.{names.GROUP}"
REFRESH_SECONDS = 1.0
EVENTS_SHOWN = 5
_ANYWHERE = ("-n", "--namespace", "--context", "--kubeconfig")
_STYLES = {
    diagnosis.Level.OK: ("✓", "green"),
    diagnosis.Level.UNKNOWN: ("?", "dim"),
    diagnosis.Level.WARNING: ("!", "yellow"),
    diagnosis.Level.FAILED: ("✗", "red"),
}

app = typer.Typer(
    name="kubectl sdm",
    help="Stable Diffusion models in a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@dataclass(frozen=True)
class Session:
    """What all commands share."""

    kubectl: Kubectl
    console: Console


@app.callback()
def options(
    context: typer.Context,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Default: the context's.")
    ] = None,
    kube_context: Annotated[
        str | None, typer.Option("--context", help="Of the kubeconfig; default: the current one.")
    ] = None,
    kubeconfig: Annotated[
        str | None, typer.Option("--kubeconfig", help="Default: $KUBECONFIG, or kubectl's own.")
    ] = None,
) -> None:
    """Read the options that kubectl has too."""
    kubectl = Kubectl(kube_context, kubeconfig, namespace)
    context.obj = Session(kubectl, Console(soft_wrap=True))


@app.command("list")
def list_models(
    context: typer.Context,
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A")] = False,
) -> None:
    """List the models, with what they wait for."""
    session: Session = context.obj
    bodies = session.kubectl.list(KIND, everywhere=everywhere)
    if bodies:
        session.console.print(views.model_table(bodies, _now(), everywhere=everywhere))
    else:
        print("No models found.", file=sys.stderr)


@app.command()
def status(
    context: typer.Context,
    name: str,
    watch: Annotated[
        bool | None,
        typer.Option("--watch/--no-watch", help="Until it is loaded; default: on a terminal."),
    ] = None,
) -> None:
    """Show a model live, until it is loaded or stalled; the exit code is 1 if it is stalled."""
    session: Session = context.obj
    follow = session.console.is_terminal if watch is None else watch
    body, shown = _look(session.kubectl, name)
    if follow and session.console.is_terminal:
        with Live(shown, console=session.console, auto_refresh=False) as live:
            while not views.is_settled(body):
                time.sleep(REFRESH_SECONDS)
                body, shown = _look(session.kubectl, name)
                live.update(shown, refresh=True)
    else:
        while follow and not views.is_settled(body):
            time.sleep(REFRESH_SECONDS)
            body, shown = _look(session.kubectl, name)
        session.console.print(shown)
    if views.is_stalled(body):
        raise typer.Exit(1)


@app.command()
def logs(
    context: typer.Context,
    name: str,
    follow: Annotated[bool, typer.Option("--follow", "-f")] = False,
) -> None:
    """Print what the loader of a model's current or last Job says."""
    kubectl: Kubectl = context.obj.kubectl
    job = kubectl.get(KIND, name).get("status", {}).get("job")
    if job is None:
        raise KubectlError(f"{name} has no Job yet; see kubectl sdm status {name}")
    following = ["--follow"] if follow else []
    target = f"job/{job['name']}"
    raise typer.Exit(
        kubectl.follow("logs", target, "--all-containers", "--prefix", "--tail=-1", *following)
    )


@app.command()
def reload(context: typer.Context, name: str) -> None:
    """Load a model again: its branch or link may have moved. The present version stays served."""
    kubectl: Kubectl = context.obj.kubectl
    value = f"{names.ANNOTATION_RELOAD}={_now().isoformat(timespec='seconds')}"
    kubectl.run("annotate", KIND, name, value, "--overwrite")
    print(f"{name} is loaded again; kubectl sdm status {name} shows it")


@app.command()
def doctor(context: typer.Context) -> None:
    """Look for what keeps models from loading; the exit code is 1 if something does."""
    session: Session = context.obj
    chosen = session.kubectl.namespace
    findings = diagnosis.examine(gather.look(session.kubectl, [chosen] if chosen else []))
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        sign, style = _STYLES[finding.level]
        remedy = f"\n→ {finding.remedy}" if finding.remedy else ""
        words = views.plain(finding.message) + remedy
        table.add_row(Text(sign, style=style), Text(finding.subject), Text(words))
    session.console.print(table)
    if any(finding.level is diagnosis.Level.FAILED for finding in findings):
        raise typer.Exit(1)


def _look(kubectl: Kubectl, name: str) -> tuple[Json, RenderableType]:
    body = kubectl.get(KIND, name)
    events = kubectl.list("events", fields=f"involvedObject.uid={body['metadata']['uid']}")
    events.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return body, views.model_panel(body, events[-EVENTS_SHOWN:], _now())


def _now() -> datetime:
    return datetime.now(UTC)


def options_first(arguments: Sequence[str]) -> list[str]:
    """The options that kubectl takes anywhere, moved to before the command."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in _ANYWHERE:
            first += [word, *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(tuple(f"{option}=" for option in _ANYWHERE)):
            first.append(word)
        else:
            rest.append(word)
    return first + rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        app(args=options_first(given), prog_name=app.info.name)
    except KubectlError as error:
        print(f"kubectl sdm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
