# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the CPU lens: stints that go on, what is whose, /proc/stat."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.facts import Host
from nettop.kernel.proc_stat import CpuTimes, read_cpu_times
from nettop.kernel.rows import row_header
from nettop.probes.cpu import processes as process_times
from nettop.probes.cpu.entries import CALLER, CPU_STATE, SPENT, STINT_BITS, NapiThreads, with_stints
from nettop.probes.cpu.processes import CALLS, FIRST_ID, ProcessTimes
from nettop.snapshots.cpu import (
    ENTRIES,
    IO_WORKERS,
    NAPI_THREADS,
    NET_RX,
    NET_TX,
    NO_PROCESS,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TX_SOFTIRQ,
    TX_SYSCALLS,
    VECTORS,
)
from nettop.snapshots.snapshot import Array, Rows, unknown_value

ME, OTHER, NOBODY = os.getpid(), os.getppid(), 0
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
times = st.integers(0, 1 << 40)

Row = dict[str, Any]


# --- stints -----------------------------------------------------------------------------------------------------


def state(**fields: int) -> Array:
    """One CPU."""
    made = np.zeros(1, CPU_STATE)
    for name, value in fields.items():
        made[name] = value
    return made


@given(times, times, st.sampled_from([TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS, NAPI_THREADS]))
def test_what_a_thread_is_in_counts(since: int, more: int, entry: int) -> None:
    """From since when it is in it, to what it had before."""
    here = state(task=since << STINT_BITS | entry)
    here["entry_ns"][0, entry] = 5
    entry_ns, vector_ns = with_stints(here, since + more)
    assert entry_ns[0, entry] == 5 + more
    assert entry_ns.sum() == entry_ns[0, entry] and vector_ns.sum() == 0


@given(times, times, st.integers(0, len(VECTORS) - 1), st.sampled_from([0, *ENTRIES]))
def test_what_a_softirq_interrupts_rests(since: int, more: int, vector: int, under: int) -> None:
    """Time is the softirq's alone; an entry point's where it is the network's."""
    here = state(softirq=since << STINT_BITS | 1 + vector, task=since << STINT_BITS | under)
    entry_ns, vector_ns = with_stints(here, since + more)
    assert vector_ns[0, vector] == vector_ns.sum() == more
    softirqs = {NET_RX: RX_SOFTIRQ, NET_TX: TX_SOFTIRQ}
    assert entry_ns.sum() == (more if vector in softirqs else 0)
    assert vector not in softirqs or entry_ns[0, softirqs[vector]] == more


def test_what_begins_later_takes_nothing() -> None:
    """A stint may begin between the look at the clock and that at the CPU."""
    entry_ns, vector_ns = with_stints(state(task=100 << STINT_BITS | TX_SYSCALLS), 90)
    assert entry_ns.sum() == vector_ns.sum() == 0


def test_bits_of_stints() -> None:
    """What a stint is spent in has room."""
    assert max(*ENTRIES, len(VECTORS)) < 1 << STINT_BITS
    assert "u64 entry_ns[16]" in row_header("cpu_state", CPU_STATE)


# --- processes --------------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with two processes, of which only names and start times can be read."""
    for pid, name, started in ((ME, "me", 700), (OTHER, "other) (x", 900)):
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir(parents=True)
        write_stat(folder, name, started)
        (folder / "comm").write_text(f"{name}\n")
        (folder / "cmdline").write_bytes(b"run\0it\0")
    return Host(tmp_path)


def write_stat(folder: Path, name: str, started: int) -> None:
    """What /proc/PID/stat says (proc(5))."""
    (folder / "stat").write_text(f"1 ({name}) S {' '.join(['0'] * 18)} {started} 0 0\n")


def rows_of(rows: Rows, text: str = "process") -> list[Row]:
    """Rows by the names of their columns, with what the text column says."""
    names = rows.array.dtype.names or ()
    found = [dict(zip(names, row, strict=True)) for row in rows.array.tolist()]
    return [row | {text: dict(enumerate(rows.texts[text])).get(row[text])} for row in found]


def reading(
    processes: ProcessTimes,
    calls: Mapping[int, Mapping[int, int]],
    served: Mapping[int, int] | None = None,
    softirqs: int | None = None,
) -> list[Row]:
    """One reading of what samples tell, and of how long softirqs ran."""
    processes.begin()
    processes.add_sampled(calls)
    if softirqs is not None:
        processes.add_softirqs(served or {}, softirqs)
    return rows_of(processes.rows(0)[0])


def whose(rows: list[Row]) -> dict[int, int]:
    """The time of softirqs by PID, what is no process's under NOBODY."""
    return {NOBODY if row["process"] == NO_PROCESS else row["pid"]: row["softirq_ns"] for row in rows}


def test_calls_by_process(host: Host) -> None:
    """Exact and sampled times of a process are in one row, which has a name and keeps its id."""
    processes = ProcessTimes(host)
    processes.begin()
    callers = np.array([(700 * TICK_NS + 3, ME, 0)], CALLER)
    spent = np.zeros(1, SPENT)
    spent["entry_ns"][0, TX_SYSCALLS], spent["comm"] = 11, b"me"
    processes.add_exact(callers, spent)
    processes.add_softirqs({ME: 5}, 7)
    nobodys, row = rows_of(processes.rows(0)[0])
    assert (row["id"], row["pid"], row["process"]) == (FIRST_ID + 1, ME, "me")
    assert (row["tx_syscalls_ns"], row["softirq_ns"], row["network_ns"]) == (11, 5, 16)
    assert (nobodys["id"], nobodys["process"]) == (FIRST_ID, NO_PROCESS)
    assert (nobodys["softirq_ns"], nobodys["network_ns"]) == (2, 2)
    unknown = unknown_value(np.dtype("u8"))
    assert {nobodys[name] for name in ("tx_syscalls_ns", "rx_syscalls_ns", "io_workers_ns")} == {unknown}
    assert nobodys["pid"] == unknown_value(np.dtype("u4"))


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        pytest.param(
            [({ME: 10, OTHER: 30}, 100)], {NOBODY: 60, ME: 10, OTHER: 30}, id="the rest is nobody's"
        ),
        pytest.param([({}, 100)], {NOBODY: 100}, id="nobody is known"),
        pytest.param([({ME: 10, OTHER: 30}, 20)], {NOBODY: 0, ME: 5, OTHER: 15}, id="more than they spent"),
        pytest.param([({ME: 30}, 20), ({ME: 30}, 50)], {NOBODY: 20, ME: 30}, id="it waits for the next ones"),
        pytest.param([({}, 40), ({ME: 30}, 50)], {NOBODY: 40, ME: 10}, id="what was nobody's stays so"),
    ],
)
def test_whose_softirqs(
    host: Host, readings: list[tuple[Mapping[int, int], int]], expected: Mapping[int, int]
) -> None:
    """A process has what samples tell of it, though not more than softirqs have spent; nobody has its share of others'.

    That it calls much ties no softirq to it.
    """
    processes = ProcessTimes(host)
    calls = dict.fromkeys((ME, OTHER), dict.fromkeys(CALLS, 1000))
    for served, softirqs in readings:
        rows = reading(processes, calls, served, softirqs)
    assert whose(rows) == dict.fromkeys((ME, OTHER), 0) | dict(expected)


def test_without_softirqs(host: Host) -> None:
    """Where nothing tells how long they ran nobody has a row for them."""
    (row,) = reading(ProcessTimes(host), {ME: {TX_SYSCALLS: 10}})
    assert (row["pid"], row["network_ns"]) == (ME, 10)


@given(st.lists(st.tuples(times, times, times, times), min_size=1, max_size=6))
def test_nothing_falls_and_rows_add_up(steps: list[tuple[int, int, int, int]]) -> None:
    """Rows only grow, no process is charged more than was told of it, and all add up to calls and softirqs."""
    processes = ProcessTimes(Host(Path("/nowhere")))
    totals, before = [0] * 4, dict[int, int]()
    for step in steps:
        totals = [total + more for total, more in zip(totals, step, strict=True)]
        first, second, served, softirqs = totals
        calls = {ME: {RX_SYSCALLS: first}, OTHER: {TX_SYSCALLS: second}}
        rows = reading(processes, calls, {ME: served}, softirqs)
        now = {row["id"]: row["network_ns"] for row in rows}
        assert all(now[one] >= ns for one, ns in before.items())
        assert sum(now.values()) == first + second + softirqs
        assert whose(rows).get(ME, 0) <= served
        before = now


def test_another_process_with_the_pid(host: Host) -> None:
    """It has a row of its own, whose times begin at 0."""
    processes = ProcessTimes(host)
    first = reading(processes, {ME: {TX_SYSCALLS: 10}})
    write_stat(host.proc / str(ME), "me", 701)
    second = reading(processes, {ME: {TX_SYSCALLS: 14}})
    assert [row["tx_syscalls_ns"] for row in first] == [10]
    assert [(row["id"], row["tx_syscalls_ns"]) for row in second] == [(FIRST_ID + 1, 10), (FIRST_ID + 2, 4)]


def test_an_ended_process_keeps_its_row_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading that finds it gone still has it, the next has not; what it had is kept as that of who has ended, and
    what it has not been charged by then is nobody's."""
    monkeypatch.setattr(Host, "in_initial_pid_namespace", lambda _: True)
    processes = ProcessTimes(host)
    gone = 1 << 22
    calls, served = {gone: {TX_SYSCALLS: 10}}, {gone: 5}
    assert whose(reading(processes, calls, served, 3)) == {NOBODY: 0, gone: 3}
    assert [row["network_ns"] for row in reading(processes, calls, served, 3)] == [0, 13]
    assert whose(reading(processes, calls, served, 9)) == {NOBODY: 6}
    assert processes.ended == {TX_SYSCALLS: 10, RX_SOFTIRQ: 3}


def test_who_used_least_is_left_out(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more processes than rows; what they had is kept, and what they do later is in a new row."""
    monkeypatch.setattr(process_times, "ROWS_MAX", 1)
    processes = ProcessTimes(host)
    assert len(reading(processes, {ME: {TX_SYSCALLS: 10}, OTHER: {TX_SYSCALLS: 4}})) == 2
    assert (processes.left_out, processes.ended) == (0, {})
    rows = reading(processes, {ME: {TX_SYSCALLS: 10}, OTHER: {TX_SYSCALLS: 5}})
    assert {row["pid"]: row["network_ns"] for row in rows} == {ME: 10, OTHER: 1}
    assert (processes.left_out, processes.ended) == (1, {TX_SYSCALLS: 4})


def test_details(host: Host) -> None:
    """The words that started it; what is no process's is explained."""
    processes = ProcessTimes(host)
    reading(processes, {ME: dict.fromkeys(CALLS, 1)})
    assert processes.describe(FIRST_ID + 1) == {"Command": "run it"}
    assert processes.describe(FIRST_ID + 2) == {}
    assert "forwarded" in processes.describe(FIRST_ID)["Softirqs"]


# --- /proc/stat -------------------------------------------------------------------------------------------------


def test_proc_stat(tmp_path: Path) -> None:
    """Each CPU that is online has its times; waiting for devices and stolen time count as idle."""
    (tmp_path / "stat").write_text(
        "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 90 7 4 5 8 0 0\ncpu7 0 0 0 9 9 0 0 0 0 0\nintr 1\n"
    )
    assert read_cpu_times(tmp_path) == {
        0: CpuTimes(5 * TICK_NS, 105 * TICK_NS),
        7: CpuTimes(0, 18 * TICK_NS),
    }
    assert read_cpu_times(tmp_path / "nowhere") == {}


# --- threads that poll ------------------------------------------------------------------------------------------


def kernel_threads(proc: Path, *names: str, maker: str = "kthreadd") -> None:
    """A /proc with these threads of the kernel, numbered from 3 on."""
    for pid, name in enumerate((maker, *names), 2):
        (proc / str(pid)).mkdir(exist_ok=True)
        (proc / str(pid) / "comm").write_text(name + "\n")
    (proc / "2/task/2").mkdir(parents=True, exist_ok=True)
    (proc / "2/task/2/children").write_text(" ".join(map(str, range(3, 3 + len(names)))))


def test_threads_that_poll_are_found_when_they_come_and_missed_when_they_go(tmp_path: Path) -> None:
    """A thread that has no name of its own yet is looked at again."""
    threads = NapiThreads(tmp_path)
    kernel_threads(tmp_path, "ksoftirqd/0", "kthreadd")
    assert not threads.are_here()
    kernel_threads(tmp_path, "ksoftirqd/0", "napi/eth0-8193")
    assert threads.are_here()
    kernel_threads(tmp_path, "ksoftirqd/0")
    assert not threads.are_here()


def test_threads_that_nobody_can_see_are_believed_in(tmp_path: Path) -> None:
    """Without the kernel's threads in sight, as in a container, nothing says that there are none."""
    assert NapiThreads(tmp_path).are_here()
    kernel_threads(tmp_path, "worker", maker="init")
    assert NapiThreads(tmp_path).are_here()
