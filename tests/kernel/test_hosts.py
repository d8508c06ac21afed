# SPDX-License-Identifier: Apache-2.0
"""`nettop --host` with real ssh: hosts are network namespaces, each with its own sshd."""

import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from . import traffic
from .command import NETTOP, Row, Running, living
from .lab import Lab, Namespace, process_state, until
from .slow_path import ADDRESSES, SlowPath, answer_late, ask_again, finish
from .terminal import Terminal
from .test_both_ends import MS, TUN, connect, durations

pytestmark = pytest.mark.kernel

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
NAMES = ("web", "db", "cache")
COLUMNS = "host,id,process,namespace,netns,local_port,bytes_sent,bytes_received"
EXCHANGES = 3
"""Exchanges of a connection in a second."""
SSHD_CONFIG = """
ListenAddress {address}
HostKey {folder}/{name}-key
AuthorizedKeysFile {folder}/user-key.pub
StrictModes no
UsePAM no
PidFile none
"""
SSH_CONFIG = """
Host {name}
  HostName {address}
  User root
  IdentityFile {folder}/user-key
  UserKnownHostsFile {folder}/known-hosts
  StrictHostKeyChecking accept-new
"""


class SshHost:
    """A host that is reached through ssh: a namespace, joined to the one of the client, and its sshd."""

    def __init__(self, name: str, namespace: Namespace, address: str, folder: Path) -> None:
        self.name, self.namespace = name, namespace
        self._folder = folder
        keygen(folder / f"{name}-key")
        config = SSHD_CONFIG.format(address=address, folder=folder, name=name)
        (folder / f"{name}-sshd").write_text(config)
        self._sshd: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start its sshd, and wait until it listens."""
        words = ["ip", "netns", "exec", self.namespace.name, str(SSHD), "-D", "-e", "-f"]
        with (self._folder / f"{self.name}-log").open("wb") as log:
            self._sshd = subprocess.Popen(
                [*words, str(self._folder / f"{self.name}-sshd")], stderr=log, start_new_session=True
            )
        until(lambda: ":22" in self.namespace.run("ss", "-tlnH"), f"the sshd of {self.name} listens")

    def kill(self) -> None:
        """Kill its sshd with every session, as if the host had died."""
        assert self._sshd is not None
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._sshd.kill()
        self._sshd.wait()

    def sessions(self) -> list[int]:
        """Return the processes of ssh sessions in its namespace: those of sshd and of nettop."""
        assert self._sshd is not None
        pids = map(int, self.namespace.run("ip", "netns", "pids", self.namespace.name).split())
        return [pid for pid in pids if pid != self._sshd.pid and is_of_session(pid)]

    def recorders(self) -> list[int]:
        """Return the processes that record in its namespace."""
        return [pid for pid in self.sessions() if b"record" in command_line(pid).split(b"\0")]


def command_line(pid: int) -> bytes:
    """Return the words of a process; nothing once it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_of_session(pid: int) -> bool:
    """Return whether a process is of sshd, or of nettop and what it starts."""
    words = command_line(pid)
    return process_state(pid) != "Z" and (b"sshd" in words or b"nettop" in words)


def keygen(path: Path) -> None:
    """Make a key without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)


class Fleet:
    """Hosts by name, and the namespace and environment of the one who looks at them."""

    def __init__(self, lab: Lab, folder: Path, namespaces: Mapping[str, Namespace]) -> None:
        self.client = lab.namespace()
        self.folder = folder
        keygen(folder / "user-key")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # without it sshd does not start
        self.hosts = {
            name: self._host(namespace, name, number)
            for number, (name, namespace) in enumerate(namespaces.items(), 1)
        }
        self.environment = self._with_config()

    def _host(self, namespace: Namespace, name: str, number: int) -> SshHost:
        device, network = f"to{number}", f"10.77.{number}"
        self.client.ip("link", "add", device, "type", "veth", "peer", "name", "wire", "netns", namespace.name)
        for end, wire, address in ((self.client, device, 1), (namespace, "wire", 2)):
            end.ip("addr", "add", f"{network}.{address}/24", "dev", wire)
            end.ip("link", "set", wire, "up")
        with (self.folder / "config").open("a") as config:
            config.write(SSH_CONFIG.format(name=name, address=f"{network}.2", folder=self.folder))
        return SshHost(name, namespace, f"{network}.2", self.folder)

    def _with_config(self) -> dict[str, str]:
        """Return an environment whose ssh uses the configuration of the test."""
        (self.folder / "bin").mkdir()
        stub = self.folder / "bin" / "ssh"
        stub.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/config "$@"\n')
        stub.chmod(0o755)
        return {**os.environ, "PATH": f"{stub.parent}:{os.environ['PATH']}"}

    def shown(self, *options: str, hosts: tuple[str, ...] = NAMES, command: str = NETTOP) -> Running:
        """Return nettop that shows these hosts as text."""
        words = ("--table", "--format", "jsonl", *self._named(hosts, command), *options)
        return Running(*words, around=self._around, env=self.environment)

    def on_screen(self, *options: str) -> Terminal:
        """Return the screens of all hosts."""
        path = f"PATH={self.environment['PATH']}"
        return Terminal(*self._named(self.hosts, NETTOP), *options, around=(*self._around, "env", path))

    @property
    def _around(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.client.name)

    @staticmethod
    def _named(hosts: Iterable[str], command: str) -> list[str]:
        return [*(word for name in hosts for word in ("--host", name)), "--host-command", command]

    def processes(self) -> list[int]:
        """Return what an ssh session has left on any host."""
        return [pid for host in self.hosts.values() for pid in host.sessions()]


@pytest.fixture
def fleet(lab: Lab, tmp_path: Path) -> Iterator[Fleet]:
    """Yield three hosts with an sshd each."""
    with running_fleet(lab, tmp_path, {name: lab.namespace() for name in NAMES}) as made:
        yield made


@contextlib.contextmanager
def running_fleet(lab: Lab, folder: Path, namespaces: Mapping[str, Namespace]) -> Iterator[Fleet]:
    """Yield these namespaces as hosts with an sshd each."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("sshd is not installed (scripts/install-deps.sh --kernels)")
    made = Fleet(lab, folder, namespaces)
    try:
        yield made
    finally:
        for host in made.hosts.values():
            host.kill()


def latest(running: Running) -> list[Row]:
    """Return the rows of the last complete refresh, none before the first one."""
    refreshes = running.refreshes()
    return refreshes[-1] if refreshes else []


def hosts_in(rows: list[Row]) -> set[Any]:
    """Return the hosts of these rows."""
    return {row["host"] for row in rows}


def until_shown(running: Running, names: set[str]) -> None:
    """Wait until rows of these hosts are shown, and of no other; they may have to compile."""
    has_ended = running.process.poll
    until(lambda: hosts_in(latest(running)) == names or has_ended() is not None, f"rows of {names}", 90)
    assert has_ended() is None, running.errors()


def test_three_hosts(lab: Lab, fleet: Fleet) -> None:
    """Each row has its host, and each host its own connections, with exact bytes; nothing is left behind."""
    sent = {name: 70_001 + 1000 * number for number, name in enumerate(NAMES)}
    for name, count in sent.items():
        worker = lab.worker(fleet.hosts[name].namespace, f"talk{name}")
        port = worker.call(traffic.listen, "listener", "127.0.0.1")
        worker.call(traffic.connect, "caller", traffic.Call(("127.0.0.1", port)))
        worker.call(send_all, count)
    words = ("--columns", COLUMNS, "--filter", "process~talk bytes_sent>0")
    with fleet.shown(*words, "--view", "connections") as running:
        until_shown(running, set(NAMES))
        own = [row for row in latest(running) if row["namespace"] == "own"]
        assert {row["host"]: row["netns"] for row in own} == {
            name: host.namespace.inode for name, host in fleet.hosts.items()
        }
        assert {row["host"]: (row["process"], row["bytes_sent"]) for row in own} == {
            name: (f"talk{name}", count) for name, count in sent.items()
        }
        assert len(own) == len(NAMES)
        assert all(host.recorders() for host in fleet.hosts.values())
        assert running.end(signal.SIGINT) == 0, running.errors()
        until(lambda: not fleet.processes(), "every session has ended", 10)
    assert not [
        words for _, _, words in living() if str(fleet.folder).encode() in words and b"ssh\0" in words
    ]


@pytest.mark.skipif(not os.path.exists(TUN), reason=f"needs {TUN}")
def test_both_ends_of_a_connection(lab: Lab, tmp_path: Path) -> None:
    """The details of a connection have the times of client, path and server, as read through ssh: those of the last
    interval, near what the programs measured all the time (test_both_ends.py compares them exactly)."""
    path = SlowPath(lab, 0.005)
    client, server = lab.worker(path.near, "askd"), lab.worker(path.far, "answerd")
    port = connect(client, server, ADDRESSES[4][1])
    server.call(answer_late, 0, 0.008, 0.016)
    client.call(ask_again, 0, 0.024)
    with (
        running_fleet(lab, tmp_path, {"web": path.near, "db": path.far}) as fleet,
        fleet.on_screen("--filter", f"host=web namespace=own remote_port={port}") as terminal,
    ):
        terminal.shows(b"askd")
        terminal.type(b"7", b"answerd")
        terminal.type(b"1", b"askd")
        terminal.type(b"\x1b[C", b"asks again")
        facts = dict(re.findall(r"^\W*(REQUEST|PATH|SERVER|CLIENT) +(.+)$", terminal.screen(), re.MULTILINE))
        terminal.type(b"q")
        assert terminal.wait() == 0
    assert re.search("in answerd [0-9]+ on (web|db):", facts["SERVER"]), (
        facts
    )  # on one machine, each sees both ends
    taken = client.call(finish) | server.call(finish) | path.forwarder.call(finish)
    shown = {name: durations(text) for name, text in facts.items()}
    expected = {
        "REQUEST": [taken["response"]],
        "PATH": [taken["there"] + taken["back"]],
        "SERVER": [taken["queue"] + taken["service"], taken["queue"], taken["service"]],
        "CLIENT": [taken["client"]],
    }
    for name, times in expected.items():
        assert shown[name] == pytest.approx(times, rel=0.1, abs=2 * MS), (shown, expected)


def send_all(memory: traffic.Memory, count: int) -> None:
    """Send bytes over the worker's connection."""
    memory["caller"].sendall(b"n" * count)


def test_a_host_dies_and_comes_back(fleet: Fleet) -> None:
    """A finding names it, while the others go on; it is shown again once it is back."""
    words = ("--view", "connections", "--all")
    with fleet.shown(*words) as running, fleet.shown("--view", "findings") as findings:
        until_shown(running, set(NAMES))
        fleet.hosts["db"].kill()
        until_shown(running, {"web", "cache"})
        lost = until(lambda: lost_in(latest(findings)), "a finding", 60)
        assert hosts_in(lost) == {"db"}
        count = len(running.refreshes())
        until(lambda: len(running.refreshes()) > count + 1, "the others go on")
        until_shown(running, {"web", "cache"})
        fleet.hosts["db"].start()
        until_shown(running, set(NAMES))


def lost_in(rows: list[Row]) -> list[Row]:
    """Return the findings about hosts without readings."""
    return [row for row in rows if row["kind"] == "host lost"]


def talk(memory: traffic.Memory, pairs: int) -> None:
    """Open connections, and exchange a few messages a second over each until killed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=pairs)
    ends = []
    for _ in range(pairs):
        caller = socket.create_connection(listener.getsockname())
        ends.append((caller, listener.accept()[0]))
    chance, content = random.Random(1), bytes(2000)
    pause_s = 1 / (pairs * EXCHANGES)
    while True:
        for caller, answerer in (chance.choice(ends) for _ in range(20)):
            caller.sendall(content[: chance.randrange(50, 1500)])
            answerer.recv(2000)
            answerer.sendall(content[: chance.randrange(50, 1500)])
            caller.recv(2000)
        select.select([], [], [], 20 * pause_s)
