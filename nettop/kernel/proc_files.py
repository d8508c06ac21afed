# SPDX-License-Identifier: Apache-2.0
"""Files of /proc as text, and what is mounted where, below a root that a test may replace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_LINE = re.compile(r"^\d+ \d+ \S+ (?P<source>\S+) (?P<place>\S+) .* - (?P<kind>\S+) ", re.MULTILINE)


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


def read_text(path: Path) -> str:
    """The text of a file, empty when it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
