# SPDX-License-Identifier: Apache-2.0
"""The bytes that monitors attribute, beside each other: `sudo .venv/bin/python bench/attribution.py [--quick]`.

Each tool watches the same loads, one tool after the other, in a network namespace of the bench's own, where the only
traffic is that of the load's clients; servers are at the other end of a veth pair. The truth is the payload that the
clients counted themselves. A tool is credited with what it gives to the PIDs of those clients; iftop knows no
processes, and is credited with all that it gives to the server's address.
"""

import argparse
import contextlib
import csv
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Event
from pathlib import Path

from measure import NETTOP, cpu_seconds, family
from sockets import PR_SET_PDEATHSIG, libc, own_namespace

FORK = multiprocessing.get_context("fork")
DEVICE, CLIENT, SERVER, PORT = "attribution0", "10.77.0.1", "10.77.0.2", 7000
THREADS = 16
"""Of the server, for each protocol."""
ANSWER_AFTER_S = 0.02
"""The server's own time for an answer, so that a connection lives as long as one over a network would."""
HEAD = struct.Struct("=II")
"""What a request begins with: its own length and that of the answer."""
PIECE = bytes(1 << 20)
READY_WITHIN_S = 15.0
SETTLED_AFTER_S = 1.5
"""nettop attaches its last hooks with the reading after its loader has ended."""
LAST_REFRESH_S = 2.5
"""How long a tool goes on after the load: each shows what it has every second."""

Exchange = Callable[[int, int], None]
"""Sends a request of so many bytes, and receives an answer of so many."""
Share = list[tuple[float, int, int]]
"""A client's exchanges: when, in seconds since the beginning, and the lengths of request and answer."""


# --- the two ends ---------------------------------------------------------------------------------------------


def over_tcp(up: int, down: int) -> None:
    """An exchange in a connection of its own."""
    with socket.create_connection((SERVER, PORT)) as made:
        made.sendall(HEAD.pack(up, down) + bytes(up - HEAD.size))
        receive(made, down)


def over_udp(up: int, down: int) -> None:
    """An exchange of two datagrams over a socket of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(5)
        made.connect((SERVER, PORT))
        made.send(HEAD.pack(up, down) + bytes(up - HEAD.size))
        if len(made.recv(1 << 16)) != down:
            raise RuntimeError("the answer is not of the length that the request names")


def receive(held: socket.socket, amount: int) -> None:
    """Reads exactly so many bytes."""
    while amount:
        read = len(held.recv(min(amount, len(PIECE))))
        if not read:
            raise RuntimeError(f"the peer closed {amount} bytes early")
        amount -= read


def serve(parent: int, ready: Event) -> None:
    """The other end of the veth pair, in a network namespace of its own, until this process is killed."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
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
    """Answers one connection after the other."""
    while True:
        with listener.accept()[0] as accepted:
            up, down = HEAD.unpack(accepted.recv(HEAD.size, socket.MSG_WAITALL))
            receive(accepted, up - HEAD.size)
            time.sleep(ANSWER_AFTER_S)
            for at in range(0, down, len(PIECE)):
                accepted.sendall(memoryview(PIECE)[: down - at])


def serve_udp(datagrams: socket.socket) -> None:
    """Answers one datagram after the other."""
    while True:
        request, client = datagrams.recvfrom(1 << 16)
        time.sleep(ANSWER_AFTER_S)
        datagrams.sendto(PIECE[: HEAD.unpack_from(request)[1]], client)


def ip(words: str) -> str:
    """What a command of iproute2 prints."""
    return subprocess.run(["ip", *words.split()], check=True, capture_output=True, text=True).stdout


# --- loads ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """So many exchanges, at a rate, with requests and answers of random lengths between two bounds.

    They are shared out among that many client processes; None: each is made by a process of its own.
    """

    what: str
    exchange: Exchange
    count: int
    per_s: int
    up: tuple[int, int]
    down: tuple[int, int]
    clients: int | None

    def shares(self) -> list[Share]:
        """What each client does; always the same."""
        chance = random.Random(12)
        work = [
            (number / self.per_s, chance.randint(*self.up), chance.randint(*self.down))
            for number in range(self.count)
        ]
        clients = self.clients or self.count
        return [work[client::clients] for client in range(clients)]

    def run(self) -> dict[int, int]:
        """The payload of each client by its PID, both directions, as the client counted it."""
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
        """A client's whole life."""
        total = 0
        for due_s, up, down in share:
            wait_until(begin + due_s)
            self.exchange(up, down)
            total += up + down
        counted.put((os.getpid(), total))


SHORT = (100, 10_000), (10_000, 100_000)
LOADS = (
    Load("one connection, 4 GB", over_tcp, 1, 1, (1000, 1000), (4_000_000_000, 4_000_000_000), 1),
    Load("200 connections a second of 16 processes", over_tcp, 1600, 200, *SHORT, 16),
    Load("50 processes a second, each one connection", over_tcp, 400, 50, *SHORT, None),
    Load("500 UDP sockets a second of 16 processes", over_udp, 4000, 500, (30, 60), (60, 1200), 16),
)


def wait_until(when: float) -> None:
    """Sleeps until then (time.monotonic)."""
    time.sleep(max(0.0, when - time.monotonic()))


# --- tools ----------------------------------------------------------------------------------------------------


def captures(_: int, __: Path) -> bool:
    """Whether a packet socket is open in this namespace."""
    return len(Path("/proc/self/net/packet").read_text().splitlines()) > 1


def has_loaded(pid: int, output: Path) -> bool:
    """Whether nettop has printed its header, and its loader has ended."""
    return output.stat().st_size > 0 and family(pid) == [pid]


@dataclass(frozen=True)
class Tool:
    """A monitor: its command, how to read its output, and the input that makes it print and end.

    `attributed` gives bytes by PID, and under None those of no process. `counts` says whether it has begun to count.
    """

    command: tuple[str, ...]
    attributed: Callable[[str], dict[int | None, float]]
    counts: Callable[[int, Path], bool] = captures
    knows_processes: bool = True
    last_input: bytes = b""


def sum_of_nettop(text: str) -> dict[int | None, float]:
    """The sum of what each interval added."""
    bytes_of: dict[int | None, float] = {}
    for row in csv.DictReader(text.splitlines()):
        pid = int(row["pid"]) if row["pid"] else None
        bytes_of[pid] = bytes_of.get(pid, 0) + int(row["bytes"] or 0)
    return bytes_of


def last_of_nethogs(text: str) -> dict[int | None, float]:
    """PROGRAM/PID/UID, then bytes sent and received since its start; PID 0 is unknown."""
    lines = re.findall(r"/(\d+)/\d+\t(\S+)\t(\S+)$", text, re.MULTILINE)
    return {int(pid) or None: float(sent) + float(received) for pid, sent, received in lines}


def total_of_iftop(text: str) -> dict[int | None, float]:
    """The cumulative sum, with three digits."""
    totals = re.findall(r"^Cumulative .* ([\d.]+)([KMGT]?)B$", text, re.MULTILINE)
    number, unit = totals[-1]
    return {None: float(number) * 1024 ** " KMGT".index(unit or " ")}


def tools() -> list[Tool]:
    """The tools that are compared: each looks at nothing but this namespace, or its device."""
    rows = ("--filter", f"netns={os.stat('/proc/self/ns/net').st_ino}", "--columns", "pid,bytes")
    plain = ("-t", "-n", "-N", "-B", "-i", DEVICE, "-f", f"host {SERVER}")
    return [
        Tool((NETTOP, "--table", "-d", "--deltas", "--format", "csv", *rows), sum_of_nettop, has_loaded),
        Tool(("nethogs", "-t", "-C", "-v", "2", "-d", "1", DEVICE), last_of_nethogs),
        Tool(("iftop", *plain), total_of_iftop, knows_processes=False, last_input=b"p\nq\n"),
    ]


@dataclass(frozen=True)
class Watched:
    """What a tool attributed ÷ the truth; its CPU seconds before the load, its share of a CPU since, its losses."""

    share: float
    start_s: float
    cpu: float
    losses: list[str]


def watch(tool: Tool, load: Load) -> Watched:
    """Runs a tool while a load runs; what it has shown soon after the load counts, and what it would show later not."""
    with (
        tempfile.NamedTemporaryFile("r") as output,
        open(output.name, "wb") as written,
        subprocess.Popen(
            tool.command, stdin=subprocess.PIPE, stdout=written, stderr=subprocess.PIPE
        ) as process,
        contextlib.ExitStack() as end,
    ):
        end.callback(process.kill)
        until(lambda: tool.counts(process.pid, Path(output.name)), f"{tool.command[0]} counts")
        time.sleep(SETTLED_AFTER_S)
        start_s, begun = cpu_seconds(process.pid), time.monotonic()
        truth = load.run()
        time.sleep(LAST_REFRESH_S)
        cpu = (cpu_seconds(process.pid) - start_s) / (time.monotonic() - begun)
        if not tool.last_input:
            process.kill()
        remarks = process.communicate(tool.last_input)[1].decode().splitlines()
        actual = tool.attributed(output.read())
    attributed = sum(actual.get(pid, 0) for pid in (truth if tool.knows_processes else [None]))
    losses = [remark for remark in remarks if "lost" in remark]
    return Watched(attributed / sum(truth.values()), start_s, cpu, losses)


def until(condition: Callable[[], object], what: str) -> None:
    """Waits until a condition is true."""
    end = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"not within {READY_WITHIN_S:g} s: {what}")
        time.sleep(0.01)


# --- the report -----------------------------------------------------------------------------------------------


def connect_servers() -> None:
    """Starts the servers, and gives DEVICE of this namespace its address."""
    ready = FORK.Event()
    FORK.Process(target=serve, args=(os.getpid(), ready), daemon=True).start()
    until(ready.is_set, "the servers are ready")
    ip(f"address add {CLIENT}/24 dev {DEVICE}")
    ip(f"link set {DEVICE} up")


def compare(load: Load, compared: Sequence[Tool]) -> None:
    """Prints one load, a line for each tool."""
    print(f"\n{load.what:<48}{'bytes ÷ truth':>14}{'CPU':>10}{'to start':>12}")
    for tool in compared:
        name = Path(tool.command[0]).name + ("" if tool.knows_processes else " (of the host)")
        if not shutil.which(tool.command[0]):
            print(f"  {name:<46} not installed")
            continue
        seen = watch(tool, load)
        print(f"  {name:<46}{seen.share:>14.4f}{100 * seen.cpu:>8.1f} %{seen.start_s:>10.2f} s", flush=True)


def main() -> None:
    """Runs each load beside each tool."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="short: proves that the bench works")
    quick = parser.parse_args().quick
    own_namespace()
    connect_servers()
    print(
        "bytes ÷ truth: what a tool attributes to the clients' processes, of the payload that they counted."
    )
    print("What captures packets counts their headers too, so that more than 1 is no error.")
    print("CPU: the tool's own, of one CPU; its hooks or captures also run in the time of others.")
    print("bandwhich is left out: as text it prints averages over 5 s, and no PIDs.")
    for load in LOADS:
        compare(replace(load, count=max(1, load.count // 8)) if quick else load, tools())


if __name__ == "__main__":
    main()
