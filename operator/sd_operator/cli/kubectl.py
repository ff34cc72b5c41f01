"""Runs kubectl: the only module of the plugin that does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

TIMEOUT_SECONDS = 30.0
_LOG_LINE = re.compile(r"[IWEF]\d{4} \d\d:")


class KubectlError(Exception):
    """kubectl failed; the message is its own."""


class NotFoundError(KubectlError):
    """There is no such object, or no such kind."""


class ForbiddenError(KubectlError):
    """The user of the kubeconfig may not do this."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the options that choose cluster, user and namespace."""

    context: str | None = None
    kubeconfig: str | None = None
    namespace: str | None = None

    def run(self, *arguments: str) -> str:
        """What kubectl prints."""
        try:
            done = subprocess.run(
                self.command(*arguments),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise KubectlError(f"no answer from the cluster in {TIMEOUT_SECONDS:.0f} s") from None
        if done.returncode:
            raise _error(done.stderr.strip() or f"kubectl ended with {done.returncode}")
        return done.stdout

    def follow(self, *arguments: str) -> int:
        """Let kubectl print by itself; returns its exit code."""
        return subprocess.run(self.command(*arguments), check=False).returncode

    def get(self, kind: str, name: str, namespace: str | None = None) -> Json:
        """One object."""
        return self._json("get", kind, name, *_in(namespace))

    def list(
        self,
        kind: str,
        namespace: str | None = None,
        *,
        everywhere: bool = False,
        labels: str = "",
        fields: str = "",
    ) -> list[Json]:
        """The objects of a kind: of the chosen namespace, of another one, or of all."""
        where = ["--all-namespaces"] if everywhere else _in(namespace)
        selected = [f"--selector={labels}"] if labels else []
        selected += [f"--field-selector={fields}"] if fields else []
        items: list[Json] = self._json("get", kind, *where, *selected).get("items", [])
        return items

    def keys(self, kind: str, name: str, namespace: str) -> set[str]:
        """The keys of a Secret or ConfigMap, without the values."""
        template = "{{range $key, $_ := .data}}{{$key}}\n{{end}}"
        text = self.run("get", kind, name, *_in(namespace), f"--output=go-template={template}")
        return set(text.split())

    def may(self, verb: str, resource: str, namespace: str, account: str | None = None) -> bool:
        """Whether the user, or a service account in the user's judgement, may do this."""
        kind, _, sub = resource.partition("/")
        options = [f"--subresource={sub}"] if sub else []
        options += [f"--as=system:serviceaccount:{account}"] if account else []
        command = self.command("auth", "can-i", verb, kind, *_in(namespace), *options)
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
        )
        answer = done.stdout.strip()
        if answer not in ("yes", "no"):
            raise _error(done.stderr.strip() or "kubectl auth can-i gave no answer")
        return answer == "yes"

    def command(self, *arguments: str) -> Sequence[str]:
        """The command line; the namespace comes first, so that a later one wins."""
        program = shutil.which("kubectl")
        if program is None:
            raise KubectlError("kubectl is not on PATH")
        options = [
            f"--{name}={value}"
            for name, value in (
                ("context", self.context),
                ("kubeconfig", self.kubeconfig),
                ("namespace", self.namespace),
            )
            if value is not None
        ]
        return [program, *options, *arguments]

    def _json(self, *arguments: str) -> Json:
        answer: Json = json.loads(self.run(*arguments, "--output=json"))
        return answer


def _in(namespace: str | None) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []


def _error(message: str) -> KubectlError:
    # Lines of its log say the same at length.
    message = "\n".join(line for line in message.splitlines() if not _LOG_LINE.match(line))
    if "(NotFound)" in message or "the server doesn't have a resource type" in message:
        return NotFoundError(message)
    return ForbiddenError(message) if "(Forbidden)" in message else KubectlError(message)
