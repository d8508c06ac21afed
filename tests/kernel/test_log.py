# SPDX-License-Identifier: Apache-2.0
"""`nettop log` on the running kernel: real connections, real losses, and files of complete lines."""

import json
import os
import re
import signal
import socket
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from . import traffic
from .command import NOBODY, SUDO, Running, home_of_nobody
from .lab import Lab, Namespace, until
from .test_privileges import AS_NOBODY, kept, users
from .traffic import Call, Memory

pytestmark = pytest.mark.kernel

LOOPBACK = "127.0.0.1"
KINDS = ("connected", "accepted", "closed", "failed")


def make_connections(memory: Memory, count: int, moved: int = 0) -> list[int]:
    """Open and close `count` connections over loopback, the connecting end first; return their ports."""
    listener = socket.create_server((LOOPBACK, 0), backlog=128)
    ports = []
    for _ in range(count):
        near = socket.create_connection(listener.getsockname())
        ports.append(near.getsockname()[1])
        far, _ = listener.accept()
        near.sendall(b"n" * moved)
        traffic.finish(near)
        while far.recv(65536):
            pass
        traffic.finish(far)
    listener.close()
    return ports


def connect_to_nobody(memory: Memory, count: int) -> None:
    """Connect `count` times to a closed port."""
    for _ in range(count):
        assert socket.socket().connect_ex((LOOPBACK, 1)) != 0


@pytest.fixture
def inside(lab: Lab) -> Namespace:
    """Return a network namespace for this test."""
    return lab.namespace()


class Log(Running):
    """`nettop log` in a directory, as JSON Lines; it is attached inside the `with` block."""

    def __init__(self, directory: Path, *options: str, first: str = "metrics", **how: Any) -> None:
        self.directory = directory
        self._first, self._before = first, lines_of(directory, first)
        options = ("log", "--format", "jsonl", "--metrics-interval", "3600", *options)
        super().__init__(*options, cwd=directory, **how)

    def __enter__(self) -> Self:
        """Wait until it has logged the initial rows."""
        try:
            until(self._has_begun, "nettop logs its first rows")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return super().__enter__()

    def _has_begun(self) -> bool:
        assert self.process.poll() is None, self.errors()
        return lines_of(self.directory, self._first) > self._before

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of a file."""
        return [
            json.loads(line) for line in (self.directory / "log" / f"{name}.jsonl").read_text().splitlines()
        ]

    def summary(self) -> dict[str, int]:
        """End it; return the numbers in its last line."""
        assert self.end() == 0, self.errors()
        actual = re.findall(r"(\d+) (events|metrics|events \(\w[^)]*\))[,;]|(\w+) (\d+)[,;]", self.errors())
        return {what or name: int(count or number) for count, what, name, number in actual}


def lines_of(directory: Path, name: str) -> int:
    """Count the complete lines of a log file in this directory."""
    path = directory / "log" / f"{name}.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture
def peer(lab: Lab, inside: Namespace) -> None:
    """Open a connection that stays, so that there are metrics."""
    server, client = lab.worker(inside), lab.worker(inside)
    port = server.call(traffic.listen, "server", LOOPBACK)
    client.call(traffic.connect, "stays", Call((LOOPBACK, port)))


def of(rows: list[dict[str, Any]], namespace: Namespace) -> list[dict[str, Any]]:
    """Return the logged rows of a namespace."""
    return [row for row in rows if row.get("netns") == namespace.inode]


@pytest.mark.usefixtures("peer")
def test_every_connection_is_logged(lab: Lab, inside: Namespace, tmp_path: Path) -> None:
    """The log has each connection as connect, accept and two closes, with its bytes and process, and each failure."""
    worker = lab.worker(inside, "logtest")
    with Log(tmp_path) as log:
        ports = worker.call(make_connections, 101, 1009)
        worker.call(connect_to_nobody, 7)
        log.summary()
        rows = of(log.rows("events"), inside)
    assert Counter(row["event"] for row in rows) == {"connect": 101, "accept": 101, "close": 202, "fail": 7}
    near = [row for row in rows if row["event"] == "close" and row["local_port"] in ports]
    assert [row["local_port"] for row in near] == ports
    assert {(row["bytes_sent"], row["process"], row["reason"]) for row in near} == {
        (1009, "logtest", "closed by us")
    }
    assert {row["reason"] for row in rows if row["event"] == "fail"} == {"refused"}
    assert [row["time"] for row in near] == sorted(row["time"] for row in near)


@pytest.mark.usefixtures("peer")
def test_losses_are_reported_and_totals_exact(lab: Lab, inside: Namespace, tmp_path: Path) -> None:
    """With the smallest ring, written and lost events sum up to the kernel's count."""
    worker = lab.worker(inside)
    with Log(tmp_path, "--ring-size", "4K") as log:
        for _ in range(2):
            log.process.send_signal(signal.SIGSTOP)  # nobody takes from the ring
            worker.call(make_connections, 500)
            log.process.send_signal(signal.SIGCONT)
        reported = log.summary()
        rows = log.rows("events")
    lost = sum(row["count"] for row in rows if row["type"] == "lost" and row["what"] == "events")
    written = sum(row["type"] == "event" for row in rows)
    assert lost > 0
    assert written == reported["events"]
    assert lost == reported["events (ring full or hook busy)"]
    assert written + lost == sum(reported[kind] for kind in KINDS)


@pytest.mark.walks
@pytest.mark.usefixtures("peer")
def test_files_belong_to_who_called_sudo(lab: Lab, inside: Namespace) -> None:
    """In the sudo caller's directory, the caller owns the log's directory and files; nettop runs as the caller, without
    capabilities, and still sees events."""
    with home_of_nobody() as home:
        worker = lab.worker(inside)
        words = ("--rotate-size", "16K", "--filter", f"netns={inside.inode}")  # no other's rotate them away
        with Log(home, *words, env=SUDO) as log:
            assert (users(log.pid), kept(log.pid)) == ({AS_NOBODY}, [])
            worker.call(make_connections, 50)
            log.summary()
            actual = {path.name: path.stat() for path in (home / "log", *(home / "log").iterdir())}
            assert len(of(log.rows("events"), inside)) > 0
        assert {(item.st_uid, item.st_gid) for item in actual.values()} == {(NOBODY, NOBODY)}
        assert "events.1.jsonl" in actual


@pytest.mark.usefixtures("peer")
def test_files_of_root_elsewhere() -> None:
    """If root logs into another user's directory, the files are that user's; writing needs no root privileges."""
    with tempfile.TemporaryDirectory(dir="/tmp") as there:
        home = Path(there) / "home"
        home.mkdir()
        os.chown(home, NOBODY, NOBODY)
        with Log(home) as log:
            log.summary()
        assert {path.stat().st_uid for path in home.rglob("*")} == {NOBODY}


@pytest.mark.usefixtures("peer")
def test_two_lenses(lab: Lab, inside: Namespace) -> None:
    """Both lenses are logged in their own files, even if nettop changes user before the second is attached."""
    with home_of_nobody() as home:
        worker = lab.worker(inside)
        words = ("--lens", "connections", "--lens", "drops", "--metrics-interval", "0.2")
        with Log(home, *words, "--interval", "0.2", env=SUDO) as log:
            attempts = count(1)

            def drops_are_logged() -> bool:
                """Return whether drops are logged; cause one until the second lens is attached."""
                worker.call(connect_to_nobody, 1)
                next(attempts)
                return lines_of(home, "drops") > 0

            until(drops_are_logged, "drops are logged")
            log.summary()
            assert len(of(log.rows("events"), inside)) == next(attempts) - 1
            assert {row["lens"] for row in log.rows("drops") if row["type"] != "lost"} == {"drops"}
