# SPDX-License-Identifier: Apache-2.0
"""Which processes are noted to tell whether a namespace is used, and how those that are not entered are told."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nettop.kernel.namespaces import _LEFT, Namespaces, Witnesses


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """Processes that can be noted."""
    running = [subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL) for _ in range(12)]
    yield sorted(process.pid for process in running)
    for process in running:
        process.kill()
        process.wait()


class Proc:
    """A folder like /proc, in which processes are in namespaces as it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def namespace(self, name: str, pids: list[int]) -> tuple[int, list[Path]]:
        """A new namespace with these processes: its number, and the ways into it."""
        home = self.path / name
        home.touch()
        mechanisms = [self.path / str(pid) / "ns/net" for pid in pids]
        for way in mechanisms:
            way.parent.mkdir(parents=True)
            os.link(home, way)
        return home.stat().st_ino, mechanisms


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    """An empty one."""
    return Proc(tmp_path)


@pytest.fixture
def few_files() -> Iterator[None]:
    """A process that may open 40 files, so that 10 processes may be noted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_namespace_has_one_first(proc: Proc, processes: list[int], few_files: None) -> None:
    """One of each, then more in turn, to a quarter of what may be open; the room of those that end is used again."""
    crowd, crowded = proc.namespace("crowd", processes[:8])
    pair, paired = proc.namespace("pair", processes[8:10])
    one, alone = proc.namespace("one", processes[10:11])
    mechanisms = {crowd: crowded, pair: paired, one: alone}
    witnesses = Witnesses(proc.path)
    try:
        witnesses.note(mechanisms)
        noted = witnesses.mechanisms()
        assert {inode: len(leading) for inode, leading in noted.items()} == {crowd: 7, pair: 2, one: 1}
        alone[0].unlink()
        os.kill(processes[10], 9)
        os.waitid(os.P_PID, processes[10], os.WEXITED | os.WNOWAIT)
        assert witnesses.mechanisms().keys() == {crowd, pair}
        witnesses.note({crowd: crowded, pair: paired})
        now = {inode: set(leading) for inode, leading in witnesses.mechanisms().items()}
        assert now == {crowd: set(crowded), pair: set(paired)}
    finally:
        witnesses.close()


def test_what_is_bound_needs_none_before_others(proc: Proc, processes: list[int], few_files: None) -> None:
    """A file that a namespace is bound to stands for its first process."""
    first, bound = proc.namespace("first", processes[:2])
    others = dict(proc.namespace(str(at), [pid]) for at, pid in enumerate(processes[2:]))
    witnesses = Witnesses(proc.path)
    try:
        witnesses.note({first: [*bound, Path("/run/netns/first")], **others})
        assert witnesses.mechanisms().keys() == others.keys()
    finally:
        witnesses.close()


def test_more_processes_than_sixteen_may_speak(proc: Proc, processes: list[int]) -> None:
    """However many of the processes of a namespace end, one that is left tells that it is used."""
    others = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if pid not in processes]
    home, mechanisms = proc.namespace("home", [*sorted(others)[:30], *processes])
    witnesses = Witnesses(proc.path)
    try:
        witnesses.note({home: mechanisms})
        assert set(mechanisms[-len(processes) :]) <= set(witnesses.mechanisms()[home])
    finally:
        witnesses.close()


@pytest.mark.parametrize(
    ("refused", "gaps"),
    [
        ({}, {}),
        ({7: "no"}, {"namespace 7": "not entered: no"}),
        ({7: "no", 8: "no"}, {"namespaces 7 and 8": "not entered: no"}),
        ({7: "no", 8: _LEFT, 9: "no"}, {"namespaces 7 and 9": "not entered: no", "namespace 8": _LEFT}),
        (dict.fromkeys(range(1, 346), "no"), {"namespaces 1, 2, 3 and 342 more": "not entered: no"}),
    ],
)
def test_what_is_not_entered_is_told_together(refused: dict[int, str], gaps: dict[str, str]) -> None:
    """Those of one reason are one gap, of which three have names; what has none is told by its number."""
    namespaces = Namespaces()
    namespaces.refused = refused
    assert namespaces.gaps() == gaps
