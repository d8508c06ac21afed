# SPDX-License-Identifier: Apache-2.0
"""Facts about this host, from /proc and /sys. Everything is read below `root`, which a test may replace."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nettop.errors import NettopError, PermissionMissing, Unsupported
from nettop.kernel import bpf, privileges
from nettop.kernel.btf_file import require_btf
from nettop.kernel.capabilities import how_to_get, missing_for
from nettop.kernel.privileges import CAP_SYS_ADMIN, LOADING, LOOKING
from nettop.kernel.proc_files import mounts, proc_options, read_text
from nettop.snapshots.safe_text import safe_bytes, safe_text

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
"""The end of the names of groups that hold a container's monitor, which runs on the host."""
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
"""A character that is escaped in the name of a unit."""
_UNIT = re.compile(r"/([^/]+\.(?:service|scope|socket|mount))(?=/|$)")
_SHORT_ID = 12
_CGROUP_MOUNT = re.compile(r"^\d+ \d+ \S+ / (\S+) .* - cgroup2 ", re.MULTILINE)
_OLD_CGROUP_MOUNT = re.compile(r" - cgroup ")
_CGROUPS_MAX = 1 << 16
_LEAF_LINKS = 2
"""Links to a directory that has no directories."""
_HIDES_NOTHING = ("off", "0")
"""Values of the option hidepid; newer kernels write words."""
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of include/linux/proc_ns.h."""
INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""PROC_USER_INIT_INO of include/linux/proc_ns.h."""
_OUTSIDE_USER_NAMESPACE = (
    "run it outside of the user namespace (no unshare --user, no rootless container), as root: sudo nettop"
)
_FILTERED = "2"
"""SECCOMP_MODE_FILTER of include/uapi/linux/seccomp.h."""
_OPTIONS = {"bpf": "CONFIG_BPF_SYSCALL", "perf_event_open": "CONFIG_PERF_EVENTS"}
"""What a kernel has these system calls by."""


@dataclass(frozen=True, slots=True)
class Sockstat:
    """What a network namespace counts of its own sockets (/proc/net/sockstat and sockstat6).

    `tcp` and `udp` are sockets in the hash tables, of both families; `time_wait` those in TIME_WAIT.
    """

    tcp: int
    udp: int
    time_wait: int


class Host:
    """Facts about the host below `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root
        self.proc = root / "proc"

    # --- BPF ----------------------------------------------------------------------------------------------

    def require_bpf(self) -> None:
        """Raise Unsupported or PermissionMissing when no program can be loaded here, with the remedy."""
        require_btf(self.root)
        self.require_initial_user_namespace()
        self.require_capabilities()
        self.require_bpf_calls()
        self.require_no_lockdown()

    def require_initial_user_namespace(self) -> None:
        """Raise PermissionMissing in another user namespace."""
        if not self.reaches_kernel():
            raise PermissionMissing(
                "capabilities held in a user namespace do not reach the kernel",
                _OUTSIDE_USER_NAMESPACE,
            )

    def require_capabilities(self, needed: frozenset[int] = LOADING, what: str = "BPF programs") -> None:
        """Raise PermissionMissing without those that loading takes; CAP_SYS_ADMIN replaces them all."""
        held = self.effective()
        if CAP_SYS_ADMIN not in held and (missing := sorted(needed - held, reverse=True)):
            raise missing_for(f"loading {what}", missing, self.permitted())

    def require_bpf_calls(self) -> None:
        """Raise PermissionMissing or Unsupported where bpf(2) does not reach the kernel."""
        number = bpf.errno_before_kernel()
        if number:
            raise self.blocked_call("bpf", number)

    def require_no_lockdown(self) -> None:
        """Raise Unsupported where the kernel is locked down so that no program may read its memory."""
        if self.lockdown() == "confidentiality":
            raise Unsupported(
                "the kernel is locked down (confidentiality): it lets no program read its memory",
                "boot with lockdown=integrity on the kernel's command line in place of lockdown=confidentiality",
            )

    def pid_namespace(self) -> int:
        """The inode number of nettop's PID namespace; the initial one's where /proc does not show it."""
        try:
            return os.stat(self.proc / "self/ns/pid").st_ino
        except OSError:
            return INITIAL_PID_NAMESPACE

    def require_own_pids(self) -> None:
        """Raise Unsupported where /proc is not mounted, or of another PID namespace: its PIDs name other processes."""
        own = self.proc / "self"
        if not os.path.lexists(own):
            raise Unsupported("/proc is not mounted", "mount -t proc proc /proc")
        try:
            is_own = os.readlink(own) == str(os.getpid())
        except OSError as error:
            is_own = error.errno != errno.ENOENT
        if not is_own:
            raise Unsupported(
                "/proc shows another PID namespace than the one that nettop runs in",
                "mount the namespace's own: unshare --mount-proc, or mount -t proc proc /proc; "
                "or enter no PID namespace: nsenter without --pid",
            )

    def blocked_call(self, call: str, number: int) -> NettopError:
        """The error for a system call that fails with this errno before the kernel looks at its arguments."""
        why = os.strerror(number).lower()
        if self._status("Seccomp") == _FILTERED:
            return PermissionMissing(
                f"a seccomp filter denies {call}(2) (Seccomp: {_FILTERED} in /proc/self/status): {why}",
                f"allow {call} in the filter: docker run --security-opt seccomp=PROFILE.json, or =unconfined; "
                f"in a unit of systemd let SystemCallFilter= have {call}",
            )
        if number == errno.ENOSYS:
            return Unsupported(f"this kernel has no {call}(2)", f"use a kernel with {_OPTIONS[call]}")
        return PermissionMissing(
            f"{call}(2) fails before the kernel looks at it, likely in a sandbox: {why}",
            "run nettop outside of the sandbox",
        )

    def effective(self) -> frozenset[int]:
        """The capabilities that the calling thread uses."""
        return self._capabilities("CapEff", privileges.effective)

    def permitted(self) -> frozenset[int]:
        """The capabilities that the calling thread may use."""
        return self._capabilities("CapPrm", privileges.held)

    def _capabilities(self, label: str, ask_kernel: Callable[[], frozenset[int]]) -> frozenset[int]:
        """Return the set that /proc has, or where it is not mounted, what the kernel says."""
        if not read_text(self.proc / "thread-self/status"):
            return ask_kernel()
        mask = int(self._status(label) or "0", 16)
        return frozenset(number for number in range(mask.bit_length()) if mask >> number & 1)

    def _status(self, label: str) -> str:
        """A line of the calling thread's status; empty where there is none."""
        line = re.search(rf"^{label}:\s*(\S+)", read_text(self.proc / "thread-self/status"), re.MULTILINE)
        return line[1] if line else ""

    def how_to_see_owners(self) -> str:
        """What would let nettop see which sockets other users' processes hold, where it may not."""
        if not self.reaches_kernel():
            return _OUTSIDE_USER_NAMESPACE
        return how_to_get(sorted(LOOKING - self.effective()), self.permitted())

    def reaches_kernel(self) -> bool:
        """Whether capabilities reach the kernel, or only what a user namespace owns."""
        return self.user_namespace() in (None, INITIAL_USER_NAMESPACE)

    def in_initial_pid_namespace(self) -> bool:
        """False in a container's PID namespace, which does not show the processes outside of it."""
        return self.pid_namespace() == INITIAL_PID_NAMESPACE

    def hides_processes(self) -> bool:
        """True where /proc shows users only their own processes (hidepid of proc(5))."""
        return self.proc_options().get("hidepid", "off") not in _HIDES_NOTHING

    def proc_options(self) -> dict[str, str]:
        """Return the mount options of /proc."""
        return proc_options(self.proc)

    def is_real_time(self) -> bool:
        """True on a kernel with PREEMPT_RT, by its version: softirqs can be preempted there."""
        return "PREEMPT_RT" in read_text(self.proc / "sys/kernel/version").split()

    def lockdown(self) -> str | None:
        """The kernel's lockdown mode, "none" on a kernel without lockdown. Where securityfs is not mounted it is tried
        out, which does not distinguish "none" from "integrity"; None where that cannot be tried.
        """
        mode = re.search(r"\[(\w+)\]", read_text(self.root / "sys/kernel/security/lockdown"))
        if mode:
            return mode[1]
        if any(mount.kind == "securityfs" for mount in mounts(self.root)):
            return "none"
        return {True: "none or integrity", False: "confidentiality", None: None}[bpf.may_read_kernel()]

    def user_namespace(self) -> int | None:
        """The inode number of nettop's user namespace; None where /proc does not show it."""
        try:
            return (self.proc / "self/ns/user").stat().st_ino
        except OSError:
            return None

    # --- network namespaces -------------------------------------------------------------------------------

    def sockstat(self) -> Sockstat:
        """The counts of the calling thread's network namespace."""
        net = self.proc / "thread-self/net"
        counts: Counter[str] = Counter()
        for line in (read_text(net / "sockstat") + read_text(net / "sockstat6")).splitlines():
            protocol, *words = line.split()  # such as TCP: inuse 5 tw 2
            counts.update({protocol + key: int(n) for key, n in zip(words[::2], words[1::2], strict=False)})
        return Sockstat(
            tcp=counts["TCP:inuse"] + counts["TCP6:inuse"],
            udp=counts["UDP:inuse"] + counts["UDP6:inuse"],
            time_wait=counts["TCP:tw"],
        )

    # --- processes ----------------------------------------------------------------------------------------

    def cgroup(self, pid: int) -> str | None:
        """Return the control group of a process: the first path that leads into a container, of the unified
        hierarchy and then of the old ones, the longest first; else the first path.

        None when the process is gone.
        """
        lines = read_text(self.proc / str(pid) / "cgroup").splitlines()
        paths = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines if line.count(":") >= 2}
        if not paths:
            return None
        # On a hybrid host the unified hierarchy may be unused, with everything in its root, or have the runtime's unit.
        unified = paths.pop("", "/")
        old = sorted(paths.values(), key=len, reverse=True)
        ordered = [unified, *old] if unified != "/" else [*old, unified]
        return next((path for path in ordered if _innermost_container(path)), ordered[0])

    def cgroups_by_id(self) -> dict[int, str]:
        """The control groups of the unified hierarchy, by the lower half of their ids, which no two have at once.

        An id is the inode number of the group's directory. The root is not among them where there are old hierarchies,
        which say more.
        """
        mounts = read_text(self.proc / "self/mountinfo")
        mount = _CGROUP_MOUNT.search(mounts)
        if mount is None:
            return {}
        top = f"{self.root}/{mount[1]}"
        groups = {} if _OLD_CGROUP_MOUNT.search(mounts) else {_lower_half(os.stat(top).st_ino): "/"}
        unread = [""]
        while unread and len(groups) < _CGROUPS_MAX:
            path = unread.pop()
            with suppress(OSError), os.scandir(f"{top}{path}") as entries:
                for entry in filter(os.DirEntry.is_dir, entries):
                    stat = entry.stat()
                    groups[_lower_half(stat.st_ino)] = f"{path}/{entry.name}"
                    if stat.st_nlink != _LEAF_LINKS:
                        unread.append(f"{path}/{entry.name}")
        return groups

    def process_name(self, pid: int) -> str:
        """The name of a process's first thread, safe to show; empty when it is gone."""
        return safe_text(read_text(self.proc / str(pid) / "comm").rstrip("\n"))

    def command_line(self, pid: int) -> str:
        """The command line of a process, safe to show; empty when it is gone or a kernel thread."""
        try:
            raw = (self.proc / str(pid) / "cmdline").read_bytes()
        except OSError:
            return ""
        return safe_bytes(raw.rstrip(b"\0").replace(b"\0", b" "))


def container_of(cgroup: str) -> str | None:
    """Return the innermost container (`runtime:name`, or `runtime:short id`) that a control group belongs to,
    also where that has systemd units of its own; else its systemd unit.

    Knows the paths of Docker, containerd, Podman, CRI-O and runc, with the systemd driver and with their own,
    of LXC, LXD and Proxmox, of what systemd-machined registers, and of ECS.
    """
    container = _innermost_container(cgroup)
    if container is not None:
        return container
    units = _UNIT.findall(cgroup)
    return units[-1] if units else None


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


def _lower_half(number: int) -> int:
    return number & 0xFFFFFFFF
