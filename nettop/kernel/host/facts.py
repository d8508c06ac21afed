# SPDX-License-Identifier: Apache-2.0
"""Facts about this host from /proc and /sys, read below `root`, which tests may replace."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from nettop.errors import NettopError, PermissionMissing, Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.host import privileges
from nettop.kernel.host.privileges import CAP_SYS_ADMIN, FINDING_NAMESPACES, LOADING, how_to_get, missing_for
from nettop.kernel.host.proc_files import (
    mounts,
    proc_options,
    read_required,
    read_sockstat,
    read_text,
    stat_words,
)
from nettop.snapshots.safe_text import safe_bytes, safe_text

BTF_FILE = "/sys/kernel/btf/vmlinux"
_CONTAINER = re.compile(
    r"/(?:"
    r"lxc(?:\.payload[./]|/)(?P<lxc>[^/]+)"  # LXC, LXD, Incus, Proxmox
    r"|systemd-nspawn@(?P<nspawn>[^/]+)\.service"
    r"|machine-(?P<machine>[^/]+)\.scope"  # registered with systemd-machined
    r"|ecs/[^/]+/(?P<ecs>[0-9a-f]{32}-\d+)"
    r"|(?:[^/:]+:)?(?:(?P<runtime>[a-z_-]+)[-:])?(?P<id>[0-9a-f]{64})(?:\.scope)?"
    r")(?=/|$)"
)
_RUNTIMES = {
    "docker": "docker",
    "crio": "cri-o",
    "cri-containerd": "containerd",
    "libpod": "podman",
    "libpod-payload": "podman",
    "nerdctl": "nerdctl",
}
_RUNTIMES_BY_PATH = {"/ecs/": "ecs", "/docker/": "docker", "kubepods": "containerd"}
_MONITOR = "conmon"
"""Suffix of the runtime in the cgroup names of container monitors, which run on the host."""
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
"""An escaped character in a unit name."""
_UNIT = re.compile(r"/([^/]+\.(?:service|scope|socket|mount))(?=/|$)")
_SHORT_ID = 12
_MONITORED = re.compile(rf"(?<=-{_MONITOR}-)([0-9a-f]{{{_SHORT_ID}}})[0-9a-f]{{{64 - _SHORT_ID}}}")
"""The ID of a container in the name of its monitor's unit."""
_CGROUPS_MAX = 1 << 16
_LOWER_HALF = 0xFFFFFFFF
_LEAF_LINKS = 2
"""Link count of a directory without subdirectories."""
_HIDES_NOTHING = ("off", "0")
"""Values of the mount option hidepid that hide no processes; newer kernels show words."""
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of include/linux/proc_ns.h."""
INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""PROC_USER_INIT_INO of include/linux/proc_ns.h."""
_OUTSIDE_USER_NAMESPACE = (
    "run it as root outside the user namespace (no unshare --user, no rootless container): sudo nettop"
)
ROOT_CGROUP = 1
"""Inode number of the directory of the root control group in the unified hierarchy."""
_PF_EXITING = 0x4
"""Flag of include/linux/sched.h."""
_FILTERED = "2"
"""SECCOMP_MODE_FILTER of include/uapi/linux/seccomp.h."""
_OPTIONS = {"bpf": "CONFIG_BPF_SYSCALL", "perf_event_open": "CONFIG_PERF_EVENTS"}
"""Kernel config options that provide these system calls."""


class SocketCounts(NamedTuple):
    """Counts of a network namespace: `tcp` and `udp` sockets in the hash tables, IPv4 and IPv6; those in TIME_WAIT; and
    half-open connections of its listeners."""

    tcp: int = 0
    udp: int = 0
    time_wait: int = 0
    half_open: int = 0


@dataclass(slots=True)
class Kept:
    """Resources for all probes that nettop opened at its start, before dropping privileges.

    - `clocks`: events by CPU. They do not tick yet and cost nothing.
    - `symbols`: a descriptor of /proc/kallsyms, which shows addresses to those who opened it with CAP_SYSLOG.
    - `net_loader`: a thread that may load programs for network interfaces.
    - `ask_firewall`: sends a request to nf_tables on a socket, by a thread that may (nf_rules.py).
    - `no_firewall`: why no thread may.
    - `namespaces`: the `Namespaces` of this host (entered_namespaces.py), each with a thread inside.

    Hold `lock` to read the symbols or to share the namespaces: one lens may be attached while others are read.
    """

    clocks: dict[int, int] = field(default_factory=dict)
    symbols: int | None = None
    net_loader: ThreadPoolExecutor | None = None
    ask_firewall: Callable[[socket.socket, bytes], None] | None = None
    no_firewall: PermissionMissing | None = None
    namespaces: object = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class Host:
    """Facts about the host below `root`, and the resources that its probes share (`kept`)."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.proc = root / "proc"
        self.kept = Kept()

    # --- BPF ----------------------------------------------------------------------------------------------

    def require_bpf(self) -> None:
        """Raise Unsupported or PermissionMissing, with the remedy, if no program can be loaded here."""
        self.require_btf()
        self.require_initial_user_namespace()
        self.require_capabilities()
        self.require_bpf_calls()
        self.require_no_lockdown()

    def require_btf(self) -> None:
        """Raise Unsupported, with the remedy, unless the kernel describes its types."""
        try:
            read_required(BTF_FILE, self.root, 1)
        except Unsupported as error:
            if error.remedy:
                raise
            raise Unsupported(
                f"this kernel does not describe its types ({error.what})",
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions have since 2021: "
                "Linux 5.12 or later",
            ) from error

    def require_initial_user_namespace(self) -> None:
        """Raise PermissionMissing outside the initial user namespace."""
        if not self.reaches_kernel():
            raise PermissionMissing(
                "capabilities held in a user namespace do not reach the kernel", _OUTSIDE_USER_NAMESPACE
            )

    def require_capabilities(self, needed: frozenset[int] = LOADING, what: str = "BPF programs") -> None:
        """Raise PermissionMissing if capabilities needed to load are missing; CAP_SYS_ADMIN replaces them all."""
        held = privileges.effective()
        if CAP_SYS_ADMIN not in held and (missing := sorted(needed - held, reverse=True)):
            raise missing_for(f"loading {what}", missing, privileges.held())

    def require_bpf_calls(self) -> None:
        """Raise PermissionMissing or Unsupported if bpf(2) does not reach the kernel."""
        if number := bpf.errno_before_kernel():
            raise self.blocked_call("bpf", number)

    def require_no_lockdown(self) -> None:
        """Raise Unsupported if kernel lockdown keeps programs from reading kernel memory."""
        if self.lockdown() == "confidentiality":
            raise Unsupported(
                "the kernel is locked down (confidentiality): BPF programs cannot read its memory",
                "boot with lockdown=integrity instead of lockdown=confidentiality on the kernel command line",
            )

    def pid_namespace(self) -> int:
        """Return the inode number of nettop's PID namespace; the initial one's if /proc does not show it."""
        return self.namespace("pid") or INITIAL_PID_NAMESPACE

    def require_own_pids(self) -> None:
        """Raise Unsupported if /proc is not mounted or shows another PID namespace, where PIDs mean other processes."""
        own = self.proc / "self"
        if not os.path.lexists(own):
            raise Unsupported("/proc is not mounted", "mount -t proc proc /proc")
        try:
            is_own = os.readlink(own) == str(os.getpid())
        except OSError as error:
            is_own = error.errno != errno.ENOENT
        if not is_own:
            raise Unsupported(
                "/proc shows a different PID namespace from the one nettop runs in",
                "mount this namespace's /proc: unshare --mount-proc, or mount -t proc proc /proc; "
                "or stay in the host's PID namespace: nsenter without --pid",
            )

    def blocked_call(self, call: str, number: int) -> NettopError:
        """Return the error for a system call that fails with this errno before the kernel checks its arguments."""
        why = os.strerror(number).lower()
        status = read_text(self.proc / "thread-self/status")
        if re.search(rf"^Seccomp:\s*{_FILTERED}$", status, re.MULTILINE):
            return PermissionMissing(
                f"a seccomp filter denies {call}(2) (Seccomp: {_FILTERED} in /proc/self/status): {why}",
                f"allow {call} in the filter: docker run --security-opt seccomp=PROFILE.json, or =unconfined; "
                f"in a systemd unit, add {call} to SystemCallFilter=",
            )
        if number == errno.ENOSYS:
            return Unsupported(f"this kernel has no {call}(2)", f"use a kernel with {_OPTIONS[call]}")
        return PermissionMissing(
            f"{call}(2) fails before the kernel handles it, likely in a sandbox: {why}",
            "run nettop outside the sandbox",
        )

    def how_to_see_owners(self) -> str:
        """Return how to let nettop see the owners of other users' sockets."""
        if not self.reaches_kernel():
            return _OUTSIDE_USER_NAMESPACE
        return how_to_get(sorted(FINDING_NAMESPACES - privileges.effective()), privileges.held())

    def reaches_kernel(self) -> bool:
        """Return whether capabilities apply to the kernel, not just to the resources of a user namespace."""
        return self.namespace("user") in (None, INITIAL_USER_NAMESPACE)

    def in_initial_pid_namespace(self) -> bool:
        """Return False in a container's PID namespace, which hides the processes outside it."""
        return self.pid_namespace() == INITIAL_PID_NAMESPACE

    def hides_processes(self) -> bool:
        """Return True if /proc shows users only their own processes (hidepid, proc(5))."""
        return proc_options(self.proc).get("hidepid", "off") not in _HIDES_NOTHING

    def lockdown(self) -> str | None:
        """Return the kernel's lockdown mode, "none" on a kernel without lockdown.

        Return None without securityfs.
        """
        mode = re.search(r"\[(\w+)\]", read_text(self.root / "sys/kernel/security/lockdown"))
        if mode:
            return mode[1]
        return "none" if any(mount.kind == "securityfs" for mount in mounts(self.proc)) else None

    def namespace(self, kind: str) -> int | None:
        """Return the inode number of a namespace of nettop's, such as `user`; None if /proc does not show it."""
        with suppress(OSError):
            return os.stat(self.proc / "self/ns" / kind).st_ino
        return None

    # --- network namespaces -------------------------------------------------------------------------------

    def sockstat(self) -> SocketCounts:
        """Return the counts of the calling thread's network namespace (sockstat, sockstat6); none half-open."""
        counts = Counter(read_sockstat(self.proc, "sockstat", "sockstat6"))
        return SocketCounts(
            tcp=counts["TCP inuse"] + counts["TCP6 inuse"],
            udp=counts["UDP inuse"] + counts["UDP6 inuse"],
            time_wait=counts["TCP tw"],
        )

    # --- processes ----------------------------------------------------------------------------------------

    def cgroup(self, pid: int) -> str | None:
        """Return the control group of a process: the first path inside a container, else the first path. The unified
        hierarchy comes first, then the v1 hierarchies, longest path first.

        Return None if the process is gone. While it exits, v1 hierarchies say "/" (proc_cgroup_show in
        kernel/cgroup/cgroup.c): it is unknown too.
        """
        lines = read_text(self.proc / str(pid) / "cgroup").splitlines()
        paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines if line.count(":") >= 2}
        if not paths:
            return None
        # On a hybrid host the unified hierarchy may be unused, with all processes in its root, or hold the runtime's
        # unit.
        unified = paths.pop("", "/")
        old = sorted(paths.values(), key=len, reverse=True)
        ordered = [unified, *old] if unified != "/" else [*old, unified]
        if old and ordered[0] == "/":
            words = stat_words(self.proc, pid)
            if not words or int(words[6]) & _PF_EXITING:
                return None
        return next((path for path in ordered if _innermost_container(path)), ordered[0])

    def root_cgroup(self) -> str | None:
        """Return the directory of the control group that contains all others in the unified hierarchy; None if it is
        not mounted here. A container may see only its own."""
        for mount in mounts(self.proc):
            place = f"{self.root}/{mount.point}"
            with suppress(OSError):
                if mount.kind == "cgroup2" and os.stat(place).st_ino == ROOT_CGROUP:
                    return place
        return None

    def cgroups_by_id(self) -> dict[int, str]:
        """Map the lower half of each control group's id, which is unique at any time, to its unified hierarchy path.

        An id is the inode number of the group's directory. Omits the root if there are v1 hierarchies, which say more.
        """
        mounted = mounts(self.proc)
        unified = [mount.point for mount in mounted if (mount.source, mount.kind) == ("/", "cgroup2")]
        if not unified:
            return {}
        top = f"{self.root}/{unified[0]}"
        groups: dict[int, str] = {}
        if all(mount.kind != "cgroup" for mount in mounted):
            with suppress(OSError):
                groups[os.stat(top).st_ino & _LOWER_HALF] = "/"
        unread = [""]
        while unread and len(groups) < _CGROUPS_MAX:
            path = unread.pop()
            with suppress(OSError), os.scandir(f"{top}{path}") as entries:
                for entry in filter(os.DirEntry.is_dir, entries):
                    stat = entry.stat()
                    groups[stat.st_ino & _LOWER_HALF] = f"{path}/{entry.name}"
                    if stat.st_nlink != _LEAF_LINKS:
                        unread.append(f"{path}/{entry.name}")
        return groups

    def process_name(self, pid: int) -> str:
        """Return the name of a process's main thread, safe to display; empty if it is gone."""
        return safe_text(read_text(self.proc / str(pid) / "comm").rstrip("\n"))

    def command_line(self, pid: int) -> str:
        """Return a process's command line, safe to display; empty if it is gone or a kernel thread."""
        try:
            raw = (self.proc / str(pid) / "cmdline").read_bytes()
        except OSError:
            return ""
        return safe_bytes(raw.rstrip(b"\0").replace(b"\0", b" "))


@lru_cache(4096)
def container_of(cgroup: str) -> str | None:
    """Return the innermost container of a control group (`runtime:name` or `runtime:short id`), even if the container
    runs systemd units of its own; else its systemd unit.

    Recognizes the paths of Docker, containerd, Podman, CRI-O and runc, with the systemd and cgroupfs drivers, of LXC,
    LXD, Proxmox and ECS, and of machines registered with systemd-machined.
    """
    if container := _innermost_container(cgroup):
        return container
    units = _UNIT.findall(cgroup)
    return _MONITORED.sub(r"\1", units[-1]) if units else None


def _innermost_container(cgroup: str) -> str | None:
    for match in reversed(list(_CONTAINER.finditer(cgroup))):
        runtime = match["runtime"] or ""
        if match["id"] is None:
            kind, name = next((kind, name) for kind, name in match.groupdict().items() if name)
            return f"{kind}:{_ESCAPED.sub(lambda escaped: chr(int(escaped[1], 16)), name)}"
        if not runtime.endswith(_MONITOR):
            by_path = (name for mark, name in _RUNTIMES_BY_PATH.items() if mark in cgroup)
            return f"{_RUNTIMES.get(runtime) or next(by_path, 'container')}:{match['id'][:_SHORT_ID]}"
    return None
