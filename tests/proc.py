# SPDX-License-Identifier: Apache-2.0
"""What tests read in /proc."""

from __future__ import annotations

from pathlib import Path


def status_fields(path: Path) -> dict[str, str]:
    """The fields of a status file, by their names."""
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)
