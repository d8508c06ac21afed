# SPDX-License-Identifier: Apache-2.0
"""Dates in a time namespace, where the clocks of a process differ from those of the kernel."""

import contextlib
import select
import socket
import sys
from datetime import UTC, datetime

import pytest

from nettop.kernel.net.socket_owners import find_owners

from . import traffic
from .command import JSON, Row, Running, run
from .lab import Lab, until
from .traffic import Memory

pytestmark = pytest.mark.kernel

OFFSETS_S = (86_400, -30)
"""A clock that is ahead of the kernel's, and one that is behind: less than the machine has been up."""
PORT, CLOSED_PORT, SILENT_PORT = 7870, 7871, 7872
FLOWS = "bandwidth.flows"
DATES = {
    "connections.events": ("time", "opened_at"),
    "connections.failures": ("first_at", "last_at"),
    "services.connections": ("since",),
    FLOWS: ("first_seen", "last_seen"),
}
"""Columns that hold a time of the kernel, by table."""
START_TIME = """
from nettop.kernel.net.socket_owners import find_owners
print(*{row["start_time"] for row in find_owners().processes if row["pid"] == %d})
"""


def in_time_namespace(offset_s: int) -> tuple[str, ...]:
    """Return words that start a command in a new time namespace; skip the test where there are none."""
    words = "unshare", "--time", "--monotonic", str(offset_s), "--boottime", str(offset_s), "--fork"
    done = run(*words, "true")
    if done.returncode:
        pytest.skip(f"no time namespace can be made here: {done.stderr.strip()}")
    return words


def serve(_: Memory, address: str) -> None:
    """Answer each connection to one port, but none to another, until killed."""
    with socket.create_server((address, SILENT_PORT)), socket.create_server((address, PORT)) as listener:
        while True:
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(accepted.recv(1))


def ask(_: Memory, address: str) -> None:
    """Open connections that end, that fail and that wait for an answer, until killed."""
    until(lambda: not socket.socket().connect_ex((address, PORT)), "the server listens")
    silent = socket.create_connection((address, SILENT_PORT))
    silent.sendall(b"?")
    while True:
        with socket.create_connection((address, PORT)) as asking:
            asking.sendall(b"?")
            asking.recv(1)
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection((address, CLOSED_PORT))
        select.select([], [], [], 0.02)


@pytest.mark.walks
@pytest.mark.parametrize("table", DATES)
@pytest.mark.parametrize("offset_s", OFFSETS_S)
@pytest.mark.since("5.12", "events need programs that its verifier refuses")
def test_dates_are_those_of_the_wall_clock(lab: Lab, offset_s: int, table: str) -> None:
    """What happens during the test has a date within the test."""
    apart = in_time_namespace(offset_s)
    near, far = lab.pair()
    began = datetime.now(UTC)
    lab.worker(far.namespace).start(serve, far.v4)
    lab.worker(near.namespace).start(ask, far.v4)
    around = ("ip", "netns", "exec", near.namespace.name, *apart)
    own = () if table == FLOWS else ("--filter", "namespace=own")
    with Running(*JSON, "--view", table, "--interval", "1", *own, around=around) as running:

        def dated() -> list[Row]:
            rows = [row for rows in running.refreshes() for row in rows]
            return [row for row in rows if all(row[name] is not None for name in DATES[table])]

        rows = until(dated, f"a row of {table} has {' and '.join(DATES[table])}")
    dates = [datetime.fromisoformat(row[name]) for row in rows for name in DATES[table]]
    assert began <= min(dates)
    assert max(dates) <= datetime.now(UTC)


@pytest.mark.parametrize("offset_s", OFFSETS_S)
def test_a_process_is_the_same_in_every_time_namespace(lab: Lab, offset_s: int) -> None:
    """The start time, half of a process's identity, is that of the kernel."""
    worker = lab.worker()
    worker.call(traffic.listen, "listener", "127.0.0.1")
    done = run(*in_time_namespace(offset_s), sys.executable, "-c", START_TIME % worker.pid)
    started = {row["start_time"] for row in find_owners().processes if row["pid"] == worker.pid}
    assert {int(done.stdout)} == started
