# SPDX-License-Identifier: Apache-2.0
"""Capabilities: their names, how to get missing ones, and how to drop others.

Each thread has its own; threads that it starts inherit them.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache

from nettop.errors import NettopError, PermissionMissing
from nettop.kernel import bpf_syscall as bpf

CAP_DAC_READ_SEARCH = 2
CAP_SETGID = 6
CAP_SETUID = 7
CAP_SETPCAP = 8
CAP_NET_ADMIN = 12
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_SYSLOG = 34
CAP_PERFMON = 38
CAP_BPF = 39
"""Capability numbers (include/uapi/linux/capability.h)."""

_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Names by number (include/uapi/linux/capability.h)."""
KNOWN = range(len(_NAMES))

BEGAN_AS_ROOT = os.geteuid() == 0
"""Whether nettop started as root. Evaluated at import, before nettop switches to the calling user."""

NOTHING: frozenset[int] = frozenset()
LOADING = frozenset(
    {
        CAP_BPF,  # load programs
        CAP_PERFMON,  # that read kernel memory
    }
)
LOADING_NET = LOADING | {
    CAP_NET_ADMIN,  # for network interfaces
}
LOADER = LOADING_NET | {
    CAP_SYS_RESOURCE,  # raise the locked-memory limit if maps count against it (before 5.11)
    CAP_SYS_ADMIN,  # open kprobes if the sysctl kernel.perf_event_paranoid is 3
}
"""Capabilities that the loading thread and the compiler keep, if nettop has them at its start."""
ENTERING = frozenset(
    {
        CAP_SYS_ADMIN,  # enter network namespaces
        CAP_SYS_PTRACE,  # find them through other users' processes
        CAP_DAC_READ_SEARCH,
    }
)
FINDING_NAMESPACES = ENTERING - {CAP_SYS_ADMIN}
"""Capabilities needed to find namespaces without entering them."""
STARTING = (
    LOADER
    | ENTERING
    | {
        CAP_NET_ADMIN,  # set up the namespace in which hooks are checked
        CAP_SYSLOG,  # see kernel function addresses, to name the one that dropped a packet
        CAP_SETPCAP,  # remove dropped capabilities from the bounding set too
    }
)
CHANGING_USER = frozenset({CAP_SETUID, CAP_SETGID})
DROPPING_BOUNDING = frozenset({CAP_SETPCAP})
"""Capabilities needed to remove others from the bounding set."""

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_HEADER = struct.pack("=II", _CAPABILITY_VERSION_3, 0)
_ALL = frozenset(range(64))
_libc = ctypes.CDLL(None, use_errno=True)


# --- missing capabilities ----------------------------------------------------------------------------------


def name_of(number: int) -> str:
    """Return a capability's name: `CAP_BPF` for 39."""
    return f"CAP_{_NAMES[number]}" if number in KNOWN else f"capability {number}"


def require(wanted: Collection[int], doing: str) -> None:
    """Raise PermissionMissing, with the missing names, if the calling thread lacks any `wanted` capability."""
    missing = sorted(set(wanted) - effective(), reverse=True)
    if missing:
        raise missing_for(doing, missing, held())


def missing_for(doing: str, missing: Collection[int], permitted: Collection[int]) -> PermissionMissing:
    """Return the error for an action that needs the `missing` capabilities."""
    return PermissionMissing(
        f"{doing} needs {' and '.join(map(name_of, missing))}", how_to_get(missing, permitted)
    )


def how_to_get(missing: Collection[int], permitted: Collection[int]) -> str:
    """Return how to get the missing capabilities. Root, or an executable that has them, lost them to a container or a
    unit; other users never had them."""
    words = _joined_names(missing)
    if not BEGAN_AS_ROOT:
        if of_file(sys.executable).issuperset(missing):
            return _how_to_get_for_file(missing)
        return (
            f"run it as root: sudo nettop; or give it {words} (setpriv --ambient-caps, AmbientCapabilities=)"
        )
    if set(missing) <= set(permitted):
        return f"{words}: permitted but not effective; the program that starts nettop must raise them"
    return (
        f"this root is confined: add {words} to the container ({_docker(missing)}) "
        "or the unit (CapabilityBoundingSet=)"
    )


def _how_to_get_for_file(missing: Collection[int]) -> str:
    """Return how to get capabilities that the executable has, as in nettop's container image."""
    remedies = []
    if ignored := [number for number in missing if not is_withheld(number)]:
        remedies.append(
            "remove --security-opt no-new-privileges (Kubernetes: set allowPrivilegeEscalation: true) or the nosuid "
            f"mount option: with either, the kernel ignores the {_joined_names(ignored)} of {sys.executable}"
        )
    if withheld := [number for number in missing if is_withheld(number)]:
        remedies.append(
            f"add {_joined_names(withheld)} to the container ({_docker(withheld)}; "
            f"Kubernetes: capabilities.add {', '.join(map(_short, withheld))})"
        )
    return "; ".join(remedies)


def _joined_names(numbers: Collection[int]) -> str:
    return ", ".join(map(name_of, numbers))


def _docker(numbers: Collection[int]) -> str:
    return f"docker run {' '.join(f'--cap-add {_short(number)}' for number in numbers)}"


def _short(number: int) -> str:
    return name_of(number).removeprefix("CAP_")


# --- the calling thread's capabilities ------------------------------------------------------------------------


def held() -> frozenset[int]:
    """Return the calling thread's permitted capabilities."""
    return _sets()[1]


def effective() -> frozenset[int]:
    """Return the calling thread's effective capabilities."""
    return _sets()[0]


def use_permitted() -> None:
    """Make all permitted capabilities effective.

    Capabilities of a file without the effective bit (`setcap …=p`) are only permitted. With the bit, the kernel refuses
    to execute the file if one of them is withheld.
    """
    effective, permitted, inheritable = _sets()
    if effective != permitted:
        _set(permitted, permitted, inheritable)


def is_withheld(capability: int) -> bool:
    """Return whether this thread can never gain the capability because it is not in the bounding set."""
    in_bounding_set: int = _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
    return in_bounding_set == 0


def of_file(path: str) -> frozenset[int]:
    """Return a file's permitted capabilities (struct vfs_cap_data of include/uapi/linux/capability.h)."""
    try:
        data = os.getxattr(path, "security.capability")
        _, low, _, high, _ = struct.unpack_from("<5I", data)
    except (OSError, struct.error):
        return NOTHING
    return frozenset(number for number in _ALL if (low | high << 32) >> number & 1)


def keep_only(kept: frozenset[int]) -> None:
    """Drop all capabilities but `kept` permanently, for this thread, its later threads and its children.

    The kept ones are in all sets, so child programs have them too, whatever their user. No program can gain more
    (no-new-privileges). Raise NettopError if the kernel refuses.
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    mine = held()
    _set(mine, mine, mine)  # none is effective after a change of user
    for capability in _ALL - kept:
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _set(mine & kept, mine & kept, mine & kept)
    for capability in mine & kept:
        _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)


@contextmanager
def keep_across_setuid() -> Iterator[None]:
    """Keep capabilities across a change of user inside this context; `keep_only` makes them effective again."""
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)


def refuse_tracing() -> None:
    """Let only users who may trace root's processes trace this one. Threads share memory: a user who traces an
    unprivileged thread could reach a privileged one, and the descriptors that root opened.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def for_loading(wanted: frozenset[int] = LOADING) -> frozenset[int]:
    """Return `wanted`, plus CAP_SYS_ADMIN if it has to stand in for one of LOADING, as in older containers."""
    return wanted if held() >= LOADING else wanted | {CAP_SYS_ADMIN}


def for_reading() -> frozenset[int]:
    """Return the capabilities needed to read loaded programs: none, or CAP_BPF if every bpf(2) command requires it."""
    return for_loading(frozenset({CAP_BPF})) if _bpf_is_privileged() else NOTHING


@cache
def _bpf_is_privileged() -> bool:
    """Return whether every bpf(2) command requires CAP_BPF, by trying one without capabilities: true before Linux 6.0
    unless the sysctl kernel.unprivileged_bpf_disabled is 0."""
    effective, permitted, inheritable = _sets()
    _set(NOTHING, permitted, inheritable)
    try:
        return bpf.is_refused()
    finally:
        _set(effective, permitted, inheritable)


def _sets() -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """Return the calling thread's effective, permitted and inheritable capabilities."""
    current = ctypes.create_string_buffer(24)
    if _libc.capget(ctypes.create_string_buffer(_HEADER), current):
        return NOTHING, NOTHING, NOTHING
    words = struct.unpack("=6I", current.raw[:24])
    masks = (low | high << 32 for low, high in zip(words[:3], words[3:], strict=True))
    effective, permitted, inheritable = (
        frozenset(number for number in _ALL if mask >> number & 1) for mask in masks
    )
    return effective, permitted, inheritable


def _set(effective: frozenset[int], permitted: frozenset[int], inheritable: frozenset[int]) -> None:
    """Set the calling thread's capabilities."""
    masks = [sum(1 << number for number in numbers) for numbers in (effective, permitted, inheritable)]
    words = [mask & 0xFFFFFFFF for mask in masks] + [mask >> 32 for mask in masks]
    data = ctypes.create_string_buffer(struct.pack("=6I", *words))
    if _libc.capset(ctypes.create_string_buffer(_HEADER), data):
        why = os.strerror(ctypes.get_errno())
        raise NettopError(f"cannot drop privileges: {why}", "allow capset(2) in nettop's sandbox")
