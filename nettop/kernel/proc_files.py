# SPDX-License-Identifier: Apache-2.0
"""Files of /proc and /sys as text, what hides those that are not there, and what is mounted where, below a root that a
test may replace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from nettop.errors import Unsupported, limit_reached

_LINE = re.compile(r"^\d+ \d+ \S+ (?P<source>\S+) (?P<place>\S+) .* - (?P<kind>\S+) ", re.MULTILINE)

_PROC_MOUNT = re.compile(r"^\d+ \d+ \S+ \S+ /proc .* - proc \S+ (\S+)$", re.MULTILINE)


class Mount(NamedTuple):
    """A mount: which part of a file system (`source`, such as `/`) of which kind is mounted where."""

    source: str
    place: str
    kind: str


def mounts(root: Path = Path("/")) -> list[Mount]:
    """All mounts, in the order in which they were made."""
    return [Mount(*line) for line in _LINE.findall(read_text(root / "proc/self/mountinfo"))]


def mount_of(path: str, root: Path = Path("/")) -> Mount | None:
    """The mount that a path is in: of the deepest the last one, which hides the others. None where it is not known."""
    around = [mount for mount in mounts(root) if Path(path).is_relative_to(mount.place)]
    deepest = max((len(mount.place) for mount in around), default=0)
    return next((mount for mount in reversed(around) if len(mount.place) == deepest), None)


def what_hides(path: str, root: Path = Path("/")) -> tuple[str, str]:
    """Say what hides a file of /proc or /sys, as ‘/sys is not mounted’, and what shows it.

    Both are empty where nothing does, and the kernel itself does not have the file, or where mounts are not known.
    """
    top, kind = ("/proc", "proc") if path.startswith("/proc") else ("/sys", "sysfs")
    if not mounts(root):
        return "", ""  # not known
    mount = mount_of(path, root)
    if mount is None or not Path(mount.place).is_relative_to(top):
        return f"{top} is not mounted", f"mount -t {kind} {kind} {top}"
    if mount.kind != kind:
        where = f"the {mount.kind} that is mounted at {mount.place}"
        return (
            f"{where} hides it",
            f"umount {mount.place}; in a container show it (docker: systempaths=unconfined)",
        )
    if kind == "proc" and proc_options(root / "proc").get("subset") == "pid":
        return (
            "/proc is mounted with subset=pid",
            "mount -t proc proc /proc (in a unit of systemd: ProcSubset=all)",
        )
    return "", ""


def proc_options(proc: Path = Path("/proc")) -> dict[str, str]:
    """Return the mount options of /proc; if it is mounted several times, those of the last mount, which is visible."""
    mounted = _PROC_MOUNT.findall(read_text(proc / "self/mountinfo"))
    words = mounted[-1].split(",") if mounted else []
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def read_required(path: str, root: Path = Path("/")) -> str:
    """Return the text of a file of /proc or /sys. Raises Unsupported where it cannot be read, and says why."""
    try:
        text = (root / path.lstrip("/")).read_text(errors="replace")
    except OSError as error:
        why, remedy = what_hides(path, root)
        what = f"{path} cannot be read"
        raise limit_reached(what, error) or Unsupported(
            f"{what}: {why or (error.strerror or str(error)).lower()}", remedy
        ) from error
    if not text:
        why, remedy = what_hides(path, root)
        raise Unsupported(f"{path} is empty{f': {why}' if why else ''}", remedy)
    return text


def read_text(path: Path) -> str:
    """The text of a file, empty when it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
