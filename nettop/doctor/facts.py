# SPDX-License-Identifier: Apache-2.0
"""Facts of the host that decide what works. Files are read below `root`, which tests can replace."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from nettop import version_of_build
from nettop.doctor.capabilities import check_capabilities, check_user, check_user_namespace, sees_owners
from nettop.doctor.deadline import within
from nettop.doctor.report import PERF_EVENTS, USER_CHOICES, Check, LensReport, Verdict, bad, stops_programs
from nettop.doctor.toolchain import (
    check_bcc,
    check_libbpf,
    check_numpy,
    check_program_cache,
    check_python,
)
from nettop.errors import NettopError, SourceFailed, Unsupported, numpy_error
from nettop.kernel.bpf.btf import Btf
from nettop.kernel.bpf.kprobes import why_no_kprobes
from nettop.kernel.bpf.perf_events import require_perf_events
from nettop.kernel.bpf.program_text import PART_OF_NETTOP
from nettop.kernel.host.facts import BTF_FILE, INITIAL_PID_NAMESPACE, Host, container_of
from nettop.kernel.host.proc_files import mounts, proc_options
from nettop.kernel.net.links import read_links
from nettop.kernel.net.namespaces import find_namespaces
from nettop.process import priority
from nettop.process.limits import memory_limits, process_limits
from nettop.settings.doctor import STEP_S
from nettop.snapshots import all_plugins

_ARCHITECTURES = {"x86_64": Verdict.OK, "aarch64": Verdict.NOTE}
_INITIAL_NETWORK_NAMESPACE = 0xEFFFFFF9
"""NET_NS_INIT_INO in include/uapi/linux/nsfs.h (since 6.18)."""
_LOCKDOWNS = {"integrity": ": forbids modifying the kernel; nettop only reads"}
_CONTAINER_FILES = {
    ".dockerenv": "docker",
    "run/.containerenv": "podman",
    "run/systemd/container": "container",
}
_MIN_FILES = 1024
_READABLE = "install it where everybody can read it (scripts/install-deps.sh: /opt/nettop)"
_DIAG_STATES = {"TCP": (6, 10), "UDP": (17, 7)}
"""IP protocols, each with a state that few sockets are in: LISTEN, or no peer."""


def host_checks(root: Path = Path("/"), step_s: float = STEP_S) -> list[Check]:
    """Return all facts in display order, each read within this many seconds. One that cannot be read becomes a note."""
    checks: list[Check] = []
    for check_function in _CHECKS:
        key = check_function.__name__.removeprefix("check_")
        name = key.replace("_", " ")
        try:
            with within("it", step_s):
                result = check_function(root)
                checks += [result] if isinstance(result, Check) else result
        except OSError as error:
            checks.append(Check(key, name, f"cannot be read: {error.strerror}", Verdict.NOTE))
        except SourceFailed as error:
            checks.append(bad(key, name, error))
    return checks


def check_lenses(_: Path) -> Iterator[Check]:
    """Report the lenses of other packages, each with the reason if it cannot be used."""
    for plugin in all_plugins():
        key, name = f"lens_{plugin.name}", f"lens {plugin.name}"
        package = f"{plugin.distribution} {plugin.version}"
        if plugin.problem:
            value = f"cannot be used: {package}: {plugin.problem}"
            yield Check(key, name, value, Verdict.NOTE, plugin.remedy)
        else:
            yield Check(key, name, package)


# --- the kernel -----------------------------------------------------------------------------------------------


def check_nettop(_: Path) -> Check:
    """Report the version of nettop."""
    return Check("nettop", "nettop", version_of_build())


def check_kernel(_: Path) -> Iterable[Check]:
    """Report the kernel and its architecture."""
    system = os.uname()
    yield Check("kernel", "kernel", system.release)
    yield Check("kernel_build", "kernel build", system.version)
    machine = platform.machine()
    verdict = _ARCHITECTURES.get(machine, Verdict.BAD)
    note = {Verdict.NOTE: " (supported in theory, not tested)", Verdict.BAD: " (unsupported)"}
    remedy = "run nettop on x86_64 or aarch64" if verdict is Verdict.BAD else ""
    yield Check("architecture", "architecture", machine + note.get(verdict, ""), verdict, remedy, machine)


def check_btf(root: Path) -> Check:
    """Check that the kernel provides BTF, and that libbpf reads it."""
    try:
        Host(root).require_btf()
        size = (root / BTF_FILE.lstrip("/")).stat().st_size
        Btf().close()
        return Check("btf", "BTF", f"{size:,} bytes, readable by libbpf", data=size)
    except NettopError as error:
        return bad("btf", "BTF", error, 0)


def check_calls(root: Path) -> Iterator[Check]:
    """Check that the system calls that programs need are allowed; skip it for users who may not load programs
    anyway."""
    host = Host(root)
    try:
        host.require_initial_user_namespace()
        host.require_capabilities()
    except NettopError:
        return
    yield _required("bpf_calls", "bpf(2)", host.require_bpf_calls)
    yield _required(PERF_EVENTS, "perf events", require_perf_events)


def _required(key: str, name: str, require: Callable[[], None]) -> Check:
    """Return whether a requirement is met, as a fact."""
    try:
        require()
    except NettopError as error:
        return bad(key, name, error, False)
    return Check(key, name, "allowed", data=True)


def check_lockdown(root: Path) -> Check:
    """Report whether the kernel is locked down, and what that forbids."""
    host = Host(root)
    mode = host.lockdown()
    if mode is None:
        remedy = "to see it: mount -t securityfs securityfs /sys/kernel/security"
        value = "unknown: securityfs is not mounted"
        return Check("lockdown", "lockdown", value, Verdict.NOTE, remedy, "unknown")
    try:
        host.require_no_lockdown()
    except NettopError as error:
        return bad("lockdown", "lockdown", error, mode)
    return Check("lockdown", "lockdown", mode + _LOCKDOWNS.get(mode, ""), data=mode)


def check_kprobes(root: Path) -> Check:
    """Check whether kprobes can hook kernel functions."""
    if (root / "sys/bus/event_source/devices/kprobe/type").exists():
        return Check("kprobes", "kprobes", "yes", data=True)
    error = why_no_kprobes(root)
    option = "" if error.remedy else " (CONFIG_KPROBE_EVENTS)"
    value = f"{error.what}{option}: other mechanisms are used"
    return Check("kprobes", "kprobes", value, Verdict.NOTE, error.remedy, data=False)


def check_sock_diag(_: Path) -> Check:
    """Check whether the kernel lists sockets over netlink, the fallback if it refuses BPF programs."""
    if numpy_error() is not None:
        return Check("sock_diag", "sock_diag", "not examined: needs numpy", Verdict.NOTE, data=False)
    from nettop.kernel.net.sock_diag import dump

    refused = []
    for name, (protocol, state) in _DIAG_STATES.items():
        try:
            dump(protocol, 1 << state, info=False)
        except NettopError as error:
            refused.append(f"{name}: {error.what}")
    if not refused:
        return Check("sock_diag", "sock_diag", f"lists {' and '.join(_DIAG_STATES)}", data=True)
    remedy = "modprobe tcp_diag udp_diag, or a kernel with CONFIG_INET_DIAG and CONFIG_INET_UDP_DIAG"
    return Check("sock_diag", "sock_diag", "; ".join(refused), Verdict.NOTE, remedy, False)


def fentry_check(lenses: Iterable[LensReport], host: Iterable[Check]) -> Iterator[Check]:
    """Report whether fentry and fexit programs can be attached, as found by the lenses; nothing if none tried.

    No lens tries if something on the host stops programs, or if --mechanism excluded a required hook.
    """
    name = "fentry, fexit"
    reports = [(lens.declared(hook.hook), hook) for lens in lenses for hook in lens.hooks]
    hooks = [hook for _, hook in reports]
    missing = {hook.hook for hook in hooks if hook.mechanism is None}
    mechanisms = [
        (declared, why) for declared, hook in reports for name, why in hook.refused if _is_fentry(name)
    ]
    whys = dict.fromkeys(
        why for declared, why in mechanisms if why not in USER_CHOICES and declared.requires not in missing
    )
    if any(_is_fentry(hook.mechanism or "") for hook in hooks):
        yield Check("fentry", name, "yes", data=True)
    elif (mechanisms and not whys) or any(map(stops_programs, host)):
        yield Check("fentry", name, "not tried", Verdict.NOTE, data="unknown")
    elif whys:
        yield Check("fentry", name, f"no: {'; '.join(whys)}", Verdict.NOTE, data=False)


def files_check(lenses: Iterable[LensReport]) -> Iterator[Check]:
    """Report which of nettop's own files are missing, as found by the lenses; nothing if none is."""
    refusals = {lens.error.what: lens.error.remedy for lens in lenses if lens.error is not None}
    refusals |= {why: hook.remedy for lens in lenses for hook in lens.hooks for _, why in hook.refused}
    lost = {what: remedy for what, remedy in refusals.items() if PART_OF_NETTOP in what}
    if lost:
        remedy = "; ".join(dict.fromkeys(lost.values()))
        yield Check("files", "nettop's files", "; ".join(lost), Verdict.BAD, remedy, False)


def _is_fentry(mechanism: str) -> bool:
    return mechanism.startswith(("fentry/", "fexit/"))


# --- where nettop runs ----------------------------------------------------------------------------------------


def check_container(root: Path) -> Check:
    """Report whether this is a container, by the files of container runtimes and by the control group."""
    by_file = next((kind for path, kind in _CONTAINER_FILES.items() if (root / path).exists()), "")
    by_cgroup = container_of(Host(root).cgroup(os.getpid()) or "")
    inside = by_cgroup if by_cgroup and ":" in by_cgroup else by_file
    return Check("container", "container", inside or "no: the host itself", data=inside or None)


def check_pid_namespace(root: Path) -> Check:
    """Check that nettop is in the initial PID namespace, and that /proc shows its own."""
    name = "PID namespace"
    try:
        Host(root).require_own_pids()
    except Unsupported as error:
        return Check("pid_namespace", name, error.what, Verdict.BAD, error.remedy)
    inode = (root / "proc/self/ns/pid").stat().st_ino
    if inode == INITIAL_PID_NAMESPACE:
        return Check("pid_namespace", name, "the initial one", data=inode)
    value = f"not the initial one ({inode}): processes outside of it appear as (outside)"
    remedy = "to see them all, run nettop on the host, or in a container with --pid=host"
    return Check("pid_namespace", name, value, Verdict.NOTE, remedy, inode)


def check_stays_root(stays_root: str) -> Iterator[Check]:
    """Report why nettop stays root although another user called it; nothing if it does not."""
    if stays_root:
        remedy = _READABLE if "may not read" in stays_root else ""
        yield Check("stays_root", "rights", stays_root, Verdict.NOTE, remedy)


def check_processes(root: Path) -> Check:
    """Report which processes are visible: mount options of /proc (proc(5)) or missing rights may hide some."""
    host = Host(root)
    options = proc_options(host.proc)
    value, remedy = "", ""
    if host.hides_processes():
        value = f"hidepid={options['hidepid']}: " + (
            "other users' processes and containers are visible only as root, and nettop drops root"
            if sees_owners(root)
            else "other users' processes and the sockets they own are not visible"
        )
        remedy = "to see them all: mount -o remount,hidepid=0 /proc"
    elif not sees_owners(root):
        value = "sockets owned by other users' processes are not attributed"
        remedy = f"to see it: {host.how_to_see_owners()}"
    if "subset" in options:
        value = "; ".join(filter(None, (value, f"subset={options['subset']}: /proc shows only processes")))
        remedy = "to see all: mount -t proc proc /proc"
    verdict = Verdict.NOTE if value else Verdict.OK
    return Check(
        "processes", "processes", value or "all of this PID namespace are visible", verdict, remedy, not value
    )


def check_network_namespace(root: Path) -> Check:
    """Report whether nettop is in the host's network namespace: that of PID 1 or, if hidden, of most processes."""
    own = (root / "proc/self/ns/net").stat().st_ino
    name = "network namespace"
    namespaces = find_namespaces(root / "proc")
    by_size = sorted(namespaces, key=lambda inode: len(namespaces[inode]))
    first = root / "proc/1/ns/net"
    hosts = next((inode for inode, paths in namespaces.items() if first in paths), by_size[-1])
    if own in (hosts, _INITIAL_NETWORK_NAMESPACE):
        return Check("network_namespace", name, f"{own}, the host's", data=own)
    value = f"{own}, a private one: the host's, {hosts}, is visible only if nettop may enter it"
    remedy = "to run in the host's: nsenter --target 1 --net nettop doctor (containers: --network=host)"
    return Check("network_namespace", name, value, Verdict.NOTE, remedy, own)


def check_uplinks(_: Path) -> Iterator[Check]:
    """Name the devices whose queues the bandwidth lens may reset by attaching native XDP, as many drivers do."""
    names = [link.name for link in read_links() if link.has_bus_device() and link.is_up]
    if names:
        value = f"{', '.join(names)}: native XDP, which the bandwidth lens attaches, may reset their queues"
        remedy = "if traffic must never stop for a moment: --xdp tcx (Linux 6.6; default of serve and log), or generic"
        yield Check("uplinks", "uplinks", value, Verdict.NOTE, remedy, names)


def check_priority(_: Path) -> Check:
    """Report the CPU priority of commands that watch this host."""
    is_refused = os.geteuid() == 0 and priority.state == priority.REFUSED
    remedy = "add CAP_SYS_NICE (docker run --cap-add SYS_NICE), or nettop may be late on full CPUs"
    verdict = Verdict.NOTE if is_refused else Verdict.OK
    return Check("priority", "priority", priority.state, verdict, remedy if is_refused else "")


def check_limits(_: Path) -> Iterable[Check]:
    """Report the limits of locked memory, address space, memory, open files and processes."""
    memory, space, files = (
        resource.getrlimit(limit)[0]
        for limit in (resource.RLIMIT_MEMLOCK, resource.RLIMIT_AS, resource.RLIMIT_NOFILE)
    )
    for key, name, limit, note in (
        ("memlock", "locked memory", memory, " (for BPF maps only before Linux 5.11)"),
        ("address_space", "address space", space, " per process"),
    ):
        unlimited = limit == resource.RLIM_INFINITY
        text = "unlimited" if unlimited else f"{limit:,} bytes{note}"
        yield Check(key, name, text, data=None if unlimited else limit)
    enough = files == resource.RLIM_INFINITY or files >= _MIN_FILES
    remedy = "" if enough else f"ulimit -n {_MIN_FILES}: each network namespace needs descriptors"
    yield Check("nofile", "open files", f"{files:,}", Verdict.OK if enough else Verdict.NOTE, remedy, files)
    for key, name, found in (
        ("memory", "memory", memory_limits()),
        ("processes_max", "threads", process_limits()),
    ):
        value = "; ".join(limit.what for limit in found) or "only the host's limit"
        yield Check(key, name, value, data=[limit.what for limit in found])


# --- settings and mounts --------------------------------------------------------------------------------------

_SYSCTLS: dict[str, dict[str, tuple[str, str]]] = {
    "kernel.unprivileged_bpf_disabled": {},
    "kernel.kptr_restrict": {
        "2": ("the places of packet drops are unknown", "sysctl kernel.kptr_restrict=1"),
    },
    "kernel.perf_event_paranoid": {},
    "net.core.bpf_jit_enable": {
        "0": (
            "BPF programs are interpreted, which costs several times more",
            "sysctl net.core.bpf_jit_enable=1",
        ),
    },
    "kernel.bpf_stats_enabled": {
        "1": ("each run of a BPF program takes about 50 ns more", "sysctl kernel.bpf_stats_enabled=0"),
    },
}
"""Relevant settings, and their harmful values: the effect and the remedy."""


def check_sysctls(root: Path) -> Iterable[Check]:
    """Report kernel settings that matter to nettop."""
    for key, harmful in _SYSCTLS.items():
        name = key.rpartition(".")[2]
        try:
            value = (root / "proc/sys" / key.replace(".", "/")).read_text().strip()
        except OSError as error:
            yield Check(key, name, f"cannot be read: {error.strerror}")
            continue
        if value in harmful:
            harm, remedy = harmful[value]
            yield Check(key, name, f"{value}: {harm}", Verdict.NOTE, remedy, value)
        else:
            yield Check(key, name, value)


def check_mounts(root: Path) -> Iterable[Check]:
    """Report where tracefs and the control groups are mounted."""
    mounted = mounts(root / "proc")
    tracefs = [mount.point for mount in mounted if mount.kind in ("tracefs", "debugfs")]
    text = ", ".join(tracefs) or "not mounted"
    yield Check("tracefs", "tracefs", f"{text} (not needed by nettop)", data=tracefs)
    unified = [mount.point for mount in mounted if mount.kind == "cgroup2"]
    old = [mount.point for mount in mounted if mount.kind == "cgroup"]
    value = "; ".join(
        filter(None, (f"v2 at {unified[0]}" if unified else "", f"v1 at {len(old)} places" if old else ""))
    )
    yield Check(
        "cgroup", "control groups", value or "not mounted (nettop reads /proc/PID/cgroup)", data=unified
    )


_CHECKS: tuple[Callable[[Path], Check | Iterable[Check]], ...] = (
    check_nettop,
    check_lenses,
    check_kernel,
    check_btf,
    check_calls,
    check_lockdown,
    check_kprobes,
    check_sock_diag,
    check_user,
    check_user_namespace,
    check_capabilities,
    check_pid_namespace,
    check_processes,
    check_network_namespace,
    check_container,
    check_uplinks,
    check_limits,
    check_priority,
    check_sysctls,
    check_python,
    check_numpy,
    check_bcc,
    check_program_cache,
    check_libbpf,
    check_mounts,
)
