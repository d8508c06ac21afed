# SPDX-License-Identifier: Apache-2.0
"""Namespaces in use once other users' processes are unreadable, names of namespaces, and gaps for those not entered."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from nettop.kernel.net import entered_namespaces as module
from nettop.kernel.net.entered_namespaces import Namespaces
from nettop.kernel.net.namespaces import find_namespaces
from nettop.probes.connections.groupings import GROUPERS
from nettop.query.filter import parse_filter
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots import all_views
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.schema import NO_GROUP, Kind, Table
from nettop.snapshots.snapshot import (
    NAMESPACES_PARTLY_SEEN,
    PARTLY_SEEN,
    Frame,
    Rows,
    Snapshot,
    unknown_value,
)

WEB, OF_CONTAINER, BOUND, UNSAFE, UNNAMED = range(4026532201, 4026532206)
FAR = 7
"""A number that is far from the others'."""
ID = "0123456789ab" + 52 * "c"
MOUNTS = f"""37 25 0:4 net:[{WEB}] /run/netns/web rw shared:5 - nsfs nsfs rw
38 25 0:4 net:[{OF_CONTAINER}] /run/docker/netns/5f0c rw shared:5 - nsfs nsfs rw
39 25 0:4 net:[{BOUND}] /run/docker/netns/77aa rw shared:5 - nsfs nsfs rw
40 25 0:4 net:[{UNSAFE}] /run/netns/\x1b[31m rw shared:5 - nsfs nsfs rw
"""
NAMES = {
    WEB: "web",
    OF_CONTAINER: "docker:0123456789ab",
    BOUND: "77aa",
    UNSAFE: "␛[31m",
    UNNAMED: str(UNNAMED),
    FAR: "7",
}
NAMED_TABLES = [table for _, table in all_views() if "netns" in table.by_name]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Yield two processes that run until they are killed."""
    running = [subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL) for _ in range(2)]
    yield running
    for process in running:
        process.kill()
        process.wait()


def test_a_namespace_is_in_use_while_a_known_process_runs(
    processes: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace is in use while its known process runs, even if unreadable, but not for a zombie or a reused PID."""
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
    """A namespace without processes is found by its bind mount, with octal escapes in the name decoded."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self/mountinfo").write_text(
        "37 25 0:4 net:[4026532201] /run/netns/a\\040b rw shared:5 - nsfs nsfs rw\n"
        "38 25 0:4 mnt:[4026532202] /run/mnt rw shared:5 - nsfs nsfs rw\n"
    )
    assert find_namespaces(tmp_path) == {4026532201: [Path("/run/netns/a b")]}


@pytest.mark.parametrize(
    ("refused", "unseen", "gaps"),
    [
        ({}, False, {}),
        (
            {7: "no", 8: "never", 9: "no"},
            False,
            {"namespaces 7 and 9": "not entered: no", "namespace 8": "not entered: never"},
        ),
        (dict.fromkeys(range(1, 4), "no"), False, {"namespaces 1, 2 and 3": "not entered: no"}),
        (dict.fromkeys(range(1, 346), "no"), False, {"namespaces 1, 2, 3 and 342 more": "not entered: no"}),
        (
            {7: module._DROPPED, 8: module._DROPPED, 9: "no"},
            False,
            {"namespaces 7 and 8": PARTLY_SEEN, "namespace 9": "not entered: no"},
        ),
        # With sock_diag, a namespace that was not entered has no listed sockets.
        ({7: module._DROPPED}, True, {"namespace 7": f"not entered: {module._DROPPED}"}),
    ],
)
def test_refused_namespaces_of_one_reason_are_one_gap(
    refused: dict[int, str], unseen: bool, gaps: dict[str, str]
) -> None:
    """Three are named, by number if they have no name. Those that appeared later are partly seen and no loss."""
    namespaces = Namespaces()
    namespaces.refused = refused
    assert namespaces.gaps(unseen=unseen) == gaps
    partly_seen = list(refused.values()).count(module._DROPPED)
    assert namespaces.lost == len(refused) - partly_seen
    assert namespaces.counts() == ({NAMESPACES_PARTLY_SEEN: partly_seen} if partly_seen else {})


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Namespaces:
    """Return namespaces of which some have names, after a scan."""
    proc = tmp_path / "proc"
    for process, groups in (
        ("self", ""),
        ("7", f"0::/system.slice/docker-{ID}.scope\n"),
        ("8", "0::/a.service\n"),
    ):
        (proc / process / "ns").mkdir(parents=True)
        (proc / process / "ns/net").touch()
        (proc / process / "cgroup").write_text(groups)
    (proc / "self/mountinfo").write_text(MOUNTS)
    actual = find_namespaces(proc)

    def find(_: Path) -> dict[int, list[Path]]:
        of_files = {inode: paths for inode, paths in actual.items() if inode in NAMES}
        in_container, unnamed = (proc / process / "ns/net" for process in "78")
        return of_files | {OF_CONTAINER: [in_container, *of_files[OF_CONTAINER]], UNNAMED: [unnamed]}

    monkeypatch.setattr(module, "find_namespaces", find)
    namespaces = Namespaces(proc)
    namespaces._scan()
    return namespaces


def view_of(namespaces: Namespaces, table: Table, numbers: list[int], filter_text: str = "") -> View:
    """Return a view of rows in these namespaces."""
    array = np.zeros(len(numbers), table.dtype)
    array[table.key] = range(len(numbers))
    array["netns"] = numbers
    texts: dict[str, list[str]] = {field.name: [""] for field in table.stored if field.kind is Kind.TEXT}
    rows = namespaces.with_names(Rows(table, array, texts, 1))
    query = replace(text_query(table), filter=parse_filter(table, filter_text), all_rows=True)
    if table.append:
        return View(Frame(Snapshot("x", 1, 1, {}), batches={table.name: (rows,)}), query)
    return View(Frame(Snapshot("x", 1, 1, {table.name: rows})), query)


@pytest.mark.parametrize("table", NAMED_TABLES, ids=lambda table: str(table.name))
def test_a_namespace_has_the_same_name_in_every_table(named: Namespaces, table: Table) -> None:
    """A name is that of `ip netns`, else its container's, its file's, or its number; filters take either."""
    unknown = int(unknown_value(np.dtype("u4")))
    near = [WEB, OF_CONTAINER, BOUND, UNSAFE, UNNAMED, WEB, unknown]
    names = NAMES | {named.own: "own"}
    for numbers in (near, [*near, named.own, FAR]):
        view = view_of(named, table, numbers)
        assert view.values("namespace", np.arange(len(numbers))) == [*map(names.get, numbers)]
    for text in ("namespace=web", f"netns={WEB}", "NAMESPACE=web"):
        view = view_of(named, table, [BOUND, WEB, UNNAMED, WEB], text)
        assert sorted(view.raw(table.key)[view.order].tolist()) == [1, 3]


def test_groups_of_sockets_have_their_names(named: Namespaces) -> None:
    """Groups of sockets are by namespace name, or by number without one."""
    view = view_of(named, SOCKETS, [WEB, UNNAMED, WEB, int(unknown_value(np.dtype("u4")))])
    numbers, names_of = GROUPERS["netns"](view, slice(None))
    assert names_of(numbers.tolist()) == ["web", str(UNNAMED), "web", NO_GROUP]


def test_a_name_that_has_gone_is_used_no_more(named: Namespaces, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reused number does not inherit a name, and the texts of namespaces that come and go stay few."""
    table = NAMED_TABLES[0]
    before = view_of(named, table, [WEB])
    monkeypatch.setattr(module, "find_namespaces", lambda _: {})
    named._scan()
    after = view_of(named, table, [WEB])
    assert [view.values("namespace", np.arange(1)) for view in (before, after)] == [["web"], [str(WEB)]]
    for number in range(3000):
        view_of(named, table, [number])
    assert len(named._texts.frozen()) < 1100


def test_a_scan_while_a_device_is_named() -> None:
    """The guard's scan forgets the names of devices; the name that is being looked up is used all the same."""

    def submit(_: object, index: int) -> SimpleNamespace:
        namespaces._devices = {}
        return SimpleNamespace(result=lambda: f"eth{index}")

    namespaces = Namespaces()
    namespaces.threads[WEB] = cast("Any", SimpleNamespace(submit=submit))
    assert [namespaces._device(WEB, index) for index in (3, 4, 3)] == ["eth3", "eth4", "eth3"]


def test_few_namespaces_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces are read a few at once: waking 2,000 threads would keep two CPUs busy for half a minute."""
    submitted: list[tuple[Future[int], Any]] = []
    most = 0

    def submit(function: Any) -> Future[int]:
        submitted.append((Future(), function))
        return submitted[-1][0]

    def finish(_: object) -> None:
        nonlocal most
        most = max(most, len(submitted))
        while submitted:
            future, function = submitted.pop()
            future.set_result(function())

    monkeypatch.setattr(Namespaces, "follow", lambda *_: None)
    monkeypatch.setattr(module, "wait", finish)
    namespaces = Namespaces()
    namespaces.threads = dict.fromkeys(range(50), cast("ThreadPoolExecutor", SimpleNamespace(submit=submit)))
    assert namespaces.run_in_each(lambda: 7) == dict.fromkeys(range(50), 7)
    assert most <= module._AT_ONCE


def test_a_limit_of_threads_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces without a thread, for lack of threads, are counted and named with the limit.

    The own namespace comes first.
    """
    started: list[Path | None] = []

    def enter_limited(path: Path | None) -> ThreadPoolExecutor:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(path)
        return ThreadPoolExecutor(1)

    namespaces = Namespaces()
    files = [Path(f"/proc/{os.getpid()}/ns/{name}") for name in ("net", "uts", "ipc", "mnt")]
    found = {os.stat(file).st_ino: [file] for file in files}
    monkeypatch.setattr(module, "find_namespaces", lambda _: found)
    monkeypatch.setattr(module, "enter_namespace", enter_limited)
    namespaces.enter()
    assert (started[0], len(namespaces.threads), namespaces.lost) == (None, 2, 2)
    assert all("no thread or process can be started" in why for why in namespaces.refused.values())
    started.clear()  # the limit was raised
    namespaces.enter()
    assert (len(namespaces.threads), namespaces.lost) == (4, 0)


def test_new_namespaces_are_entered_though_the_guard_has_just_scanned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard only leaves namespaces: however often it scans, a reading enters those that have appeared."""
    namespaces, now = Namespaces(), [1000.0]
    files = [Path(f"/proc/{os.getpid()}/ns/{name}") for name in ("net", "uts")]
    found = {os.stat(files[0]).st_ino: [files[0]]}
    monkeypatch.setattr(module, "find_namespaces", lambda _: found)
    monkeypatch.setattr(module, "enter_namespace", lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(namespaces, "watch", lambda: setattr(namespaces, "_guard", object()))
    namespaces.follow(frozenset())
    found[os.stat(files[1]).st_ino] = [files[1]]
    for _ in range(3):
        now[0] += 1.0
        namespaces._scan()
        namespaces.follow(frozenset())
    assert len(namespaces.threads) == 2
