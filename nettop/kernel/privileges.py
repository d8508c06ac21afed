# SPDX-License-Identifier: Apache-2.0
"""Capabilities, and dropping them. Each thread has its own, and the threads that it starts inherit them."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from nettop.errors import NettopError
from nettop.kernel import bpf

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

BEGAN_AS_ROOT = os.geteuid() == 0
"""Before nettop becomes who called it, which imports this first."""

NOTHING: frozenset[int] = frozenset()
LOADING = frozenset(
    {
        CAP_BPF,  # load programs,
        CAP_PERFMON,  # that look into the kernel
    }
)
LOADING_NET = LOADING | {
    CAP_NET_ADMIN,  # for network interfaces
}
LOADER = LOADING_NET | {
    CAP_SYS_RESOURCE,  # raise the locked-memory limit where maps still count against it (before 5.11)
    CAP_SYS_ADMIN,  # open kprobes where the sysctl kernel.perf_event_paranoid is 3
}
"""What the child process that loads programs keeps, as far as nettop has it when that starts."""
ENTERING = frozenset(
    {
        CAP_SYS_ADMIN,  # enter network namespaces,
        CAP_SYS_PTRACE,  # found through other users' processes
        CAP_DAC_READ_SEARCH,
    }
)
LOOKING = ENTERING - {CAP_SYS_ADMIN}
"""What finding namespaces takes, without entering them."""
STARTING = (
    LOADER
    | ENTERING
    | {
        CAP_NET_ADMIN,  # make the namespace in which hooks are checked
        CAP_SYSLOG,  # see the addresses of the kernel's functions, to name the one that dropped a packet
        CAP_SETPCAP,  # remove what is dropped from the bounding set too
    }
)
CHANGING_USER = frozenset({CAP_SETUID, CAP_SETGID})
LOWERING = frozenset({CAP_SETPCAP})
"""What removing capabilities from the bounding set takes."""

_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_HEADER = struct.pack("=II", _CAPABILITY_VERSION_3, 0)
_ALL = frozenset(range(64))
_libc = ctypes.CDLL(None, use_errno=True)


def held() -> frozenset[int]:
    """The capabilities that the calling thread may use (its permitted set)."""
    return _sets()[1]


def effective() -> frozenset[int]:
    """Return the capabilities that the calling thread uses."""
    return _sets()[0]


def use_permitted() -> None:
    """Make every capability effective that the calling thread may use, as those of a file without the effective bit are
    not (`setcap …=p`): with that bit the kernel refuses to execute the file where one of them is withheld.
    """
    effective, permitted, inheritable = _sets()
    if effective != permitted:
        _set(permitted, permitted, inheritable)


def is_withheld(capability: int) -> bool:
    """Whether this thread is kept from ever gaining the capability: it is not in the bounding set."""
    in_bounding_set: int = _libc.prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)
    return in_bounding_set == 0


def of_file(path: str) -> frozenset[int]:
    """The capabilities that executing a file permits (struct vfs_cap_data of include/uapi/linux/capability.h)."""
    try:
        data = os.getxattr(path, "security.capability")
        _, low, _, high, _ = struct.unpack_from("<5I", data)
    except (OSError, struct.error):
        return NOTHING
    return frozenset(number for number in _ALL if (low | high << 32) >> number & 1)


def keep_only(kept: frozenset[int]) -> None:
    """Drop every capability but `kept`, for this thread, its later threads and its children, for good.

    Those that are kept are in all sets, so that programs that are started have them too, as any user. No program
    can gain more (no-new-privileges). Raises NettopError where the kernel refuses.
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
def kept_over_change_of_user() -> Iterator[None]:
    """Keep capabilities over a change of user inside this context; `keep_only` makes them effective again."""
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        yield
    finally:
        _libc.prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)


def refuse_tracing() -> None:
    """Let only those debug this process who could debug one of root's. Threads share memory: through one that has
    dropped everything a user would reach one that has not, and the descriptors that root opened.
    """
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def for_loading(wanted: frozenset[int] = LOADING) -> frozenset[int]:
    """`wanted`, and CAP_SYS_ADMIN where that has to replace one of LOADING, as in older containers."""
    return wanted if held() >= LOADING else wanted | {CAP_SYS_ADMIN}


def for_reading() -> frozenset[int]:
    """What reading loaded programs takes: nothing, or CAP_BPF where every bpf(2) command requires it."""
    return for_loading(frozenset({CAP_BPF})) if _bpf_is_privileged() else NOTHING


@cache
def _bpf_is_privileged() -> bool:
    """Whether every bpf(2) command requires CAP_BPF: on kernels before 6.0, unless the sysctl
    kernel.unprivileged_bpf_disabled is 0. Tried out for a moment without capabilities."""
    effective, permitted, inheritable = _sets()
    _set(NOTHING, permitted, inheritable)
    try:
        return bpf.is_refused()
    finally:
        _set(effective, permitted, inheritable)


def _sets() -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
    """The calling thread's capabilities: effective, permitted, inheritable."""
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
        raise NettopError(f"privileges cannot be dropped: {why}", "allow capset(2) where nettop is confined")
