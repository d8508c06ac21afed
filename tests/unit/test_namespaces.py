# SPDX-License-Identifier: Apache-2.0
"""Which namespaces are in use once other users' processes cannot be looked at, and the gaps of those not entered."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nettop.kernel import namespaces as module
from nettop.kernel.namespaces import Namespaces, find_namespaces


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Two processes that run until they are killed."""
    running = [subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL) for _ in range(2)]
    yield running
    for process in running:
        process.kill()
        process.wait()


def test_a_namespace_is_in_use_while_a_known_process_runs(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the namespace of that process can no longer be looked at; a zombie, or a reused PID, is not it."""
    namespaces, inode = Namespaces(), 4711
    paths = [Path(f"/proc/{process.pid}/ns/net") for process in processes]
    actual = {namespaces.own: [Path("/proc/self/ns/net")], inode: paths}
    namespaces._paths = actual
    namespaces.stop_entering()
    monkeypatch.setattr(module, "find_namespaces", lambda proc: {namespaces.own: actual[namespaces.own]})
    namespaces._scan()
    assert namespaces._paths[inode] == paths[:1]
    kill(processes[0])
    namespaces._scan()
    assert namespaces._paths[inode] == paths[1:]
    started = namespaces._members[inode][paths[1]]
    assert started
    namespaces._members[inode][paths[1]] = started - 1
    namespaces._scan()
    assert inode not in namespaces._paths
    namespaces._members[inode][paths[1]] = started
    kill(processes[1])
    namespaces._scan()
    assert inode not in namespaces._paths


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the process; it stays a zombie."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_bind_mounts_are_actual(tmp_path: Path) -> None:
    """A namespace that no process is in is found by its file, in whose name octal escapes are undone."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        "37 25 0:4 net:[4026532201] /run/netns/a\\040b rw shared:5 - nsfs nsfs rw\n"
        "38 25 0:4 mnt:[4026532202] /run/mnt rw shared:5 - nsfs nsfs rw\n"
    )
    assert find_namespaces(tmp_path) == {4026532201: [Path("/run/netns/a b")]}


@pytest.mark.parametrize(
    ("refused", "gaps"),
    [
        ({}, {}),
        ({7: "no"}, {"namespace 7": "not entered: no"}),
        ({7: "no", 8: "no"}, {"namespaces 7 and 8": "not entered: no"}),
        (
            {7: "no", 8: "never", 9: "no"},
            {"namespaces 7 and 9": "not entered: no", "namespace 8": "not entered: never"},
        ),
        (dict.fromkeys(range(1, 4), "no"), {"namespaces 1, 2 and 3": "not entered: no"}),
        (dict.fromkeys(range(1, 346), "no"), {"namespaces 1, 2, 3 and 342 more": "not entered: no"}),
    ],
)
def test_refused_namespaces_of_one_reason_are_one_gap(refused: dict[int, str], gaps: dict[str, str]) -> None:
    """Three of them are named; one without a name goes by its number."""
    namespaces = Namespaces()
    namespaces.refused = refused
    assert namespaces.gaps() == gaps
