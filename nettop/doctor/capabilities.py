# SPDX-License-Identifier: Apache-2.0
"""The capabilities of this process, and what nettop uses them for."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from nettop.doctor.report import Check, Verdict, bad
from nettop.errors import ExitCode, NettopError
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host
from nettop.kernel.host.privileges import KNOWN, how_to_get, name_of

_PROGRAMS = {privileges.CAP_BPF: "load BPF programs", privileges.CAP_PERFMON: "let them read kernel memory"}
USED = _PROGRAMS | {
    privileges.CAP_SYS_ADMIN: "enter other network namespaces",
    privileges.CAP_NET_ADMIN: "check hooks in a private network namespace",
    privileges.CAP_SYS_PTRACE: "find namespaces through other users' processes",
    privileges.CAP_DAC_READ_SEARCH: "read other users' open files",
    privileges.CAP_SYSLOG: "name the kernel functions that drop packets and those that take CPU time",
}
"""The capabilities that nettop uses, each with its purpose."""


def check_user(_: Path) -> Check:
    """Report the user."""
    uid = os.geteuid()
    caller = os.environ.get("SUDO_UID", "")
    value = "root" if uid == 0 else f"uid {uid}"
    value += f", called by uid {caller}" if uid == 0 and caller.isdecimal() and caller != "0" else ""
    if uid == 0 or not _missing():
        return Check("user", "user", value, data=uid)
    return Check(
        "user", "user", f"{value}, not root", Verdict.NOTE, "root sees more: sudo nettop doctor", uid
    )


def check_user_namespace(root: Path) -> Check:
    """Check that capabilities apply to the kernel, not only within a user namespace."""
    host = Host(root)
    try:
        host.require_initial_user_namespace()
    except NettopError as error:
        return bad("user_namespace", "user namespace", error, host.namespace("user"))
    return Check("user_namespace", "user namespace", "the initial one", data=host.namespace("user"))


def check_capabilities(_: Path) -> Iterable[Check]:
    """Report the capability sets, and which capabilities that nettop uses are missing."""
    for key, held in (("effective", privileges.effective()), ("permitted", privileges.held())):
        names = [name_of(number) for number in sorted(held)]
        yield Check(f"capabilities_{key}", f"{key} capabilities", _names_of(held), data=names)
    missing = _missing()
    names = [name_of(number) for number in missing]
    if not missing:
        value = "all that nettop needs" + _substitutes()
        yield Check("capabilities_missing", "capabilities", value, data=names)
        return
    needs = "missing: " + "; ".join(f"{name_of(number)} (to {USED[number]})" for number in missing)
    verdict = Verdict.BAD if _PROGRAMS.keys() & set(missing) else Verdict.NOTE
    remedy = how_to_get(missing, privileges.held())
    yield Check(
        "capabilities_missing",
        "capabilities",
        needs + _substitutes(),
        verdict,
        remedy,
        names,
        exit_code=ExitCode.PERMISSION,
    )


def _substitutes() -> str:
    """Describe capabilities that are not effective, but included in CAP_SYS_ADMIN; empty if there are none."""
    held = privileges.effective()
    replaced = [name_of(number) for number in _PROGRAMS if number not in held]
    if privileges.CAP_SYS_ADMIN not in held or not replaced:
        return ""
    return f"; CAP_SYS_ADMIN instead of {' and '.join(replaced)}"


def sees_owners(root: Path) -> bool:
    """Return whether nettop may find the owners of other users' sockets, by a BPF program or in /proc."""
    missing = set(_missing())
    return Host(root).reaches_kernel() and not (
        missing & _PROGRAMS.keys() and missing & privileges.FINDING_NAMESPACES
    )


def _missing() -> list[int]:
    """Return the capabilities that nettop uses and lacks. CAP_SYS_ADMIN includes those that were split from it."""
    held = set(privileges.effective())
    if privileges.CAP_SYS_ADMIN in held:
        held |= _PROGRAMS.keys()
    return [number for number in USED if number not in held]


def _names_of(held: Collection[int]) -> str:
    """Describe a set of capabilities on one line."""
    lacking = [name_of(number) for number in KNOWN if number not in held]
    if not lacking:
        return "all"
    if len(lacking) < len(held):
        return f"all but {', '.join(lacking)}"
    return ", ".join(map(name_of, sorted(held))) or "none"
