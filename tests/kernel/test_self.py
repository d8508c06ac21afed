# SPDX-License-Identifier: Apache-2.0
"""nettop's reported cost equals the kernel's figures, and --max-overhead bounds it."""

import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nettop.probes.connections.probe import Connections
from tests.options import source_options

from . import bpf_objects
from .command import HOUR, Running
from .lab import until
from .terminal import Terminal

pytestmark = pytest.mark.kernel

SHOWN = ("--view", "self", "--format", "jsonl")
ENABLE_STATS = 32
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
AGREED = 1.05
"""nettop reads what the scheduler measured; of ended children, and here, the kernel gives what its ticks counted."""
PROGRAM = re.compile(r"^prog_id:\s*(\d+)$", re.MULTILINE)

Rows = dict[tuple[str, str], dict[str, Any]]
Runs = dict[str, tuple[int, int]]


@contextlib.contextmanager
def statistics_on() -> Iterator[None]:
    """Have the kernel count program runs inside the `with` block."""
    descriptor = bpf_objects.bpf(ENABLE_STATS, struct.pack("=I60x", 0))[0]
    try:
        yield
    finally:
        os.close(descriptor)


def runs_of(pid: int) -> Runs:
    """Return runs and ns of each program held by the process, by the kernel's name for it (15 characters)."""
    runs: Runs = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if match := PROGRAM.search(path.read_text()):
                name, *numbers = bpf_objects.runs_and_time(int(match[1]))
                runs[name] = (numbers[0], numbers[1])
    return runs


def cpu_ns(pid: int) -> int:
    """Return user and system time of a process and its waited-for children, in ns, by ticks."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) * TICK_NS


def kernels_name(shown: str) -> str:
    """Return the kernel's name for a program shown as `tp_btf/…` or `iter/…`."""
    return shown.partition("@")[0].removeprefix("iter/").replace("/", "__", 1)[:15]


def by_name(rows: list[dict[str, Any]]) -> Rows:
    """Return rows by kind and name."""
    return {(row["kind"], row["name"]): row for row in rows}


@pytest.fixture
def shown(nothing_cached: None) -> Iterator[Running]:
    """Return nettop --view self with its programs compiled and shown, refreshed by Enter only."""
    with Running(*SHOWN, *HOUR) as running:
        running.first_rows()
        until(lambda: any("udp_sent" in name for _, name in next_rows(running)), "all is shown")
        yield running


def next_rows(running: Running) -> Rows:
    """Return the rows of its next refresh."""
    before = len(running.refreshes())
    ask_and_wait(running)
    ask_and_wait(running)  # the last line of a refresh is known to be the last when another one has begun
    return by_name(running.refreshes()[before])


def ask_and_wait(running: Running) -> None:
    """Request one more refresh when none is due."""
    before = len(running.refreshes())
    running.refresh()
    until(lambda: len(running.refreshes()) > before, "another refresh")


@pytest.mark.walks
def test_programs_are_what_the_kernel_counts(shown: Running) -> None:
    """Runs and time of each program lie between the kernel's values before and after."""
    with statistics_on():
        listener = socket.create_server(("127.0.0.1", 0))
        for _ in range(97):
            socket.create_connection(listener.getsockname()).close()
        before = runs_of(shown.pid)
        rows = next_rows(shown)
        after = runs_of(shown.pid)
    listener.close()
    programs = {name: row for (kind, name), row in rows.items() if kind in ("program", "iterator")}
    assert {kernels_name(name) for name in programs} == set(before)
    for name, row in programs.items():
        least, most = before[kernels_name(name)], after[kernels_name(name)]
        assert least[0] <= row["runs"] <= most[0], name
        assert least[1] <= row["time_ns"] <= most[1], name
        assert row["lens"] == "connections"
    assert programs["tp_btf/inet_sock_set_state"]["runs"] >= 97
    assert programs["iter/task_file"]["runs"] > 0


def test_the_total_is_what_the_kernel_charges(shown: Running) -> None:
    """The total has user and system time, including the ended compiler's; programs in others' time are
    listed beside it."""
    before = cpu_ns(shown.pid)
    rows = next_rows(shown)
    after = cpu_ns(shown.pid)
    programs = sum(row["time_ns"] for (kind, _), row in rows.items() if kind == "program")
    total = rows["total", "nettop"]["time_ns"]
    assert before / AGREED - 2 * TICK_NS <= total
    assert total - programs <= after * AGREED + 2 * TICK_NS
    assert all(row["time_ns"] <= total for row in rows.values() if row["time_ns"] is not None)
    assert rows["children", "ended"]["time_ns"] > 0
    threads = {name for kind, name in rows if kind == "thread"}
    assert {"main", "sampler"} <= threads


def test_memory(shown: Running) -> None:
    """The view has resident memory, and the kernel memory of maps."""
    rows = next_rows(shown)
    resident = int(Path(f"/proc/{shown.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    kernel = rows["maps", "kernel memory"]["memory"]
    assert kernel > 0
    assert 0.5 < rows["total", "nettop"]["memory"] / (resident + kernel) < 2
    assert rows["step", "read"]["runs"] > 0


def test_statistics_end_with_nettop() -> None:
    """Statistics are switched off on exit: they cost every program of the host."""
    probe = Connections()
    probe.configure(source_options(["events"]))
    probe.start()

    def are_counted() -> bool:
        before = probe.programs()["tp_btf__inet_sock_set_state"]
        connect_and_close(3)
        return probe.programs()["tp_btf__inet_sock_set_state"] > before

    try:
        with Running(*SHOWN, "--interval", "0.5") as running:
            running.first_rows()
            until(are_counted, "the kernel counts")
            running.kill()
        until(lambda: not are_counted(), "the kernel counts no more")
    finally:
        probe.close()


@pytest.mark.parametrize(
    ("words", "has_statistics"), [((), False), (("--view", "self"), True), (("--max-overhead", "5%"), True)]
)
def test_screens_open_statistics_only_when_started_for_them(
    words: tuple[str, ...], has_statistics: bool
) -> None:
    """Screens enable statistics only on request: they slow down every program of the host."""
    with Terminal(*words) as terminal:
        terminal.shows(b" cost ")
        descriptors = Path(f"/proc/{terminal.pid}/fd").iterdir()
        assert ("anon_inode:bpf-stats" in map(os.readlink, descriptors)) == has_statistics
        terminal.type(b"q")
        assert terminal.wait() == 0


def test_the_interval_grows_and_it_says_so() -> None:
    """With a bound far too low for ten readings a second, the interval grows; hooks on others' traffic are detached
    first."""
    said = re.compile(r"^nettop: interval \d+\.\d s.* for --max-overhead 0\.1%$", re.MULTILINE)
    with Running("--table", "-d", "--interval", "0.1", "--max-overhead", "0.1%") as running:
        until(lambda: said.search(running.errors()), "it says that it reads less often", 60)


def connect_and_close(count: int) -> None:
    """Make `count` connections over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
            near.close()
            far.close()
