# SPDX-License-Identifier: Apache-2.0
"""The speed and memory of nettop serve: `sudo .venv/bin/python bench/serve.py [PART …] [--quick]`.

Clients ask a server with all lenses, over loopback, while processes hold many connections open. node_exporter (Debian:
prometheus-node-exporter) and ss stand beside it in the same run. The exit code is 1 if a budget is missed.
"""

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from measure import NETTOP, Figure, cpu_seconds, report, resident_mb, run
from sockets import connections, own_namespace

HOST = "127.0.0.1"
PORT, PEER_PORT = 9471, 9100
READY_WITHIN_S = 60.0
DESCRIPTORS = 20_000
"""What a process that holds connections needs."""
PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
METRICS, HEALTH = "/metrics", "/health"
STREAM = "/api/v1/stream?view=connections&view=bandwidth&view=latency"
NODE_EXPORTER = "prometheus-node-exporter"
SS = ("ss", "-tinpH", "-O")

SCRAPE_MS, SCRAPE_MB = 50, 1.0
ALL_ROWS_MS = 300
GROWTH_MB = 5.0
SLOW_P99_MS = 50
WARM_UP = 200
"""Scrapes before memory is measured, spread over the time of a part."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    rows: int
    scrapes: int
    """To see whether memory grows."""
    seconds: int
    """For the parts that last."""
    clients: int
    """Streams that never read."""
    burst: int
    """Requests, over a tenth as many connections."""
    slow: int
    """Connections that send nothing, or half a request."""


# --- servers and clients ----------------------------------------------------------------------------------------


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int = PORT, accepts: str = "*/*") -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=READY_WITHIN_S)
        self._headers = {"Accept": accepts}

    def get(self, path: str) -> bytes:
        """The body of the answer, which must be 200."""
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:500].decode(errors='replace')}")
        return body

    def measured(self, path: str) -> tuple[float, int]:
        """Milliseconds until the answer is there, and its bytes."""
        start = time.perf_counter()
        size = len(self.get(path))
        return (time.perf_counter() - start) * 1e3, size

    def rows(self, path: str) -> list[dict[str, Any]]:
        """The rows of a table."""
        return list(json.loads(self.get(path))["rows"])


@contextlib.contextmanager
def started(name: str, command: Sequence[str], is_ready: Callable[[str], bool]) -> Iterator[tuple[int, Path]]:
    """A server: its PID, and the file of what it says. It has to be ready in time, and to end on request."""
    with tempfile.NamedTemporaryFile("w+", prefix=f"bench-{name}") as said:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            end = time.monotonic() + READY_WITHIN_S
            while not is_ready(text := Path(said.name).read_text()):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"{name} does not serve: {text.strip()}")
                time.sleep(0.05)
            yield process.pid, Path(said.name)
        finally:
            process.terminate()
            try:
                status = process.wait(READY_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                status = -signal.SIGKILL
        if status not in (0, -signal.SIGTERM):
            print(f"    {name} ended with status {status}")


@contextlib.contextmanager
def serving(*options: str) -> Iterator[int]:
    """`nettop serve` with all lenses; its PID. Whatever it reports is printed."""
    command = [NETTOP, "serve", "--listen", f"{HOST}:{PORT}", *options]
    with started("nettop", command, lambda text: "serving at" in text) as (pid, said):
        yield pid
        for line in said.read_text().splitlines():
            if "serving at" not in line:
                print(f"    {line}")


@contextlib.contextmanager
def serving_rows(rows: int) -> Iterator[int]:
    """The same, as soon as it has all these connections, and rates of them."""
    with serving() as pid:
        wait_until(lambda: settled(Client(), rows), f"a reading of {rows:,} connections")
        yield pid


def settled(client: Client, rows: int) -> bool:
    """Whether the connections have been read, and more than once."""
    document = json.loads(client.get("/api/v1/connections?limit=1"))
    return document["total"] >= rows and document["interval_s"] is not None


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition; exit the bench if it does not hold in time."""
    end = time.monotonic() + READY_WITHIN_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {READY_WITHIN_S:g} s")
        time.sleep(0.1)


@contextlib.contextmanager
def node_exporter() -> Iterator[int | None]:
    """node_exporter; its PID, or None where it is not installed."""

    def answers(_said: str) -> bool:
        with contextlib.suppress(ConnectionError):
            return bool(Client(PEER_PORT).get(METRICS))
        return False

    if shutil.which(NODE_EXPORTER) is None:
        print(f"\n{NODE_EXPORTER} is not installed: nothing stands beside the scrapes")
        yield None
        return
    command = [NODE_EXPORTER, f"--web.listen-address={HOST}:{PEER_PORT}", "--log.level=error"]
    with started(NODE_EXPORTER, command, answers) as (pid, _):
        yield pid


def handle_signals() -> None:
    """Have Ctrl-C and SIGTERM end what was started. Forked processes that hold connections die with this one."""

    def handle(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)

    handle(signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: handle(signal.SIG_IGN))


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def own_cost(client: Client) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What nettop says of its own cost, by kind, name and lens."""
    return {
        (row["kind"], row["name"], row["lens"] or ""): row for row in client.rows("/api/v1/self?all=true")
    }


def late(client: Client) -> int:
    """How many readings were skipped since the start."""
    return int(own_cost(client)["total", "nettop", ""]["late"])


# --- parts ------------------------------------------------------------------------------------------------------


def scrapes(scale: Scale) -> list[Figure]:
    """GET /metrics, as Prometheus asks for it; in turns with node_exporter."""
    with serving_rows(scale.rows), node_exporter() as peer:
        clients = {
            "OpenMetrics": Client(accepts=PROMETHEUS_ACCEPTS),
            "text": Client(accepts="text/plain"),
            **({"node_exporter": Client(PEER_PORT, PROMETHEUS_ACCEPTS)} if peer else {}),
        }
        taken = in_turns({name: lambda c=each: c.measured(METRICS) for name, each in clients.items()}, 50)  # type: ignore[misc]
    figures = []
    for name, answers in taken.items():
        times, sizes = zip(*answers, strict=True)
        is_ours = name != "node_exporter"
        figures += [
            Figure(f"{name}: median", statistics.median(times), "ms", SCRAPE_MS if is_ours else None),
            Figure(f"{name}: 99th percentile", percentile(times, 99), "ms"),
            Figure(f"{name}: size", max(sizes) / 1e6, "MB", SCRAPE_MB if is_ours else None),
        ]
    return figures


def tables(scale: Scale) -> list[Figure]:
    """GET /api/v1/connections, all rows and columns of text; in turns with ss."""
    path = all_rows(scale)
    with serving_rows(scale.rows):
        client = Client()
        listed = json.loads(client.get(path))["shown"]
        taken = in_turns(
            {
                "JSON": lambda: client.measured(path),
                "CSV": lambda: client.measured(f"{path}&format=csv"),
                " ".join(SS): measured_ss,
            },
            10,
        )
    figures = [Figure("rows", listed, "", scale.rows, at_least=True)]
    for name, answers in taken.items():
        times, sizes = zip(*answers, strict=True)
        budget = ALL_ROWS_MS if name == "JSON" else None
        figures += [
            Figure(f"{name}: median", statistics.median(times), "ms", budget),
            Figure(f"{name}: size", sizes[-1] / 1e6, "MB"),
        ]
    return figures


def all_rows(scale: Scale) -> str:
    """The path of all connections."""
    return f"/api/v1/connections?all=true&limit={scale.rows}"


def measured_ss() -> tuple[float, int]:
    """Milliseconds that ss takes, and its characters."""
    start = time.perf_counter()
    done = run(*SS)()
    assert isinstance(done, subprocess.CompletedProcess)
    return (time.perf_counter() - start) * 1e3, len(done.stdout)


def in_turns(
    calls: dict[str, Callable[[], tuple[float, int]]], runs: int
) -> dict[str, list[tuple[float, int]]]:
    """What each call gives, so many times in turns, after once to warm up."""
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in calls}
    for number, (name, call) in itertools.product(range(runs + 1), calls.items()):
        answer = call()
        if number:
            taken[name].append(answer)
    return taken


def crowd(scale: Scale) -> list[Figure]:
    """/health over a connection of its own while two clients ask for all connections as JSON without a pause."""
    with serving_rows(scale.rows):
        client = Client()
        alone = health_times(client, scale.seconds / 2)
        before = late(client)
        with contextlib.ExitStack() as ends:
            askers = [asker(all_rows(scale), ends) for _ in range(2)]
            beside = health_times(client, scale.seconds)
            for each in askers:
                each.terminate()
            answers = [each.communicate()[0].split() for each in askers]
        after = late(client)
    statuses = list(itertools.chain(*answers))
    return [
        Figure("/health alone: median", statistics.median(alone), "ms"),
        Figure("/health alone: 99th percentile", percentile(alone, 99), "ms"),
        Figure("/health beside two clients: median", statistics.median(beside), "ms"),
        Figure("/health beside two clients: 99th percentile", percentile(beside, 99), "ms"),
        Figure("/health beside two clients: the slowest", max(beside), "ms"),
        Figure("answers to the two clients a second", len(statuses) / scale.seconds, ""),
        Figure("of them not 200", sum(status != b"200" for status in statuses), "", 0),
        Figure("late readings", after - before, ""),
    ]


def asker(path: str, ends: contextlib.ExitStack) -> "subprocess.Popen[bytes]":
    """curl, client for a path over and over on one connection; prints the status of each answer."""
    url = f"http://{HOST}:{PORT}{path}#[1-1000000]"
    words = ["stdbuf", "-oL", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\n", url]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    ends.callback(process.wait)
    ends.callback(process.kill)
    return process


def health_times(client: Client, seconds: float) -> list[float]:
    """Milliseconds of each request, 50 a second at most."""
    times = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        times.append(client.measured(HEALTH)[0])
        time.sleep(0.02)
    return times


def memory(scale: Scale) -> list[Figure]:
    """Resident memory of the server before many scrapes and after.

    The least of some readings' time: each reading makes arrays of all rows, which are freed soon.
    """
    with serving_rows(scale.rows) as pid:
        client = Client(accepts=PROMETHEUS_ACCEPTS)
        for _ in range(WARM_UP):
            client.get(METRICS)
            time.sleep(scale.seconds / WARM_UP)
        before = memories_mb(pid, scale.seconds / 3)
        for _ in range(scale.scrapes):
            client.get(METRICS)
        after = memories_mb(pid, scale.seconds / 3)
    return [
        Figure(f"after {WARM_UP} scrapes: least", min(before), "MB"),
        Figure(f"after {WARM_UP} scrapes: most", max(before), "MB"),
        Figure(f"after {scale.scrapes:,} more: least", min(after), "MB"),
        Figure(f"after {scale.scrapes:,} more: most", max(after), "MB"),
        Figure("growth of the least", min(after) - min(before), "MB", GROWTH_MB),
    ]


def memories_mb(pid: int, seconds: float) -> list[float]:
    """Resident memory, ten times a second."""
    taken = [resident_mb(pid)]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        taken.append(resident_mb(pid))
    return taken


def idle(scale: Scale) -> list[Figure]:
    """CPU time with a scrape every 15 s, and what adding up takes of it."""
    with serving_rows(scale.rows) as pid, node_exporter() as peer:
        clients = [Client(), *([Client(PEER_PORT)] if peer else [])]
        time.sleep(3)
        costs, began = own_cost(clients[0]), time.monotonic()
        spent = {each: cpu_seconds(each) for each in (pid, peer) if each}
        for _ in range(max(1, scale.seconds // 15)):
            for client in clients:
                client.get(METRICS)
            time.sleep(15)
        elapsed = time.monotonic() - began
        spent = {each: (cpu_seconds(each) - before) / elapsed for each, before in spent.items()}
        later = own_cost(clients[0])
    figures = [Figure("nettop serve", 100 * spent[pid], "% of a CPU")]
    if peer:
        figures.append(Figure("node_exporter", 100 * spent[peer], "% of a CPU"))
    together = 0.0
    for (kind, name, lens), row in later.items():
        before = costs.get((kind, name, lens), {"time_ns": 0, "runs": 0})
        if (kind, name) == ("step", "add up") and row["runs"] > before["runs"]:
            a_run = (row["time_ns"] - before["time_ns"]) / (row["runs"] - before["runs"]) / 1e6
            figures.append(Figure(f"adding up a reading: {lens}", a_run, "ms"))
            together += row["time_ns"] - before["time_ns"]
    figures.append(Figure("adding up", together / elapsed / 1e7, "% of a CPU"))
    return figures


def streams(scale: Scale) -> list[Figure]:
    """Clients of the stream that never read. The server closes them when the kernel's buffers are full for 30 s."""
    with serving_rows(scale.rows) as pid, contextlib.ExitStack() as ends:
        client = Client()
        late_before, before = late(client), memories_mb(pid, 3)
        for _ in range(scale.clients):
            ends.enter_context(deaf_client())
        memories, queued, opened = [], [], []
        for _ in range(scale.seconds * 2):
            memories += memories_mb(pid, 1)
            queued.append(queued_mb())
            opened.append(client_count(client))
        late_after = late(client)
    return [
        Figure("streams open, most", max(opened), ""),
        Figure(f"streams open after {len(opened)} s", opened[-1], ""),
        Figure("resident memory before, most", max(before), "MB"),
        Figure("resident memory, most", max(memories), "MB"),
        Figure("in the kernel's send buffers, most", max(queued), "MB"),
        Figure("late readings", late_after - late_before, ""),
    ]


def queued_mb() -> float:
    """What the kernel holds for the server's clients (skmem's w)."""
    said = subprocess.run(
        ["ss", "-tmnHO", "sport", "=", f":{PORT}"], capture_output=True, text=True, check=True
    ).stdout
    return sum(map(int, re.findall(r",w(\d+),", said))) / 1e6


def deaf_client() -> socket.socket:
    """A client of the stream that takes nothing but what fits into a small buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((HOST, PORT))
    client.sendall(f"GET {STREAM} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    return client


def client_count(client: Client) -> int:
    """How many others are connected to the server."""
    lines = client.get(METRICS).decode().splitlines()
    return (
        int(float(next(line for line in lines if line.startswith("nettop_http_connections ")).split()[1])) - 1
    )


def slow(scale: Scale) -> list[Figure]:
    """Clients that send nothing, or half a request, while another one asks; until the server has closed them all."""
    with serving_rows(scale.rows), contextlib.ExitStack() as ends:
        client = Client()
        late_before, start = late(client), time.monotonic()
        silent = [ends.enter_context(socket.create_connection((HOST, PORT))) for _ in range(scale.slow)]
        for connection in silent[::2]:
            connection.sendall(f"GET {HEALTH} HTTP/1.1\r\nHost: ".encode())
        times, opened = [], 0
        while (count := client_count(client)) or not opened:
            opened = max(opened, count)
            times += health_times(client, 1)
        closed_after = time.monotonic() - start
        late_after = late(client)
    return [
        Figure("silent and half-sent connections", opened, ""),
        Figure(
            "meanwhile another client's answer, 99th percentile", percentile(times, 99), "ms", SLOW_P99_MS
        ),
        Figure("all of them closed after", closed_after, "s"),
        Figure("late readings", late_after - late_before, ""),
    ]


def burst(scale: Scale) -> list[Figure]:
    """Requests over many connections at once, each of which asks as soon as it has its answer."""
    with serving_rows(scale.rows):
        tally = Tally()
        each = 10
        start = time.perf_counter()
        asyncio.run(ask_at_once(scale.burst // each, each, tally))
        elapsed = time.perf_counter() - start
    return [
        Figure("requests", scale.burst, ""),
        Figure("answered", tally.answered, ""),
        Figure("lost", scale.burst - tally.answered, "", 0),
        Figure("sent again, since the connection had just been closed", tally.resent, ""),
        Figure("connections", tally.connections, ""),
        Figure("time", elapsed, "s"),
        Figure("answers a second", tally.answered / elapsed, ""),
        Figure("an answer, 99th percentile", percentile(tally.times, 99), "ms"),
    ]


class HalfAnswer(OSError):
    """A connection ended within an answer."""


class Tally:
    """What became of requests."""

    def __init__(self) -> None:
        self.answered = self.resent = self.connections = 0
        self.times: list[float] = [0.0]
        self.lost: set[str] = set()


async def ask_at_once(count: int, each: int, tally: Tally) -> None:
    """So many clients, each with so many requests one after the other."""
    async with asyncio.timeout(300):
        await asyncio.gather(*(ask(each, tally) for _ in range(count)))
    for reason in sorted(tally.lost):
        print(f"    lost: {reason}")


async def ask(requests: int, tally: Tally) -> None:
    """Ask over one connection for as long as the server keeps it open, then over another.

    A request is sent again, as any client does, if the server closed the connection before it could read it.
    """
    connection: Connection | None = None
    while requests:
        is_new = connection is None
        start = time.perf_counter()
        try:
            if connection is None:
                connection = await asyncio.open_connection(HOST, PORT)
                tally.connections += 1
            status, stays_open = await exchange(connection)
        except (OSError, asyncio.IncompleteReadError) as error:
            if is_new or isinstance(error, HalfAnswer) or getattr(error, "partial", None):
                tally.lost.add(repr(error))
                requests -= 1
            else:
                tally.resent += 1
            stays_open = False
        else:
            requests -= 1
            if status == b"200":
                tally.answered += 1
                tally.times.append((time.perf_counter() - start) * 1e3)
            else:
                tally.lost.add(status.decode())
        if connection is not None and not (requests and stays_open):
            connection[1].close()
            connection = None


async def exchange(connection: Connection) -> tuple[bytes, bool]:
    """Ask, and take the answer: its status, and whether the server keeps the connection open."""
    reader, writer = connection
    writer.write(f"GET {HEALTH} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines if line)
    try:
        await reader.readexactly(int(headers[b"content-length"]))
    except (OSError, asyncio.IncompleteReadError) as error:
        raise HalfAnswer(repr(error)) from error
    return first.split()[1], headers.get(b"connection") != b"close"


PARTS: dict[str, tuple[str, Callable[[Scale], list[Figure]]]] = {
    "scrapes": ("GET /metrics, 50 times", scrapes),
    "tables": ("GET /api/v1/connections, all rows, 10 times", tables),
    "crowd": ("/health while two clients ask for all connections", crowd),
    "memory": ("Resident memory of the server", memory),
    "idle": ("CPU time with a scrape every 15 s", idle),
    "streams": ("Clients of the stream that never read", streams),
    "slow": ("Clients that send nothing, or half a request", slow),
    "burst": ("A burst of requests over a tenth as many connections", burst),
}


def main() -> int:
    """Run all parts, or the named ones."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=" ".join(PARTS))
    parser.add_argument(
        "--rows", type=int, default=50_000, help="connections: both ends of a loopback connection"
    )
    parser.add_argument("--scrapes", type=int, default=10_000, help="scrapes to see whether memory grows")
    parser.add_argument("--quick", action="store_true", help="small and short: proves that the bench works")
    options = parser.parse_args()
    scale = Scale(options.rows, options.scrapes, 60, 100, 10_000, 500)
    if options.quick:
        scale = Scale(5_000, 1_000, 10, 20, 1_000, 100)
    own_namespace()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), max(hard, DESCRIPTORS)))
    missed = []
    with connections(scale.rows):
        print(f"{scale.rows:,} connections, {os.cpu_count()} CPUs", flush=True)
        for name in options.parts or PARTS:
            title, part = PARTS[name]
            figures = part(scale)
            report(title, figures)
            missed += [f"{title}: {figure.line().strip()}" for figure in figures if not figure.kept]
    for line in missed:
        print(f"\nMISSED  {line}")
    if not missed:
        print("\nok: all budgets are kept")
    return 1 if missed else 0


if __name__ == "__main__":
    handle_signals()
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
