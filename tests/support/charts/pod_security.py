"""The Pod Security Standard `restricted`, which includes `baseline`, as a table of controls.

A control takes a Pod spec and returns the fields that break it. Names and fields are those of the
standard's documentation. Where Kubernetes versions differ, the strictest rule counts. The
annotations of versions before 1.30 are left out, because the project sets none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

BASELINE_CAPABILITIES = {
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
}
SAFE_SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_syncookies",
}
SELINUX_TYPES = {None, "", "container_t", "container_init_t", "container_kvm_t"}
RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
PROFILES = {"RuntimeDefault", "Localhost"}


@dataclass(frozen=True)
class Control:
    """A control; `violations` yields the fields that break it."""

    name: str
    violations: Callable[[Json], Iterator[str]]


def containers(pod: Json) -> Iterator[tuple[str, Json]]:
    """Yield all containers with their paths, including init and ephemeral ones."""
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        for container in pod.get(kind) or ():
            yield f"{kind}[{container['name']}]", container


def contexts(pod: Json) -> Iterator[tuple[str, Json]]:
    """Yield the security contexts of the Pod and its containers with their paths."""
    yield "securityContext", pod.get("securityContext") or {}
    for path, container in containers(pod):
        yield f"{path}.securityContext", container.get("securityContext") or {}


def _each_context(wrong: Callable[[Json], object], field: str) -> Callable[[Json], Iterator[str]]:
    def violations(pod: Json) -> Iterator[str]:
        for path, context in contexts(pod):
            if wrong(context):
                yield f"{path}.{field}"

    return violations


def _each_container(wrong: Callable[[Json], object], field: str) -> Callable[[Json], Iterator[str]]:
    def violations(pod: Json) -> Iterator[str]:
        for path, container in containers(pod):
            if wrong(container):
                yield f"{path}.{field}"

    return violations


def _of_context(wrong: Callable[[Json], object]) -> Callable[[Json], object]:
    return lambda container: wrong(container.get("securityContext") or {})


def _host_namespaces(pod: Json) -> Iterator[str]:
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))


def _volumes(allowed: Callable[[str], bool]) -> Callable[[Json], Iterator[str]]:
    def violations(pod: Json) -> Iterator[str]:
        for volume in pod.get("volumes") or ():
            for kind in volume.keys() - {"name"}:
                if not allowed(kind):
                    yield f"volumes[{volume['name']}].{kind}"

    return violations


def _sysctls(pod: Json) -> Iterator[str]:
    for sysctl in (pod.get("securityContext") or {}).get("sysctls") or ():
        if sysctl["name"] not in SAFE_SYSCTLS:
            yield f"securityContext.sysctls[{sysctl['name']}]"


def _handlers(container: Json) -> Iterator[Json]:
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        yield container.get(probe) or {}
    yield from (container.get("lifecycle") or {}).values()


def _names_host(container: Json) -> bool:
    return any(
        (handler.get(kind) or {}).get("host")
        for handler in _handlers(container)
        for kind in ("httpGet", "tcpSocket")
    )


def _inherits(field: str, good: Callable[[Any], bool]) -> Callable[[Json], Iterator[str]]:
    """Return a check of a field that containers inherit from the Pod if they do not set it."""

    def violations(pod: Json) -> Iterator[str]:
        default = (pod.get("securityContext") or {}).get(field)
        for path, container in containers(pod):
            if not good((container.get("securityContext") or {}).get(field, default)):
                yield f"{path}.securityContext.{field}"

    return violations


def _selinux(context: Json) -> bool:
    options = context.get("seLinuxOptions") or {}
    return bool(
        options.get("type") not in SELINUX_TYPES or options.get("user") or options.get("role")
    )


def _profile(context: Json, field: str) -> Any:
    return (context.get(field) or {}).get("type")


def _added(context: Json) -> set[str]:
    return set((context.get("capabilities") or {}).get("add") or ())


BASELINE = (
    Control(
        "HostProcess",
        _each_context(
            lambda context: (context.get("windowsOptions") or {}).get("hostProcess"),
            "windowsOptions.hostProcess",
        ),
    ),
    Control("Host Namespaces", _host_namespaces),
    Control(
        "Privileged Containers",
        _each_context(lambda context: context.get("privileged"), "privileged"),
    ),
    Control(
        "Capabilities",
        _each_context(lambda context: _added(context) - BASELINE_CAPABILITIES, "capabilities.add"),
    ),
    Control("HostPath Volumes", _volumes(lambda kind: kind != "hostPath")),
    Control(
        "Host Ports",
        _each_container(
            lambda container: any(port.get("hostPort") for port in container.get("ports") or ()),
            "ports.hostPort",
        ),
    ),
    Control("Host Probes / Lifecycle Hooks", _each_container(_names_host, "probes or lifecycle")),
    Control(
        "AppArmor",
        _each_context(
            lambda context: _profile(context, "appArmorProfile") not in {None, *PROFILES},
            "appArmorProfile.type",
        ),
    ),
    Control("SELinux", _each_context(_selinux, "seLinuxOptions")),
    Control(
        "/proc Mount Type",
        _each_context(
            lambda context: context.get("procMount") not in (None, "Default"), "procMount"
        ),
    ),
    Control(
        "Seccomp",
        _each_context(
            lambda context: _profile(context, "seccompProfile") not in {None, *PROFILES},
            "seccompProfile.type",
        ),
    ),
    Control("Sysctls", _sysctls),
)
RESTRICTED = (
    Control("Volume Types", _volumes(RESTRICTED_VOLUMES.__contains__)),
    Control(
        "Privilege Escalation",
        _each_container(
            _of_context(lambda context: context.get("allowPrivilegeEscalation") is not False),
            "securityContext.allowPrivilegeEscalation",
        ),
    ),
    Control("Running as Non-root", _inherits("runAsNonRoot", lambda value: value is True)),
    Control(
        "Running as Non-root user",
        _each_context(lambda context: context.get("runAsUser") == 0, "runAsUser"),
    ),
    Control(
        "Seccomp (restricted)",
        _inherits("seccompProfile", lambda value: (value or {}).get("type") in PROFILES),
    ),
    Control(
        "Capabilities (restricted): drop",
        _each_container(
            _of_context(
                lambda context: "ALL" not in ((context.get("capabilities") or {}).get("drop") or ())
            ),
            "securityContext.capabilities.drop",
        ),
    ),
    Control(
        "Capabilities (restricted): add",
        _each_container(
            _of_context(lambda context: _added(context) - {"NET_BIND_SERVICE"}),
            "securityContext.capabilities.add",
        ),
    ),
)


def violations(pod: Json) -> list[str]:
    """Return everything in a Pod spec for which `restricted` rejects the Pod."""
    return [
        f"{control.name}: {field}"
        for control in BASELINE + RESTRICTED
        for field in control.violations(pod)
    ]
