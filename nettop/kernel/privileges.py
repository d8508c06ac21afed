# SPDX-License-Identifier: Apache-2.0
"""Giving up what nettop does not need, before anything else happens."""

from __future__ import annotations

import ctypes
import struct

CAP_DAC_READ_SEARCH = 2
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
CAP_PERFMON = 38
CAP_BPF = 39
"""Capability numbers (include/uapi/linux/capability.h)."""

NEEDED = frozenset(
    {
        CAP_BPF,  # load programs,
        CAP_PERFMON,  # that look into the kernel
        CAP_SYS_RESOURCE,  # raise the locked-memory limit where maps still count against it (before 5.11)
        CAP_SYS_ADMIN,  # enter network namespaces that appear later,
        CAP_SYS_PTRACE,  # found through other users' processes
        CAP_DAC_READ_SEARCH,
    }
)

_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63
_libc = ctypes.CDLL(None, use_errno=True)


def keep_only(kept: frozenset[int] = NEEDED) -> None:
    """Drop every capability but `kept`, for this thread, its later threads and its children, for good.

    Without root there is nothing to drop. Call it before another thread exists: each has its own set.
    """
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in set(range(_LAST_CAPABILITY + 1)) - kept:
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=II", _CAPABILITY_VERSION_3, 0))
    current = ctypes.create_string_buffer(24)
    if _libc.capget(header, current):
        return
    low, _, _, high, _, _ = struct.unpack("=6I", current.raw[:24])
    mask = sum(1 << capability for capability in kept) & (low | high << 32)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", low, low, low, high, high, high)))
