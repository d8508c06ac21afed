# SPDX-License-Identifier: Apache-2.0
"""Compare the bytes that monitors attribute: `sudo .venv/bin/python bench/attribution.py [--quick]`.

Each tool in turn watches the same loads, in a network namespace of the bench's own, where only the clients of the load
send traffic; the servers are at the other end of a veth pair. The truth is the payload that the clients counted
themselves. A tool is credited with the bytes it attributes to the PIDs of those clients; iftop, which knows no
processes, with the bytes it attributes to the server's address; nettop's flows with all bytes of the device.
"""

import csv
import multiprocessing
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

from measure import QUICK, Figure, arguments, judge
from programs import NETTOP, cpu_seconds, cpu_while, family, run, running, until
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
"""Header of a request: its own length and that of the answer."""
PIECE = bytes(1 << 20)
SETTLED_AFTER_S = 1.5
"""nettop attaches its last hooks at the first reading after its loader exits."""
LAST_REFRESH_S = 2.5
"""How long a tool keeps running after the load: each refreshes every second."""

Exchange = Callable[[int, int], None]
"""Sends a request and receives an answer, of these lengths."""
Share = list[tuple[float, int, int]]
"""A client's exchanges: the time, in seconds since the start, and the lengths of request and answer."""


# --- the two ends ---------------------------------------------------------------------------------------------


def over_tcp(up: int, down: int) -> None:
    """Exchange a request and an answer over a new connection."""
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
            raise RuntimeError("the answer does not have the requested length")


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
    """A number of exchanges at a rate, with requests and answers of random lengths between two bounds.

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
    Load("one connection, 4 GB", over_tcp, 1, 1, (1000, 1000), (4_000_000_000, 4_000_000_000), 1),
    Load("200 connections/s from 16 processes", over_tcp, 1600, 200, *SHORT, 16),
    Load("50 processes/s with one connection each", over_tcp, 400, 50, *SHORT, None),
    Load("500 UDP sockets/s from 16 processes", over_udp, 4000, 500, (30, 60), (60, 1200), 16),
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


@dataclass(frozen=True)
class Tool:
    """A monitor: its command, its output parser, and the input that makes it print and exit.

    `attributed` returns bytes by PID, with None for those without a process. `counts` returns whether it counts yet. A
    tool that is `without_processes` is credited with all its bytes; the text says which these are.
    """

    command: tuple[str, ...]
    attributed: Callable[[str], dict[int | None, float]]
    counts: Callable[[int, Path], bool] = captures
    without_processes: str = ""
    last_input: bytes = b""


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


def total_of_iftop(text: str) -> dict[int | None, float]:
    """Return the cumulative sum, which iftop prints with three digits."""
    totals = re.findall(r"^Cumulative .* ([\d.]+)([KMGT]?)B$", text, re.MULTILINE)
    number, unit = totals[-1]
    return {None: float(number) * 1024 ** " KMGT".index(unit or " ")}


NETTOP_ROWS = (NETTOP, "--table", "-d", "--deltas", "--format", "csv")


def tools() -> list[Tool]:
    """Return the tools to compare; each watches only this namespace, or its device."""
    rows = ("--filter", f"netns={os.stat('/proc/self/ns/net').st_ino}", "--columns", "pid,bytes")
    flows = ("--view", "bandwidth.flows", "--columns", "pid,bytes")
    plain = ("-t", "-n", "-N", "-B", "-i", DEVICE, "-f", f"host {SERVER}")
    return [
        Tool((*NETTOP_ROWS, *rows), sum_of_nettop, has_loaded),
        Tool((*NETTOP_ROWS, *flows), sum_of_nettop, has_loaded, "all flows"),
        Tool(("nethogs", "-t", "-C", "-v", "2", "-d", "1", DEVICE), last_of_nethogs),
        Tool(("iftop", *plain), total_of_iftop, without_processes="of the host", last_input=b"p\nq\n"),
    ]


def watch(tool: Tool, load: Load) -> Figure:
    """Run a tool during a load. Only output until shortly after the load counts."""
    truth: dict[int, int] = {}

    def act() -> None:
        truth.update(load.run())
        time.sleep(LAST_REFRESH_S)

    with (
        tempfile.NamedTemporaryFile("r") as output,
        running(
            *tool.command, out=output.fileno(), err=subprocess.DEVNULL, source=subprocess.PIPE
        ) as process,
    ):
        until(lambda: tool.counts(process.pid, Path(output.name)), f"{tool.command[0]} counts")
        time.sleep(SETTLED_AFTER_S)
        start_s, cpu = cpu_seconds(process.pid), cpu_while(process.pid, act)
        if not tool.last_input:
            process.kill()
        process.communicate(tool.last_input)
        actual = tool.attributed(Path(output.name).read_text())
    attributed = sum(actual.get(pid, 0) for pid in (actual if tool.without_processes else truth))
    name = Path(tool.command[0]).name + (f" ({tool.without_processes})" if tool.without_processes else "")
    what = f"{name:<22} {100 * cpu:>6.1f} % CPU {start_s:>6.2f} s to start"
    return Figure(what, attributed / sum(truth.values()), "×")


# --- the report -----------------------------------------------------------------------------------------------


def connect_servers() -> None:
    """Start the servers, and assign the address of DEVICE in this namespace."""
    ready = FORK.Event()
    FORK.Process(target=serve, args=(os.getpid(), ready), daemon=True).start()
    until(ready.is_set, "the servers are ready")
    ip(f"address add {CLIENT}/24 dev {DEVICE}")
    ip(f"link set {DEVICE} up")


ABOUT = """\
bytes ÷ truth: bytes attributed to the clients' processes, divided by the payload that they counted.
Tools that capture packets also count headers, so a ratio above 1 is no error.
CPU: the tool's own share of one CPU; its hooks or captures also run on other processes' time.
bandwhich is left out: its text output has 5 s averages and no PIDs."""


def main() -> int:
    """Run each load with each tool."""
    options = arguments(__doc__, quick=QUICK)
    own_namespace()
    connect_servers()
    print(ABOUT)
    installed = [tool for tool in tools() if shutil.which(tool.command[0])]
    loads = [replace(load, count=max(1, load.count // 8)) for load in LOADS] if options.quick else LOADS
    return judge((f"{load.what}: bytes ÷ truth", (watch(tool, load) for tool in installed)) for load in loads)


if __name__ == "__main__":
    sys.exit(main())
