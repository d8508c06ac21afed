# SPDX-License-Identifier: Apache-2.0
"""Capabilities by name: which this process has, what nettop uses them for, and how to get the missing ones."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from nettop.doctor.report import Check, Verdict
from nettop.kernel import privileges
from nettop.kernel.facts import INITIAL_USER_NAMESPACE, Host

NAMES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""By number (include/uapi/linux/capability.h)."""

_PROGRAMS = {privileges.CAP_BPF: "load BPF programs", privileges.CAP_PERFMON: "let them look into the kernel"}
_SURROUNDINGS = {
    privileges.CAP_SYS_ADMIN: "enter other network namespaces",
    privileges.CAP_NET_ADMIN: "check hooks in a network namespace of their own",
    privileges.CAP_SYS_PTRACE: "find namespaces through other users' processes",
    privileges.CAP_DAC_READ_SEARCH: "read what other users' processes hold",
    privileges.CAP_SYSLOG: "name the kernel's functions that drop packets",
}
USED = _PROGRAMS | _SURROUNDINGS
"""The capabilities that nettop uses, and what for."""


def check_user(root: Path) -> Check:
    """Who runs this."""
    uid = os.geteuid()
    caller = os.environ.get("SUDO_UID", "")
    value = "root" if uid == 0 else f"uid {uid}"
    value += f", called by uid {caller}" if uid == 0 and caller.isdecimal() and caller != "0" else ""
    if uid == 0 or not _missing(root):
        return Check("user", "user", value, data=uid)
    return Check(
        "user", "user", f"{value}, not root", Verdict.NOTE, "root sees more: sudo nettop doctor", uid
    )


def check_user_namespace(root: Path) -> Check:
    """Whether capabilities reach the kernel, or only what a user namespace owns."""
    inode = Host(root).user_namespace()
    if inode in (None, INITIAL_USER_NAMESPACE):
        return Check("user_namespace", "user namespace", "the initial one", data=inode)
    value = f"not the initial one ({inode}): capabilities held in it do not reach the kernel"
    remedy = "run nettop outside of it (no unshare --user, no rootless container): sudo nettop doctor"
    return Check("user_namespace", "user namespace", value, Verdict.BAD, remedy, inode)


def check_capabilities(root: Path) -> Iterable[Check]:
    """Which of those that nettop uses are missing, and the sets by name."""
    for key, label in (("effective", "CapEff"), ("permitted", "CapPrm")):
        held = _held(root, label)
        names = [name_of(number) for number in sorted(held)]
        yield Check(f"capabilities_{key}", f"{key} capabilities", _shown(held), data=names)
    missing = _missing(root)
    names = [name_of(number) for number in missing]
    if not missing:
        yield Check("capabilities_missing", "capabilities", "all that nettop uses", data=names)
        return
    needs = "missing: " + "; ".join(f"{name_of(number)} (to {USED[number]})" for number in missing)
    verdict = Verdict.BAD if _PROGRAMS.keys() & set(missing) else Verdict.NOTE
    is_permitted = _held(root, "CapPrm").issuperset(missing)
    yield Check("capabilities_missing", "capabilities", needs, verdict, _remedy(names, is_permitted), names)


def sees_owners(root: Path) -> bool:
    """Whether nettop may find out which sockets other users' processes hold: by a program, or by looking at each."""
    missing = set(_missing(root))
    return not (missing & _PROGRAMS.keys() and missing & privileges.LOOKING)


def name_of(number: int) -> str:
    """`CAP_BPF` of 39."""
    return f"CAP_{NAMES[number]}" if number < len(NAMES) else f"capability {number}"


def _missing(root: Path) -> list[int]:
    """Those that nettop uses and that are not effective. CAP_SYS_ADMIN includes those that were split from it."""
    held = _held(root, "CapEff")
    if privileges.CAP_SYS_ADMIN in held:
        held |= _PROGRAMS.keys()
    return [number for number in USED if number not in held]


def _remedy(missing: list[str], is_permitted: bool) -> str:
    """How to get just the missing ones: root was confined, by a container or a unit; other users never had them."""
    words = ", ".join(missing)
    if os.geteuid():
        return f"sudo nettop doctor, or give it {words} (setpriv --ambient-caps, AmbientCapabilities=)"
    if is_permitted:
        return f"{words} are permitted and not effective: whatever started nettop has to raise them"
    docker = " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in missing)
    return (
        f"root was confined: add {words} to the container (docker run {docker}) "
        "or the unit (CapabilityBoundingSet=)"
    )


def _held(root: Path, label: str) -> set[int]:
    """The numbers in a set of this process: CapEff, CapPrm."""
    status = (root / "proc/self/status").read_text(errors="replace")
    match = re.search(rf"^{label}:\s*([0-9a-f]+)", status, re.MULTILINE)
    mask = int(match[1], 16) if match else 0
    return {number for number in range(64) if mask >> number & 1}


def _shown(held: set[int]) -> str:
    """The set in words that fit on a line."""
    lacking = [name_of(number) for number in range(len(NAMES)) if number not in held]
    if not lacking:
        return "all"
    if len(lacking) < len(held):
        return f"all but {', '.join(lacking)}"
    return ", ".join(map(name_of, sorted(held))) or "none"
