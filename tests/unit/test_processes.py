# SPDX-License-Identifier: Apache-2.0
"""Names and control groups of the processes of rows, read from an example /proc."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettop.kernel.facts import Host
from nettop.kernel.processes import Processes
from nettop.probes.connections.socket_rows import ROW
from nettop.snapshots.snapshot import Array

SHARED_CSS_SET = 7
GONE, ALIVE = 11, 12


def rows() -> Array:
    """A socket of a process that has exited, then two of a running process in the same control group."""
    made = np.zeros(3, ROW)
    made["pid"] = (GONE, ALIVE, ALIVE)
    made["css_set"] = SHARED_CSS_SET
    made["comm"] = (b"brief", b"web", b"web")
    return made


def host(root: Path) -> Host:
    """A host on which one of the two processes still runs."""
    file = root / "proc" / str(ALIVE) / "cgroup"
    file.parent.mkdir(parents=True)
    file.write_text("0::/system.slice/web.service\n")
    return Host(root)


def groups(processes: Processes, named: Array) -> list[str | None]:
    """The control group of each row."""
    texts = processes.texts()["cgroup"]
    return [texts[code] if code < len(texts) else None for code in named["cgroup"].tolist()]


def test_a_vanished_process_does_not_affect_others(tmp_path: Path) -> None:
    """A process that exited while it was read is counted once; others of its control group keep theirs."""
    processes = Processes(host(tmp_path))
    for _ in range(2):
        named = rows()
        processes.name(named)
        assert groups(processes, named) == [None, "/system.slice/web.service", "/system.slice/web.service"]
        assert processes.vanished == 1


def test_a_process_whose_css_set_is_unknown(tmp_path: Path) -> None:
    """Such processes share nothing, and a move would go unnoticed: each is read each time."""
    processes = Processes(host(tmp_path))
    other = tmp_path / "proc" / str(GONE) / "cgroup"
    other.parent.mkdir()
    for group in ("/a", "/b"):
        other.write_text(f"0::{group}\n")
        named = rows()
        named["css_set"] = np.iinfo(np.uint64).max
        processes.name(named)
        assert groups(processes, named) == [group, "/system.slice/web.service", "/system.slice/web.service"]
    assert (processes.vanished, processes.groups()) == (0, {})
