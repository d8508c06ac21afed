# SPDX-License-Identifier: Apache-2.0
"""The bytes that monitors attribute to processes, beside the payload that those counted themselves.

Each tool watches the same loads, in a network namespace where only the clients of the loads send traffic; the servers
are at the other end of a veth pair.
"""

import csv
import multiprocessing
import os
import random
import re
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import NETTOP, cpu_while, family, run, running, until
from sockets import own_namespace

from tests.kernel.lab import die_with_parent
from tests.kernel.traffic import receive

FORK = multiprocessing.get_context("fork")
DEVICE, CLIENT, SERVER, PORT = "attribution0", "10.77.0.1", "10.77.0.2", 7000
THREADS = 16
"""Server threads per protocol."""
ANSWER_AFTER_S = 0.02
"""Delay before the server answers, so that connections live as long as over a real network."""
HEAD = struct.Struct("=II")
"""Header of a request: its own length and that of the response."""
PIECE = bytes(1 << 20)
SETTLED_AFTER_S = 1.5
"""nettop attaches its last hooks at the first reading after its loader exits."""
LAST_REFRESH_S = 2.5
"""How long a tool keeps running after the load: each refreshes every second."""

Exchange = Callable[[int, int], None]
"""Sends a request and receives a response, of these lengths."""
Share = list[tuple[float, int, int]]
"""A client's exchanges: the time, in seconds since the start, and the lengths of request and response."""


# --- the two ends ---------------------------------------------------------------------------------------------


def over_tcp(up: int, down: int) -> None:
    """Exchange a request and a response over a new connection."""
    with socket.create_connection((SERVER, PORT)) as made:
        made.sendall(HEAD.pack(up, down) + bytes(up - HEAD.size))
        receive(made, down)


def over_udp(up: int, down: int) -> None:
    """Exchange two datagrams over a new socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.connect((SERVER, PORT))
        made.send(HEAD.pack(up, down) + bytes(up - HEAD.size))
        if len(made.recv(1 << 16)) != down:
            raise RuntimeError("the response does not have the requested length")


def serve(parent: int, ready: Event) -> None:
    """Serve at the other end of the veth pair, in a separate network namespace, until killed."""
    die_with_parent()
    own_namespace()
    ip(f"link add {DEVICE} type veth peer name {DEVICE} netns {parent}")
    ip(f"address add {SERVER}/24 dev {DEVICE}")
    ip(f"link set {DEVICE} up")
    listener = socket.create_server((SERVER, PORT), backlog=100)
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind((SERVER, PORT))
    for _ in range(THREADS):
        threading.Thread(target=serve_tcp, args=(listener,)).start()
        threading.Thread(target=serve_udp, args=(datagrams,)).start()
    ready.set()


def serve_tcp(listener: socket.socket) -> None:
    """Answer connections one by one."""
    while True:
        with listener.accept()[0] as accepted:
            up, down = HEAD.unpack(accepted.recv(HEAD.size, socket.MSG_WAITALL))
            receive(accepted, up - HEAD.size)
            time.sleep(ANSWER_AFTER_S)
            for at in range(0, down, len(PIECE)):
                accepted.sendall(memoryview(PIECE)[: down - at])


def serve_udp(datagrams: socket.socket) -> None:
    """Answer datagrams one by one."""
    while True:
        request, client = datagrams.recvfrom(1 << 16)
        time.sleep(ANSWER_AFTER_S)
        datagrams.sendto(PIECE[: HEAD.unpack_from(request)[1]], client)


def ip(words: str) -> None:
    """Run an `ip` command."""
    run("ip", *words.split())


# --- loads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """A number of exchanges at a rate, with requests and responses of random lengths between two bounds.

    They are divided among `clients` processes; with None each exchange has its own process.
    """

    what: str
    exchange: Exchange
    count: int
    per_s: int
    up: tuple[int, int]
    down: tuple[int, int]
    clients: int | None

    def shares(self) -> list[Share]:
        """Return the exchanges of each client; the result is the same on every call."""
        chance = random.Random(12)
        work = [
            (number / self.per_s, chance.randint(*self.up), chance.randint(*self.down))
            for number in range(self.count)
        ]
        clients = self.clients or self.count
        return [work[client::clients] for client in range(clients)]

    def run(self) -> dict[int, int]:
        """Run the load; return the payload in both directions that each client counted, by PID."""
        counted: SimpleQueue[tuple[int, int]] = FORK.SimpleQueue()
        begin, clients = time.monotonic(), []
        for share in self.shares():
            wait_until(begin + share[0][0])
            clients.append(FORK.Process(target=self.work, args=(share, begin, counted)))
            clients[-1].start()
        for client in clients:
            client.join()
            if client.exitcode:
                raise SystemExit(f"{self.what}: a client failed")
        return dict(counted.get() for _ in clients)

    def work(self, share: Share, begin: float, counted: "SimpleQueue[tuple[int, int]]") -> None:
        """Run one client."""
        total = 0
        for due_s, up, down in share:
            wait_until(begin + due_s)
            self.exchange(up, down)
            total += up + down
        counted.put((os.getpid(), total))


SHORT = (100, 10_000), (10_000, 100_000)
LOADS = (
    Load("one connection, 2 GB", over_tcp, 1, 1, (1000, 1000), (2_000_000_000, 2_000_000_000), 1),
    Load("200 connections/s from 16 processes", over_tcp, 800, 200, *SHORT, 16),
    Load("50 processes/s with one connection each", over_tcp, 200, 50, *SHORT, None),
    Load("500 UDP sockets/s from 16 processes", over_udp, 2000, 500, (30, 60), (60, 1200), 16),
)


def wait_until(when: float) -> None:
    """Sleep until this time (time.monotonic)."""
    time.sleep(max(0.0, when - time.monotonic()))


# --- tools ----------------------------------------------------------------------------------------------------


def captures(_: int, __: Path) -> bool:
    """Return whether a packet socket is open in this namespace."""
    return len(Path("/proc/self/net/packet").read_text().splitlines()) > 1


def has_loaded(pid: int, output: Path) -> bool:
    """Return whether nettop has printed its header and its loader has exited."""
    return output.stat().st_size > 0 and family(pid) == [pid]


def sum_of_nettop(text: str) -> dict[int | None, float]:
    """Sum the per-interval bytes by PID."""
    bytes_of: dict[int | None, float] = {}
    for row in csv.DictReader(text.splitlines()):
        pid = int(row["pid"]) if row["pid"] else None
        bytes_of[pid] = bytes_of.get(pid, 0) + int(row["bytes"] or 0)
    return bytes_of


def last_of_nethogs(text: str) -> dict[int | None, float]:
    """Parse lines of PROGRAM/PID/UID, then cumulative bytes sent and received; PID 0 is unknown."""
    lines = re.findall(r"/(\d+)/\d+\t(\S+)\t(\S+)$", text, re.MULTILINE)
    return {int(pid) or None: float(sent) + float(received) for pid, sent, received in lines}


def watch(
    command: Sequence[str],
    counts: Callable[[int, Path], bool],
    attributed: Callable[[str], dict[int | None, float]],
    loads: Sequence[Load],
) -> Sample:
    """Run a tool during the loads, once it `counts`; return what it attributes of each, and its own CPU share."""
    truths: list[dict[int, int]] = []

    def act() -> None:
        truths.extend(load.run() for load in loads)
        time.sleep(LAST_REFRESH_S)

    with tempfile.NamedTemporaryFile("r") as output:
        with running(*command, out=output.fileno(), err=subprocess.DEVNULL, end_by=signal.SIGKILL) as process:
            until(
                lambda: process.poll() is not None or counts(process.pid, Path(output.name)),
                f"{command[0]} counts",
            )
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: status {process.returncode}")
            time.sleep(SETTLED_AFTER_S)
            cpu = cpu_while(process.pid, act)
        actual = attributed(Path(output.name).read_text())
    shares = [100 * sum(actual.get(pid, 0) for pid in truth) / sum(truth.values()) for truth in truths]
    return dict(zip((load.what for load in loads), shares, strict=True)) | {"CPU": 100 * cpu}


@benchmark(
    "attribution", "Bytes attributed to their processes",
    {load.what: "% of the payload" for load in LOADS} | {"CPU": "% of a CPU"},
    rounds=1, peers={"nethogs": "nethogs"}, more_is_better=tuple(load.what for load in LOADS),
    targets=tuple(Target(100, load.what, at_least=True) for load in LOADS),
)  # fmt: skip
def attribution(scale: Scale) -> Iterator[Turns]:
    """Connections and UDP sockets that live 20 ms, and one large connection. Tools that capture packets also count
    headers, so more than 100 % is no error. CPU is the tool's own: hooks and captures also run on others' time.
    """
    own_namespace()
    connect_servers()
    loads = [replace(load, count=max(1, load.count // 8)) for load in LOADS] if scale.quick else LOADS
    inode = os.stat("/proc/self/ns/net").st_ino
    nettop = (
        NETTOP,
        "--table",
        "-d",
        "--deltas",
        "--format",
        "csv",
        "--filter",
        f"netns={inode}",
        "--columns",
        "pid,bytes",
    )
    nethogs = ("nethogs", "-t", "-C", "-v", "2", "-d", "1", DEVICE)
    yield {
        OURS: lambda: watch(nettop, has_loaded, sum_of_nettop, loads),
        "nethogs": lambda: watch(nethogs, captures, last_of_nethogs, loads),
    }


def connect_servers() -> None:
    """Start the servers, and assign the address of DEVICE in this namespace."""
    ready = FORK.Event()
    FORK.Process(target=serve, args=(os.getpid(), ready), daemon=True).start()
    until(ready.is_set, "the servers are ready")
    ip(f"address add {CLIENT}/24 dev {DEVICE}")
    ip(f"link set {DEVICE} up")
