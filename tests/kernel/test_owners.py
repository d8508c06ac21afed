# SPDX-License-Identifier: Apache-2.0
"""Every socket is shown with the process that holds it, or as unattributed if none does."""

import contextlib
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nettop.probes.connections.probe import Connections
from nettop.snapshots.connections import SOCKETS

from . import oracle, traffic
from .command import JSON, TABLE, Row, Running, by_cookie, in_namespaces, nettop, rows
from .lab import Lab, Namespace, Worker, until
from .socket_sharing import (
    keep_in_flight,
    keep_in_ring,
    listen_for_socket,
    pass_on,
    receive_socket,
    rename,
    rename_other_thread,
    serve_by_fork,
)
from .traffic import Call

pytestmark = pytest.mark.kernel

HOSTILE = (
    b"\x1b[31mred\x1b[0m",
    b"two\nlines",
    b"a\rb\tc",
    "\u202ebidi".encode(),
    b"\x9b31mC1",
    b"\xff\xfe raw",
    b'";--,"',
    "\u200bzero".encode(),
)


def connected(lab: Lab, count: int = 1, name: str = "client") -> tuple[Namespace, Worker, Worker]:
    """Return a namespace with a client and a server joined by `count` connections over loopback."""
    home = lab.namespace()
    client, server = lab.worker(home, name), lab.worker(home, "server")
    port = server.call(traffic.listen, "listener", "127.0.0.1")
    ports = client.call(traffic.connect_at_once, [Call(("127.0.0.1", port))] * count)
    server.call(traffic.accept_ports, "listener", {port: number for number, port in enumerate(ports)})
    return home, client, server


def owner(row: Row) -> tuple[int | None, str | None]:
    """Return the row's process."""
    return row["pid"], row["process"]


def process(pid: int) -> tuple[int, str]:
    """Return the PID and name that nettop must report for that process."""
    return pid, oracle.command_name(pid)


@pytest.mark.core
def test_fork_per_connection(lab: Lab) -> None:
    """A connection served by its own child, as in sshd, belongs to that child."""
    home = lab.namespace()
    server, client = lab.worker(home, "daemon"), lab.worker(home)
    port = server.call(traffic.listen, "listener", "127.0.0.1")
    client.call(traffic.connect_at_once, [Call(("127.0.0.1", port))] * 20)
    served: dict[int, int] = server.call(serve_by_fork, "listener", 20)
    shown = {
        row["remote_port"]: owner(row)
        for row in in_namespaces(rows(), home.inode)
        if row["local_port"] == port and row["state"] == "ESTABLISHED"
    }
    assert shown == {peer: process(pid) for peer, pid in served.items()}
    assert len(set(served.values())) == 20


def test_socket_passed_to_another_process(lab: Lab) -> None:
    """A socket passed by SCM_RIGHTS and closed by the sender belongs to the receiver."""
    home, client, _ = connected(lab)
    cookie = client.call(traffic.cookie, 0)
    assert owner(by_cookie(rows())[cookie]) == process(client.pid)
    heir = lab.worker(home, "heir")
    path = f"\0nettop-lab-{client.pid}"
    heir.call(listen_for_socket, path)
    heir.start(receive_socket, "heirloom")
    client.call(pass_on, path, 0)
    heir.result()
    assert owner(by_cookie(rows())[cookie]) == process(heir.pid)


def test_socket_in_flight_between_processes(lab: Lab) -> None:
    """A socket that only an unread SCM_RIGHTS message holds has a row without an owner."""
    _, client, _ = connected(lab)
    cookie = client.call(traffic.cookie, 0)
    client.call(keep_in_flight, 0)
    assert owner(by_cookie(rows())[cookie]) == (None, None)


def test_socket_of_a_ring(lab: Lab) -> None:
    """A socket that only io_uring holds, as a direct descriptor, has a row."""
    _, client, _ = connected(lab)
    cookie = client.call(traffic.cookie, 0)
    if not client.call(keep_in_ring, 0):
        pytest.skip("this kernel has no io_uring for us")
    row = by_cookie(rows())[cookie]
    assert (owner(row), row["state"]) == ((None, None), "ESTABLISHED")


def test_renamed_leader_while_running(lab: Lab) -> None:
    """`process` is the name of the thread group's leader, whatever its other threads are called, as of each refresh."""
    _, client, _ = connected(lab, name="before")
    cookie = client.call(traffic.cookie, 0)
    changes = [lambda: client.call(rename_other_thread, b"other"), lambda: client.call(rename, b"after")]
    names = [name for _, name in owners_over_refreshes(cookie, changes)]
    assert names == ["before", "before", "after"]


def owners_over_refreshes(
    cookie: int, changes: list[Callable[[], object]]
) -> list[tuple[int | None, str | None]]:
    """Return the owners that one run of nettop shows at first, and after each of these changes."""
    with Running(*JSON, "--all", "--interval", "3600") as running:
        for done, change in enumerate(changes, 1):
            until(
                lambda done=done: len(running.refreshes()) == done or running.process.poll(),
                f"refresh {done}",
            )
            change()
            if done < len(changes):
                running.refresh()
        assert running.end() == 0, running.errors()  # after a last reading
        return [owner(by_cookie(refresh)[cookie]) for refresh in running.refreshes()]


@contextlib.contextmanager
def control_group(path: str) -> Iterator[Path]:
    """Yield a new cgroup v2 group, and remove it at the end, after its processes have exited."""
    mounts = [
        line.split()[1]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.split()[2] == "cgroup2"
    ]
    if not mounts:
        pytest.skip("no cgroup v2 hierarchy is mounted")
    made = Path(mounts[0]) / path
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        until(lambda: not (made / "cgroup.procs").read_text(), "the group is empty")
        made.rmdir()
        made.parent.rmdir()


def test_hostile_process_names(lab: Lab) -> None:
    """Control characters in process names do not reach the output, and break no line."""
    home, first, server = connected(lab)
    clients = [first, *(lab.worker(home) for _ in HOSTILE[1:])]
    port = server.call(traffic.address, "listener")[1]
    for client, name in zip(clients, HOSTILE, strict=True):
        client.call(traffic.connect, 0, Call(("127.0.0.1", port)))
        client.call(rename, name)
    done = nettop(*TABLE, "--once", "--all", "--columns", "id,process,state")
    assert done.returncode == 0, done.stderr
    unsafe = {
        unicodedata.name(char, hex(ord(char)))
        for char in done.stdout
        if char != "\n" and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    }
    assert not unsafe
    for client in clients:
        key = re.compile(rf"\b{client.call(traffic.cookie, 0)}\b")
        assert len([line for line in done.stdout.splitlines() if key.search(line)]) == 1


def test_details_repeat_no_field(lab: Lab) -> None:
    """Each fact occurs once in the details: no description repeats a field."""
    _, client, _ = connected(lab)
    with contextlib.closing(Connections()) as probe:
        probe.start()
        listed = probe.read(time.monotonic_ns()).tables[SOCKETS.name].array
        described = probe.describe(int(listed["id"][listed["pid"] == client.pid][0]))
    titles = {field.title for field in SOCKETS.fields}
    assert described
    assert not {name.upper() for name in described} & titles
