# SPDX-License-Identifier: Apache-2.0
"""`nettop run` on the running kernel: the command's connections, those of its children, and nobody else's."""

import ctypes
import json
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from . import traffic
from .command import NOBODY, SUDO, nettop
from .lab import Lab, Namespace, Worker
from .traffic import Memory

pytestmark = pytest.mark.kernel

PR_SET_CHILD_SUBREAPER = 36
LOOPBACK = "127.0.0.1"
CLIENT = """
import socket, struct, sys
made = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 30))
made.sendall(b"n" * int(sys.argv[2]))
made.shutdown(socket.SHUT_WR)
while made.recv(1 << 20):
    pass
made.close()
"""
"""Ends once the peer's host has acknowledged its close: then the connection has ended too."""


def serve(memory: Memory, count: int, answer: int) -> None:
    """Read everything that each of `count` connections sends, and answer with this many bytes."""
    for _ in range(count):
        made, _ = memory["server"].accept()
        while made.recv(65536):
            pass
        made.sendall(b"n" * answer)
        made.close()


REFUSED = f"""
import errno, socket, sys
sys.exit(7 if socket.socket().connect_ex(("{LOOPBACK}", 1)) == errno.ECONNREFUSED else 1)
"""
"""Ends with 7 when a connection is refused."""


class Place:
    """A namespace with a server, and the client program that commands start there."""

    def __init__(self, lab: Lab, path: Path) -> None:
        self.namespace: Namespace = lab.namespace()
        self.server: Worker = lab.worker(self.namespace)
        self.port = self.server.call(traffic.listen, "server", LOOPBACK)
        self.report = path / "report"
        (path / "client.py").write_text(CLIENT)
        self.client = f"{sys.executable} -S {path}/client.py {self.port}"
        (path / "refused.py").write_text(REFUSED)
        self.refused = f"{sys.executable} -S {path}/refused.py"

    def run(self, script: str, *options: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell script by `nettop run` in the namespace; the report is JSON Lines in a file."""
        inside = ("ip", "netns", "exec", self.namespace.name, "sh", "-c", script)
        return nettop(
            "run", "--format", "jsonl", "--output", str(self.report), *options, "--", *inside, **how
        )

    def events(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Return the report's connections and its summary."""
        *rows, summary = [json.loads(line) for line in self.report.read_text().splitlines()]
        return rows, summary


@pytest.fixture
def place(lab: Lab, tmp_path: Path) -> Place:
    """Return a namespace with a server that listens."""
    return Place(lab, tmp_path)


def test_children_and_grandchildren(place: Place) -> None:
    """Connections of the command, its child and grandchild are reported with exact bytes, and so is a failure."""
    place.server.start(serve, 3, 4999)
    child = f"sh -c '{place.client} 211 & wait' & {place.client} 307; wait"
    script = f"{place.client} 101; {child}; {place.refused}"
    done = place.run(script)
    place.server.result()
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    rows, summary = place.events()
    closed = [(row["bytes_sent"], row["bytes_received"]) for row in rows if row["event"] == "close"]
    assert sorted(closed) == [(101, 4999), (211, 4999), (307, 4999)]
    assert [(row["process"], row["reason"]) for row in rows if row["event"] == "fail"] == [
        (Path(sys.executable).name, "refused")
    ]
    assert {
        name: summary[name] for name in ("opened", "accepted", "still_open", "failed", "lost_events")
    } == {"opened": 3, "accepted": 0, "still_open": 0, "failed": {"refused": 1}, "lost_events": 0}
    assert (summary["bytes_sent"], summary["bytes_received"]) == (619, 3 * 4999)
    assert [remote["name"] for remote in summary["remotes"]] == [f"{LOOPBACK}:{place.port}", f"{LOOPBACK}:1"]


DATAGRAMS = """
import os, socket, sys
port, count, inherited = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
own = socket.socket(fileno=inherited) if inherited else socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for at in range(count):
    own.sendto(b"n" * 997, ("127.0.0.1", port))
    own.recv(2000)
"""


def echo(memory: Memory, count: int) -> None:
    """Answer each of `count` datagrams with three bytes."""
    for _ in range(count):
        _, peer = memory["echo"].recvfrom(2000)
        memory["echo"].sendto(b"yes", peer)


def bind_echo(memory: Memory) -> int:
    """Open a UDP socket on loopback; return its port."""
    memory["echo"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    memory["echo"].bind((LOOPBACK, 0))
    return int(memory["echo"].getsockname()[1])


def test_datagrams_of_the_tree(place: Place, tmp_path: Path) -> None:
    """The summary has the UDP bytes of the command and its children, also by an inherited socket."""
    (tmp_path / "datagrams.py").write_text(DATAGRAMS)
    port = place.server.call(bind_echo)
    place.server.start(echo, 600)
    client = f"{sys.executable} -S {tmp_path}/datagrams.py {port}"
    script = f"{client} 300 0; sh -c '{client} 200 0 & wait'; {client} 100 9"
    inside = ("ip", "netns", "exec", place.namespace.name)
    opener = f"""
import os, socket
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.dup2(made.fileno(), 9)
os.execvp("sh", ["sh", "-c", {script!r}])
"""
    report = ("run", "--format", "jsonl", "--output", str(place.report))
    done = nettop(*report, "--", *inside, sys.executable, "-S", "-c", opener)
    assert (done.returncode, done.stderr) == (0, "")
    place.server.result()
    _, summary = place.events()
    assert {name: summary[name] for name in summary if name.startswith("udp_")} == {
        "udp_bytes_sent": 600 * 997,
        "udp_bytes_received": 600 * 3,
        "udp_messages_sent": 600,
        "udp_messages_received": 600,
    }
    assert (summary["bytes_sent"], summary["still_running"], summary["lost_udp_messages"]) == (0, 0, 0)


def test_a_child_that_outlives_the_command(place: Place, tmp_path: Path) -> None:
    """The summary says how many processes continue, whose later traffic it lacks."""
    fifo = tmp_path / "end"
    os.mkfifo(fifo)
    place.run(f"setsid sh -c 'read _ < {fifo}' > /dev/null 2>&1 & exit 0")
    with fifo.open("w"):
        pass
    _, summary = place.events()
    assert summary["still_running"] == 1


FORK = """
import os
children = []
for _ in range(5):
    children.append(os.fork())
    if children[-1] == 0:
        os._exit(0)
for child in children:
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print(*children)
"""
"""Exits after its children, for which it does not wait."""


def test_children_that_have_exited_do_not_outlive_the_command(place: Place, tmp_path: Path) -> None:
    """Children that exit with the command are not counted as running, even if their new parent never waits for them."""
    (tmp_path / "fork.py").write_text(FORK)
    prctl = ctypes.CDLL(None).prctl
    assert prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    try:
        done = place.run(f"exec {sys.executable} -S {tmp_path}/fork.py")
    finally:
        prctl(PR_SET_CHILD_SUBREAPER, 0)
    for child in map(int, done.stdout.split()):
        os.waitpid(child, 0)
    _, summary = place.events()
    assert (len(done.stdout.split()), summary["still_running"]) == (5, 0)


def test_as_who_called_sudo(place: Place, tmp_path: Path) -> None:
    """The command has the sudo caller's user, groups and rights, and may regain privileges (by sudo)."""
    values = "while read name value; do case $name in CapEff:|NoNewPrivs:) echo $value; esac; done"
    script = f"id -u; id -g; {values} </proc/self/status"
    user = nettop("run", "--", "sh", "-c", script, env=SUDO)
    assert user.stdout.split() == [str(NOBODY), str(NOBODY), "0" * 16, "0"]
    assert user.returncode == 0


@pytest.mark.parametrize("uid", [NOBODY, 61_234], ids=["nobody", "no account"])
def test_the_environment_is_theirs(uid: int) -> None:
    """Variables that name the user are as `sudo -u` sets them, with the user's home, not root's."""
    sudo = {**os.environ, "SUDO_UID": str(uid), "SUDO_GID": str(uid), "HOME": "/root", "USER": "root"}
    sudo |= {"LOGNAME": "root", "SHELL": "/bin/root", "MAIL": "/var/mail/root"}
    names = ("HOME", "USER", "LOGNAME", "SHELL")
    script = f"import os; print(*map(os.environ.get, {names}), *os.getgroups(), sep='\\n')"
    done = nettop("run", "--", sys.executable, "-S", "-c", script, env=sudo)
    if uid == NOBODY:
        entry = pwd.getpwuid(uid)
        expected = [entry.pw_dir, entry.pw_name, entry.pw_name, entry.pw_shell]
        groups = os.getgrouplist(entry.pw_name, uid)
    else:
        expected, groups = ["/", f"#{uid}", f"#{uid}", "/bin/sh"], [uid]
    assert done.stdout.split() == [*expected, *map(str, groups)]
