# SPDX-License-Identifier: Apache-2.0
"""Capabilities by name, and how to get those that are missing."""

from __future__ import annotations

from collections.abc import Collection

from nettop.kernel import privileges

_NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""By number (include/uapi/linux/capability.h)."""
KNOWN = range(len(_NAMES))


def name_of(number: int) -> str:
    """`CAP_BPF` of 39."""
    return f"CAP_{_NAMES[number]}" if number in KNOWN else f"capability {number}"


def how_to_get(missing: Collection[int], permitted: Collection[int]) -> str:
    """How to get just the missing ones: root was confined, by a container or a unit; other users never had them."""
    names = [name_of(number) for number in missing]
    words = ", ".join(names)
    if not privileges.BEGAN_AS_ROOT:
        return (
            f"run it as root: sudo nettop; or give it {words} (setpriv --ambient-caps, AmbientCapabilities=)"
        )
    if set(missing) <= set(permitted):
        return f"{words}: permitted and not effective; whatever started nettop has to raise them"
    docker = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in names)
    return (
        f"this root was confined: add {words} to the container (docker run {docker}) "
        "or the unit (CapabilityBoundingSet=)"
    )
