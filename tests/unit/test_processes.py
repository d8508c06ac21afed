# SPDX-License-Identifier: Apache-2.0
"""Names and control groups of the processes of rows, read from an example /proc."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nettop.kernel.host.facts import ROOT_CGROUP, Host
from nettop.kernel.host.proc_files import is_running
from nettop.kernel.host.processes import Processes, ProcessNames
from nettop.probes.connections.socket_rows import ROW
from nettop.snapshots.arrays import Array

SHARED_CSS_SET = 7
GONE, ALIVE = 11, 12


def rows() -> Array:
    """Return a socket of a process that has exited, then two of a running process in the same control group."""
    made = np.zeros(3, ROW)
    made["pid"] = (GONE, ALIVE, ALIVE)
    made["css_set"] = SHARED_CSS_SET
    made["comm"] = (b"brief", b"web", b"web")
    return made


def host(root: Path) -> Host:
    """Return a host on which one of the two processes still runs."""
    file = root / "proc" / str(ALIVE) / "cgroup"
    file.parent.mkdir(parents=True)
    file.write_text("0::/system.slice/web.service\n")
    return Host(root)


def groups(processes: Processes, named: Array, names: ProcessNames | None = None) -> list[str | None]:
    """Name the rows of a reading, or of a batch of events; return the control group of each."""
    names = names or processes.begin()
    names.name(named)
    texts = names.texts()["cgroup"]
    return [texts[code] if code < len(texts) else None for code in named["cgroup"].tolist()]


def test_a_vanished_process_does_not_affect_others(tmp_path: Path) -> None:
    """A process that exited while it was read is counted once; others of its control group keep theirs, and then show
    which it was."""
    processes = Processes(host(tmp_path))
    for of_vanished in (None, "/system.slice/web.service"):
        assert groups(processes, rows()) == [of_vanished, *["/system.slice/web.service"] * 2]
        assert processes.vanished == 1


def test_a_vanished_process_whose_control_group_is_still_there(tmp_path: Path) -> None:
    """A process that has exited is given the control group with its group's id."""
    processes = Processes(host(tmp_path))
    mounts = tmp_path / "proc/self/mountinfo"
    mounts.parent.mkdir()
    mounts.write_text("32 31 0:29 / /groups rw - cgroup2 cgroup2 rw\n")
    group = tmp_path / "groups" / "brief.service"
    group.mkdir(parents=True)
    named = rows()[:1]
    named["cgroup_id"] = group.stat().st_ino & 0xFFFFFFFF
    assert (groups(processes, named), processes.vanished) == (["/brief.service"], 0)


def test_control_groups_are_not_listed_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After groups were listed, which takes 7 s here, no other unknown id has them listed for 700 s."""
    clock = iter((0.0, 7.0, 706.0, 707.0, 714.0))
    monkeypatch.setattr("nettop.kernel.host.processes.time", SimpleNamespace(monotonic=lambda: next(clock)))
    listed: list[Host] = []
    monkeypatch.setattr(Host, "cgroups_by_id", lambda self: listed.append(self) or {})
    processes = Processes(host(tmp_path))
    counts = []
    for css_set in range(3):
        named = rows()[:1]
        named["css_set"] = css_set
        groups(processes, named)
        counts.append(len(listed))
    assert (counts, processes.vanished) == ([1, 1, 2], 3)


def test_a_process_whose_css_set_is_unknown(tmp_path: Path) -> None:
    """Without a css_set, the control group of a process is read each time, as it may have moved."""
    processes = Processes(host(tmp_path))
    other = tmp_path / "proc" / str(GONE) / "cgroup"
    other.parent.mkdir()
    for group in ("/a", "/b"):
        other.write_text(f"0::{group}\n")
        named = rows()
        named["css_set"] = np.iinfo(np.uint64).max
        assert groups(processes, named) == [group, "/system.slice/web.service", "/system.slice/web.service"]
    assert (processes.vanished, processes._found) == (0, {})


def process(pid: int, css_set: int, group_id: int) -> Array:
    """Return a socket of a process."""
    made = rows()[:1]
    made["pid"] = made["start_time"] = pid
    made["css_set"], made["cgroup_id"] = css_set, group_id
    return made


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Return the control groups of running processes by PID; no group can be found by its id."""
    running: dict[int, str] = {}
    monkeypatch.setattr(Host, "cgroup", lambda _, pid: running.get(pid))
    monkeypatch.setattr(Host, "cgroups_by_id", lambda _: {})
    return running


def test_a_process_that_lives_between_two_readings(alive: dict[int, str]) -> None:
    """A process and its control group that are gone by the next reading keep the name found when an event of it was
    drained; one that was gone even then is counted, once."""
    processes = Processes(Host())
    for pid in range(100, 1100):
        seen, missed = process(pid, 7, pid), process(pid + 10_000, 8, pid + 10_000)
        alive[pid] = f"/docker/{pid}"
        batch = ProcessNames(processes)
        assert groups(processes, seen, batch) + groups(processes, missed, batch) == [f"/docker/{pid}", None]
        alive.clear()
        names = processes.begin()
        assert groups(processes, seen, names) + groups(processes, missed, names) == [f"/docker/{pid}", None]
        assert groups(processes, missed) == [None]
        assert processes.vanished == pid - 99
    assert len(processes._found) + len(processes._earlier) < 10


@pytest.mark.parametrize("in_root", [False, True], ids=["unified hierarchy", "v1 hierarchies"])
def test_the_address_of_a_css_set_is_used_again(alive: dict[int, str], in_root: bool) -> None:
    """A process of another control group, whose css_set has the address of one that was freed, gets its own group."""
    processes = Processes(Host())
    for pid in range(100, 200):
        alive.clear()
        alive[pid] = f"/docker/{pid}"
        named = process(pid, 7, ROOT_CGROUP if in_root else pid)
        assert groups(processes, named, ProcessNames(processes)) == [f"/docker/{pid}"]
        assert groups(processes, named) == [f"/docker/{pid}"]


def test_workers_of_a_known_control_group(alive: dict[int, str]) -> None:
    """A worker that nobody could look up has the control group of its parent, in any hierarchy."""
    for group_id in (5, ROOT_CGROUP):
        processes = Processes(Host())
        alive[1] = "/docker/parent"
        assert groups(processes, process(1, 7, group_id)) == ["/docker/parent"]
        assert groups(processes, process(2, 7, group_id)) == ["/docker/parent"]
        assert processes.vanished == 0


def test_a_process_runs_until_its_last_thread_exits(tmp_path: Path) -> None:
    """A zombie does not run, and neither does an unused PID; a process whose main thread has exited does."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    proc = Path("/proc")
    assert (is_running(proc, os.getpid()), is_running(proc, child)) == (True, False)
    os.waitpid(child, 0)
    assert not is_running(proc, child)
    # The main thread of a process with three threads has exited.
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) Z b) Z 1 7 7 0 -1 4227084 0 0 0 0 0 0 0 0 20 0 3 0 9 0 0\n")
    assert is_running(tmp_path, 7)
