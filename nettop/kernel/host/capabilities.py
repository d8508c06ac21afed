# SPDX-License-Identifier: Apache-2.0
"""Capability names, and how to get missing capabilities."""

from __future__ import annotations

import sys
from collections.abc import Collection

from nettop.errors import PermissionMissing
from nettop.kernel.host import privileges

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


def name_of(number: int) -> str:
    """Return a capability's name: `CAP_BPF` for 39."""
    return f"CAP_{_NAMES[number]}" if number in KNOWN else f"capability {number}"


def require(wanted: Collection[int], doing: str) -> None:
    """Raise PermissionMissing, with the missing names, if the calling thread lacks any `wanted` capability."""
    missing = sorted(set(wanted) - privileges.effective(), reverse=True)
    if missing:
        raise missing_for(doing, missing, privileges.held())


def missing_for(doing: str, missing: Collection[int], permitted: Collection[int]) -> PermissionMissing:
    """Return the error for an action that needs the `missing` capabilities."""
    return PermissionMissing(
        f"{doing} needs {' and '.join(map(name_of, missing))}", how_to_get(missing, permitted)
    )


def how_to_get(missing: Collection[int], permitted: Collection[int]) -> str:
    """Return how to get the missing capabilities. Root, or an executable that has them, lost them to a container or a
    unit; other users never had them."""
    words = _joined_names(missing)
    if not privileges.BEGAN_AS_ROOT:
        if privileges.of_file(sys.executable).issuperset(missing):
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
    if ignored := [number for number in missing if not privileges.is_withheld(number)]:
        remedies.append(
            "remove --security-opt no-new-privileges (Kubernetes: set allowPrivilegeEscalation: true) or the nosuid "
            f"mount option: with either, the kernel ignores the {_joined_names(ignored)} of {sys.executable}"
        )
    if withheld := [number for number in missing if privileges.is_withheld(number)]:
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
