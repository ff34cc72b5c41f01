"""Runs kubectl. No other module of the plugin starts a process."""

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
    """A command of the plugin failed, usually because kubectl failed.

    The message is for the user. It is kubectl's own message if kubectl printed one.
    """


class ObjectNotFoundError(KubectlError):
    """The object or its kind does not exist."""


class AccessDeniedError(KubectlError):
    """The API server denied the call to the kubeconfig's user."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl with the options that choose cluster, user and namespace.

    An option that is None is not passed, so kubectl uses its default.
    """

    context: str | None = None
    kubeconfig: str | None = None
    namespace: str | None = None

    def run(self, *arguments: str) -> str:
        """Run kubectl and return its standard output; raise KubectlError if it fails."""
        process = self._completed(*arguments)
        if process.returncode:
            raise _error(process.stderr.strip() or f"kubectl exited with {process.returncode}")
        return process.stdout

    def follow(self, *arguments: str) -> int:
        """Run kubectl with this process's output, without a time limit; return its exit code."""
        return subprocess.run(self.command(*arguments), check=False).returncode

    def get(self, kind: str, name: str, namespace: str | None = None) -> Json:
        """Return one object; raise ObjectNotFoundError if it does not exist."""
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
        """Return the objects of a kind.

        They come from all namespaces if `everywhere` is true, else from `namespace`, else from the
        namespace of this Kubectl.
        """
        where = ["--all-namespaces"] if everywhere else _in(namespace)
        selected = [f"--selector={labels}"] if labels else []
        selected += [f"--field-selector={fields}"] if fields else []
        items: list[Json] = self._json("get", kind, *where, *selected).get("items", [])
        return items

    def keys(self, kind: str, name: str, namespace: str) -> set[str]:
        """Return the keys of a Secret or ConfigMap; its values are never read."""
        template = "{{range $key, $_ := .data}}{{$key}}\n{{end}}"
        text = self.run("get", kind, name, *_in(namespace), f"--output=go-template={template}")
        return set(text.split())

    def may(self, verb: str, resource: str, namespace: str, account: str | None = None) -> bool:
        """Return whether the user may do this; with `account`, whether that ServiceAccount may.

        account: "namespace:name". The user needs permission to impersonate the account.
        """
        kind, _, sub = resource.partition("/")
        options = [f"--subresource={sub}"] if sub else []
        options += [f"--as=system:serviceaccount:{account}"] if account else []
        process = self._completed("auth", "can-i", verb, kind, *_in(namespace), *options)
        answer = process.stdout.strip()
        if answer not in ("yes", "no"):
            raise _error(process.stderr.strip() or "kubectl auth can-i printed neither yes nor no")
        return answer == "yes"

    def command(self, *arguments: str) -> Sequence[str]:
        """Return the command line.

        The namespace option stands before `arguments`, so a namespace in `arguments` overrides it.
        """
        program = shutil.which("kubectl")
        if program is None:
            raise KubectlError("kubectl is not on PATH; install it or add its folder to PATH")
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

    def _completed(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end; raise KubectlError if it takes too long."""
        try:
            return subprocess.run(
                self.command(*arguments),
                capture_output=True,
                text=True,
                timeout=TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            message = f"kubectl did not finish within {TIMEOUT_SECONDS:.0f} s; is the cluster up?"
            raise KubectlError(message) from None

    def _json(self, *arguments: str) -> Json:
        body: Json = json.loads(self.run(*arguments, "--output=json"))
        return body


def _in(namespace: str | None) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []


def _error(message: str) -> KubectlError:
    # Before its message, kubectl logs the same error with more words: drop these lines.
    message = "\n".join(line for line in message.splitlines() if not _LOG_LINE.match(line))
    if "(NotFound)" in message or "the server doesn't have a resource type" in message:
        return ObjectNotFoundError(message)
    return AccessDeniedError(message) if "(Forbidden)" in message else KubectlError(message)
