# SPDX-License-Identifier: Apache-2.0
"""Network CPU time by process, and the CPU times of /proc/stat."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import CpuTimes, read_cpu_times
from nettop.probes.cpu import processes as process_times
from nettop.probes.cpu.processes import CALLS, FIRST_ID, SAMPLED_NS, ProcessTimes
from nettop.snapshots.arrays import Array
from nettop.snapshots.cpu import NO_PROCESS, RX_SOFTIRQ, RX_SYSCALLS, TIME_OF, TX_SYSCALLS
from nettop.snapshots.snapshot import Rows, unknown_value

ME, OTHER, NO_PID = os.getpid(), os.getppid(), 0
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
times = st.integers(0, 1 << 40)

Row = dict[str, Any]


# --- processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Return a host with two processes, of which only the command lines can be read."""
    for pid in (ME, OTHER):
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        (folder / "cmdline").write_bytes(b"run\0it\0")
    return Host(tmp_path)


def rows_of(rows: Rows) -> list[Row]:
    """Return rows by the names of their columns, with the text of `process`."""
    names = rows.array.dtype.names or ()
    texts = dict(enumerate(rows.texts["process"]))
    return [
        row | {"process": texts.get(row["process"])}
        for row in (dict(zip(names, values, strict=True)) for values in rows.array.tolist())
    ]


def sampled(entry_ns: Mapping[int, Mapping[int, int]], started: int = 700) -> Array:
    """Return times by PID and entry point, as samples give them."""
    rows = [
        (started * TICK_NS, pid, entry, ns, b"me" if pid == ME else b"other")
        for pid, times in entry_ns.items()
        for entry, ns in times.items()
    ]
    return np.array(rows, SAMPLED_NS)


def reading(
    processes: ProcessTimes,
    calls: Mapping[int, Mapping[int, int]],
    served: Mapping[int, int] | None = None,
    softirqs: int | None = None,
) -> list[Row]:
    """Return one reading: what samples added, and the total time of softirqs."""
    processes.begin()
    processes.add_calls(sampled(calls))
    if softirqs is not None:
        processes.add_softirqs(
            sampled({pid: {RX_SOFTIRQ: ns} for pid, ns in (served or {}).items()}), softirqs
        )
    return rows_of(processes.rows(0))


def softirqs_by_pid(rows: list[Row]) -> dict[int, int]:
    """Return the time of softirqs by PID, that of `(no process)` under NO_PID."""
    return {NO_PID if row["process"] == NO_PROCESS else row["pid"]: row["softirq_ns"] for row in rows}


def ended(processes: ProcessTimes) -> dict[int, int]:
    """Return the times of rows that are gone, by entry point."""
    (total,) = processes.ended(0).total.array
    return {entry: int(total[name]) for entry, name in TIME_OF.items() if entry in CALLS and total[name]} | (
        {RX_SOFTIRQ: int(total["softirq_ns"])} if total["softirq_ns"] else {}
    )


def test_calls_by_process(host: Host) -> None:
    """Times of a process in calls and softirqs are in one row, which has a name and keeps its id."""
    processes = ProcessTimes(host)
    processes.begin()
    processes.add_calls(sampled({ME: {TX_SYSCALLS: 11}}))
    processes.add_softirqs(sampled({ME: {RX_SOFTIRQ: 5}}), 7)
    no_process, row = rows_of(processes.rows(0))
    assert (row["id"], row["pid"], row["process"]) == (FIRST_ID + 1, ME, "me")
    assert (row["tx_syscalls_ns"], row["softirq_ns"], row["network_ns"]) == (11, 5, 16)
    assert (no_process["id"], no_process["process"]) == (FIRST_ID, NO_PROCESS)
    assert (no_process["softirq_ns"], no_process["network_ns"]) == (2, 2)
    unknown = unknown_value(np.dtype("u8"))
    assert {no_process[name] for name in ("tx_syscalls_ns", "rx_syscalls_ns", "io_workers_ns")} == {unknown}
    assert no_process["pid"] == unknown_value(np.dtype("u4"))


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        pytest.param(
            [({ME: 10, OTHER: 30}, 100)], {NO_PID: 60, ME: 10, OTHER: 30}, id="the rest is no process's"
        ),
        pytest.param([({}, 100)], {NO_PID: 100}, id="no process is known"),
        pytest.param(
            [({ME: 10, OTHER: 30}, 20)], {NO_PID: 0, ME: 5, OTHER: 15}, id="samples exceed the time"
        ),
        pytest.param([({ME: 30}, 20), ({}, 50)], {NO_PID: 20, ME: 30}, id="the excess is charged later"),
        pytest.param([({}, 40), ({ME: 30}, 50)], {NO_PID: 40, ME: 10}, id="what was charged stays"),
    ],
)
def test_softirqs_by_process(
    host: Host, readings: list[tuple[Mapping[int, int], int]], expected: Mapping[int, int]
) -> None:
    """A process is charged its sampled softirq time, but no more than softirqs took; its calls play no part."""
    processes = ProcessTimes(host)
    calls = dict.fromkeys((ME, OTHER), dict.fromkeys(CALLS, 1000))
    for served, softirqs in readings:
        rows = reading(processes, calls, served, softirqs)
    assert softirqs_by_pid(rows) == dict.fromkeys((ME, OTHER), 0) | dict(expected)


@given(st.lists(st.tuples(times, times, times, times), min_size=1, max_size=6))
def test_nothing_falls_and_rows_add_up(steps: list[tuple[int, int, int, int]]) -> None:
    """Rows only grow, no process is charged more than its samples, and all sum up to calls and softirqs."""
    processes = ProcessTimes(Host(Path("/nowhere")))
    totals, before = [0] * 4, dict[int, int]()
    for step in steps:
        totals = [total + more for total, more in zip(totals, step, strict=True)]
        calls = {ME: {RX_SYSCALLS: step[0]}, OTHER: {TX_SYSCALLS: step[1]}}
        rows = reading(processes, calls, {ME: step[2]}, totals[3])
        now = {row["id"]: row["network_ns"] for row in rows}
        assert all(now[row_id] >= ns for row_id, ns in before.items())
        assert sum(now.values()) == totals[0] + totals[1] + totals[3]
        assert softirqs_by_pid(rows).get(ME, 0) <= totals[2]
        before = now


def test_a_reused_pid_gets_a_new_row(host: Host) -> None:
    """The times of the new process begin at 0."""
    processes = ProcessTimes(host)
    reading(processes, {ME: {TX_SYSCALLS: 10}})
    processes.begin()
    processes.add_calls(sampled({ME: {TX_SYSCALLS: 4}}, started=701))
    rows = rows_of(processes.rows(0))
    assert [(row["id"], row["tx_syscalls_ns"]) for row in rows] == [(FIRST_ID + 1, 10), (FIRST_ID + 2, 4)]


def test_an_ended_process_keeps_its_row_for_one_reading(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading that finds a process gone still has its row, the next one does not.

    Its times are kept as those of ended processes, and uncharged softirq time belongs to no process.
    """
    monkeypatch.setattr(Host, "in_initial_pid_namespace", lambda _: True)
    processes = ProcessTimes(host)
    gone = 1 << 22
    first = reading(processes, {gone: {TX_SYSCALLS: 10}}, {gone: 5}, 3)
    assert softirqs_by_pid(first) == {NO_PID: 0, gone: 3}
    assert first[1]["process"] == "other"  # /proc no longer knows its name
    assert [row["network_ns"] for row in reading(processes, {}, {}, 3)] == [0, 13]
    assert softirqs_by_pid(reading(processes, {}, {}, 9)) == {NO_PID: 6}
    assert ended(processes) == {TX_SYSCALLS: 10, RX_SOFTIRQ: 3}


def test_processes_that_used_least_are_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of rows, the least used processes are summed, and later times of theirs get a new row."""
    monkeypatch.setattr(process_times, "PROCESSES_MAX", 1)
    processes = ProcessTimes(host)
    assert len(reading(processes, {ME: {TX_SYSCALLS: 10}, OTHER: {TX_SYSCALLS: 4}})) == 2
    assert (processes.dropped, ended(processes)) == (0, {})
    rows = reading(processes, {OTHER: {TX_SYSCALLS: 1}})
    assert {row["pid"]: row["network_ns"] for row in rows} == {ME: 10, OTHER: 1}
    assert (processes.dropped, ended(processes)) == (1, {TX_SYSCALLS: 4})


def test_names_that_no_process_has_any_more_are_dropped(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of names stays small while processes come and go."""
    monkeypatch.setattr(process_times, "PROCESSES_MAX", 2)
    processes = ProcessTimes(host)
    for number in range(3000):
        processes.begin()
        jobs = [(pid * TICK_NS, pid, TX_SYSCALLS, 1, b"n%d" % pid) for pid in (number + 1, number + 2)]
        processes.add_calls(np.array(jobs, SAMPLED_NS))
        rows = processes.rows(0)
    assert len(rows.texts["process"]) <= 1100
    assert {row["process"] for row in rows_of(rows)} >= {"n3000", "n3001"}


def test_details(host: Host) -> None:
    """Details have the command line of a process, and explain `(no process)`."""
    processes = ProcessTimes(host)
    reading(processes, {ME: dict.fromkeys(CALLS, 1)})
    assert processes.describe(FIRST_ID + 1) == {"Command": "run it"}
    assert processes.describe(FIRST_ID + 2) == {}
    assert "forwarded" in processes.describe(FIRST_ID)["Softirqs"]


# --- /proc/stat -------------------------------------------------------------------------------------------------


def test_proc_stat(tmp_path: Path) -> None:
    """Each online CPU has its times; waiting for devices and stolen time count as idle."""
    (tmp_path / "stat").write_text(
        "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 90 7 4 5 8 0 0\ncpu7 0 0 0 9 9 0 0 0 0 0\nintr 1\n"
    )
    assert read_cpu_times(tmp_path) == {
        0: CpuTimes(5 * TICK_NS, 105 * TICK_NS),
        7: CpuTimes(0, 18 * TICK_NS),
    }
    assert read_cpu_times(tmp_path / "nowhere") == {}
