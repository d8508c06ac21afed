# SPDX-License-Identifier: Apache-2.0
"""In container-like namespaces processes have their PIDs there; outside ones have none."""

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from .command import JSON, NETTOP, Running, nettop, rows_in, run
from .lab import until

pytestmark = pytest.mark.kernel

PID = ("--pid", "--fork", "--kill-child", "--mount-proc")
ALL = (*PID, "--net", "--mount", "--cgroup", "--uts", "--ipc")
USER = (*ALL, "--user", "--map-root-user")
NAMESPACES = [
    pytest.param([PID, PID], id="pid within pid", marks=pytest.mark.core),
    pytest.param([ALL], id="all"),
    pytest.param([("--net",)], id="network"),
]
CLIENT = """
import os, socket, subprocess, sys
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = socket.create_server(("127.0.0.1", 0))
for _ in range(5):
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.sendall(bytes(1000))
    accepted.recv(1000, socket.MSG_WAITALL)
    client.close()
    accepted.close()
print(os.getpid())
"""
"""Makes five connections to itself, and says by which PID it knows itself."""

HOLDER = """
import os, socket, subprocess, sys
held = socket.create_server(("127.0.0.1", 0))
print(os.getpid(), held.getsockname()[1], flush=True)
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""
"""Holds a listener while a command runs; says first by which PID it knows itself, and the port."""
SENDER = """
import os, socket, sys
print(os.getpid(), flush=True)
parent = os.getppid()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
    while os.getppid() == parent and not os.path.exists(sys.argv[1]):
        for _ in range(1000):
            held.sendto(bytes(1000), ("127.0.0.1", 9))
"""
"""Sends until a file exists."""


def within(namespaces: list[tuple[str, ...]]) -> list[str]:
    """Return words that start a command in these namespaces, nested in this order."""
    return [word for options in namespaces for word in ("unshare", *options)]


def require(namespaces: list[tuple[str, ...]]) -> None:
    """Skip the test if such namespaces cannot be made."""
    made = run(*within(namespaces), "true")
    if made.returncode:
        pytest.skip(f"this machine makes no such namespaces: {made.stderr.strip()}")


def run_within(namespaces: list[tuple[str, ...]], *options: str) -> "subprocess.CompletedProcess[str]":
    """Run nettop in these namespaces to its end."""
    return nettop(*options, around=within(namespaces))


@pytest.mark.parametrize("namespaces", NAMESPACES)
def test_run(namespaces: list[tuple[str, ...]], tmp_path: Path) -> None:
    """`nettop run` follows the process it started, which has another PID in the kernel, and its children."""
    report = tmp_path / "report"
    script = f"{sys.executable} -S -c '{CLIENT}'"
    done = run_within(
        namespaces, "run", "--format", "jsonl", "--output", str(report), "--", "sh", "-c", f"{script} & wait"
    )
    assert done.returncode == 0, done.stderr
    *rows, summary = map(json.loads, report.read_text().splitlines())
    ends = [row for row in rows if row["event"] == "close"]
    assert (summary["opened"], summary["bytes_sent"], len(ends)) == (5, 5000, 10)
    assert {row["pid"] for row in ends} == {int(done.stdout)}


@pytest.mark.parametrize("namespaces", [NAMESPACES[0], pytest.param([USER], id="all, and user")])
def test_self_test(namespaces: list[tuple[str, ...]]) -> None:
    """The self-test finds its own processes by their PIDs in their own namespace."""
    require(namespaces)
    up = ["sh", "-c", 'ip link set lo up && exec "$0" "$@"', NETTOP]
    words = ("doctor", "--only", "connections", "--format", "json")
    done = run(*within(namespaces), *up, *words, deadline_s=120)
    trials = json.loads(done.stdout)["self_test"]
    assert [trial["what"] for trial in trials if trial["ok"]], done.stderr
    assert [trial for trial in trials if trial["ok"] is False] == []


@pytest.mark.walks
@pytest.mark.parametrize("mechanism", ["iter", "sock_diag"])
@pytest.mark.parametrize("around", [PID, USER], ids=["root", "user namespace"])
def test_table(around: tuple[str, ...], mechanism: str) -> None:
    """Every mechanism gives a socket's owner its own PID and command line."""
    if around is USER and mechanism == "iter":
        pytest.skip("capabilities held in a user namespace load no BPF programs")
    require([around])
    words = (*JSON, "--once", "--all", "--mechanism", f"sockets={mechanism}")
    done = nettop(*words, around=("unshare", *around, sys.executable, "-S", "-c", HOLDER))
    first, rest = done.stdout.split("\n", 1)
    pid, port = map(int, first.split())
    (row,) = (row for row in rows_in(rest) if row["local_port"] == port)
    assert (row["pid"], row["process"]) == (pid, Path(sys.executable).name)


@pytest.mark.core
def test_processes_outside() -> None:
    """Events of a process outside have its name and no PID."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        options = (*JSON, "--view", "connections.events", "--interval", "0.1")
        with Running(*options, around=within([PID])) as running:

            def ended() -> list[dict[str, object]]:
                socket.create_connection(server.getsockname()).close()
                server.accept()[0].close()
                closed = (row for row in running.printed() if row["event"] == "close")
                return [row for row in closed if port in (row["local_port"], row["remote_port"])]

            until(ended, "an end is reported")
            rows = ended()
    name = Path("/proc/self/comm").read_text().strip()
    assert {(row["pid"], row["process"]) for row in rows} == {(None, f"{name} (outside)")}


@pytest.mark.walks
@pytest.mark.parametrize("listens", [True, False])
def test_sides_of_connections_outside(*, listens: bool) -> None:
    """An older connection between outside processes has its server and client side, and its opener.

    This holds with or without its listener.
    """
    with ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        client = opened.enter_context(socket.create_connection(server.getsockname()))
        accepted = opened.enter_context(server.accept()[0])
        if not listens:
            server.close()
        options = (*JSON, "--view", "services", "--interval", "0.1")
        running = opened.enter_context(Running(*options, around=within([PID])))

        def sides() -> set[str]:
            client.sendall(b"q")
            accepted.sendall(accepted.recv(1))
            client.recv(1)
            return {row["side"] for row in running.printed() if row["port"] == port and row["responses"]}

        until(lambda: len(sides()) > 1, "both ends have counted answers")
        assert sides() == {"served", "used"}
        shown = run_within([PID], *JSON, "--once", "--all")
        directions = {
            (row["local_port"], row["remote_port"]): row["direction"] for row in rows_in(shown.stdout)
        }
        other = client.getsockname()[1]
        assert (directions[port, other], directions[other, port]) == ("inbound?", "outbound?")


def test_cpu_cost(tmp_path: Path) -> None:
    """Time in system calls is charged to the process by its PID here, and to no PID for outside ones."""
    enough, pid = tmp_path / "enough", tmp_path / "pid"
    sender = [sys.executable, "-S", "-c", SENDER, str(enough)]
    options = (*JSON, "--view", "cpu.processes", "--interval", "0.5")
    script = f'"$0" -S -c "$1" {enough} > {pid} & exec "$2" {" ".join(options)}'
    around = (*within([PID]), "sh", "-c", script, sys.executable, SENDER)
    with subprocess.Popen(sender, stdout=subprocess.DEVNULL), Running(around=around) as running:
        try:
            until(lambda: pid.exists() and pid.read_text(), "the process inside sends")
            inside = int(pid.read_text())

            def charged() -> bool:
                rows = [row for row in running.printed() if row["tx_syscalls_ns"]]
                pids = {row["pid"] for row in rows}
                names = {row["process"] for row in rows if row["pid"] is None}
                return inside in pids and any(name.endswith("(outside)") for name in names)

            until(charged, "both are charged for what they send")
        finally:
            enough.touch()


def test_another_namespaces_proc() -> None:
    """If /proc shows another namespace, PIDs would name the wrong processes: nettop prints one clear line."""
    done = run_within([("--pid", "--fork", "--kill-child")], "--table", "--once")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/proc shows a different PID namespace" in done.stderr
    assert "--mount-proc" in done.stderr
