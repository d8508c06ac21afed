# SPDX-License-Identifier: Apache-2.0
"""Measure the speed and memory of nettop serve: `sudo .venv/bin/python bench/serve.py [PART …] [--quick]`.

Clients query a server with all lenses over loopback, while other processes hold many connections open. node_exporter
(Debian: prometheus-node-exporter) and ss are measured in the same run. The exit code is 1 if a budget is missed.
"""

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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import QUICK, Figure, Report, arguments, at_least, judge, percentile
from programs import (
    NETTOP,
    READY_WITHIN_S,
    cpu_seconds,
    for_seconds,
    resident_mb,
    run,
    running,
    until,
)
from sockets import connections, own_namespace

HOST = "127.0.0.1"
PORT, PEER_PORT = 9471, 9100
DESCRIPTORS = 20_000
"""Descriptor limit of the processes that hold connections."""
PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
"""Without text/plain, which nettop prefers."""
METRICS = "/metrics"
STREAM = "/api/v1/stream?view=connections&view=bandwidth&view=latency"
NODE_EXPORTER = "prometheus-node-exporter"
SS = ("ss", "-tinpH", "-O")

SCRAPE_MS, SCRAPE_MB = 50, 1.0
ALL_ROWS_MS = 300
GROWTH_MB = 5.0
IDLE_CPU, IDLE_MB = 5.0, 120.0
UNWATCHED_AFTER_S = 35.0
"""Seconds until the server reads less often, after a request for a table."""
WARM_UP = 200
"""Scrapes before memory is measured, spread over the duration of a part."""


@dataclass(frozen=True)
class Scale:
    """The size of a run."""

    rows: int
    scrapes: int
    """Scrapes to check whether memory grows."""
    seconds: int
    """Duration of timed parts."""
    clients: int
    """Stream clients that never read."""


# --- servers and clients ----------------------------------------------------------------------------------------


class Client:
    """A client with one persistent connection."""

    def __init__(self, port: int = PORT, accepts: str = "*/*") -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=READY_WITHIN_S)
        self._headers = {"Accept": accepts}

    def get(self, path: str) -> bytes:
        """Return the body of the answer; exit if its status is not 200."""
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status} {body[:500].decode(errors='replace')}")
        return body

    def measured(self, path: str) -> tuple[float, int]:
        """Return the milliseconds until the answer is complete, and its size in bytes."""
        start = time.perf_counter()
        size = len(self.get(path))
        return (time.perf_counter() - start) * 1e3, size

    def rows(self, path: str) -> list[dict[str, Any]]:
        """Return the rows of a table."""
        return list(json.loads(self.get(path))["rows"])


@contextlib.contextmanager
def started(name: str, command: Sequence[str], is_ready: Callable[[str], bool]) -> Iterator[tuple[int, Path]]:
    """Run a server; yield its PID and log file once it is ready."""
    with tempfile.NamedTemporaryFile("w+", prefix=f"bench-{name}") as said:
        with running(*command, out=said) as process:
            log = Path(said.name)
            until(lambda: process.poll() is not None or is_ready(log.read_text()), f"{name} serves")
            if process.poll() is not None:
                raise SystemExit(f"{name} does not serve: {log.read_text().strip()}")
            yield process.pid, log
        if process.returncode not in (0, -signal.SIGTERM):
            print(f"    {name} exited with status {process.returncode}")


@contextlib.contextmanager
def serving_rows(rows: int) -> Iterator[int]:
    """Run `nettop serve` with all lenses; yield its PID once it has all connections and their rates."""
    command = [NETTOP, "serve", "--listen", f"{HOST}:{PORT}"]
    with started("nettop", command, lambda text: "serving at" in text) as (pid, said):
        until(lambda: settled(Client(), rows), f"a reading of {rows:,} connections", 0.1)
        yield pid
        for line in said.read_text().splitlines():
            if "serving at" not in line:
                print(f"    {line}")


def settled(client: Client, rows: int) -> bool:
    """Return whether all connections have been read at least twice."""
    document = json.loads(client.get("/api/v1/connections?limit=1"))
    return document["total"] >= rows and document["interval_s"] is not None


@contextlib.contextmanager
def node_exporter() -> Iterator[int | None]:
    """Run node_exporter; yield its PID, or None if it is not installed."""

    def answers(_said: str) -> bool:
        with contextlib.suppress(ConnectionError):
            return bool(Client(PEER_PORT).get(METRICS))
        return False

    if shutil.which(NODE_EXPORTER) is None:
        print(f"\n{NODE_EXPORTER} is not installed: scrapes are not compared")
        yield None
        return
    command = [NODE_EXPORTER, f"--web.listen-address={HOST}:{PEER_PORT}", "--log.level=error"]
    with started(NODE_EXPORTER, command, answers) as (pid, _):
        yield pid


def typical(name: str, times: Sequence[float], median_most: float | None = None) -> list[Figure]:
    """Return the median and the 99th percentile of milliseconds."""
    return [
        Figure(f"{name}: median", statistics.median(times), "ms", median_most),
        Figure(f"{name}: 99th percentile", percentile(times, 99), "ms"),
    ]


def own_cost(client: Client) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Return nettop's report on its own cost, by kind, name and lens."""
    return {
        (row["kind"], row["name"], row["lens"] or ""): row for row in client.rows("/api/v1/self?all=true")
    }


def late(client: Client) -> int:
    """Return the number of readings skipped since the start."""
    return int(own_cost(client)["total", "nettop", ""]["late"])


# --- parts ------------------------------------------------------------------------------------------------------


def scrapes(scale: Scale) -> list[Figure]:
    """Measure GET /metrics, as Prometheus sends it, alternating with node_exporter."""
    with serving_rows(scale.rows), node_exporter() as peer:
        clients = {
            "OpenMetrics": Client(accepts=OPENMETRICS),
            "text": Client(accepts="text/plain"),
            **({"node_exporter": Client(PEER_PORT, PROMETHEUS_ACCEPTS)} if peer else {}),
        }
        taken = in_turns({name: lambda c=each: c.measured(METRICS) for name, each in clients.items()}, 50)  # type: ignore[misc]
    figures = []
    for name, answers in taken.items():
        times, sizes = zip(*answers, strict=True)
        is_ours = name != "node_exporter"
        figures += [
            *typical(name, times, SCRAPE_MS if is_ours else None),
            Figure(f"{name}: size", max(sizes) / 1e6, "MB", SCRAPE_MB if is_ours else None),
        ]
    return figures


def tables(scale: Scale) -> list[Figure]:
    """Measure GET /api/v1/connections with all rows and text columns, alternating with ss."""
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
    figures = [at_least("rows", listed, "", scale.rows)]
    for name, answers in taken.items():
        times, sizes = zip(*answers, strict=True)
        budget = ALL_ROWS_MS if name == "JSON" else None
        figures += [
            Figure(f"{name}: median", statistics.median(times), "ms", budget),
            Figure(f"{name}: size", sizes[-1] / 1e6, "MB"),
        ]
    return figures


def all_rows(scale: Scale) -> str:
    """Return the path of all connections."""
    return f"/api/v1/connections?all=true&limit={scale.rows}"


def measured_ss() -> tuple[float, int]:
    """Return the milliseconds that ss takes, and the length of its output."""
    start = time.perf_counter()
    size = len(run(*SS))
    return (time.perf_counter() - start) * 1e3, size


def in_turns(
    calls: dict[str, Callable[[], tuple[float, int]]], runs: int
) -> dict[str, list[tuple[float, int]]]:
    """Return the results of `runs` alternating runs of each call, after one run to warm up."""
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in calls}
    for number, (name, call) in itertools.product(range(runs + 1), calls.items()):
        answer = call()
        if number:
            taken[name].append(answer)
    return taken


def memory(scale: Scale) -> list[Figure]:
    """Measure the resident memory of the server before and after many scrapes.

    The minimum over several readings counts: each reading makes arrays of all rows, which are soon freed.
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
        Figure(f"after {WARM_UP} scrapes: minimum", min(before), "MB"),
        Figure(f"after {WARM_UP} scrapes: maximum", max(before), "MB"),
        Figure(f"after {scale.scrapes:,} more: minimum", min(after), "MB"),
        Figure(f"after {scale.scrapes:,} more: maximum", max(after), "MB"),
        Figure("growth of the minimum", min(after) - min(before), "MB", GROWTH_MB),
    ]


def memories_mb(pid: int, seconds: float) -> list[float]:
    """Sample resident memory ten times a second."""
    taken = [resident_mb(pid)]
    for _ in for_seconds(seconds):
        time.sleep(0.1)
        taken.append(resident_mb(pid))
    return taken


def idle(scale: Scale) -> list[Figure]:
    """Measure CPU time with a scrape every 15 s while nobody watches, and the time to accumulate a reading."""
    with serving_rows(scale.rows) as pid, node_exporter() as peer:
        clients = [Client(), *([Client(PEER_PORT)] if peer else [])]
        costs = own_cost(clients[0])
        time.sleep(UNWATCHED_AFTER_S)
        began = time.monotonic()
        spent = {each: cpu_seconds(each) for each in (pid, peer) if each}
        for _ in range(max(1, scale.seconds // 15)):
            for client in clients:
                client.get(METRICS)
            time.sleep(15)
        elapsed = time.monotonic() - began
        spent = {each: (cpu_seconds(each) - before) / elapsed for each, before in spent.items()}
        memory_mb, later = resident_mb(pid), own_cost(clients[0])
    figures = [
        Figure("nettop serve", 100 * spent[pid], "% of a CPU", IDLE_CPU),
        Figure("its resident memory", memory_mb, "MB", IDLE_MB),
    ]
    if peer:
        figures.append(Figure("node_exporter", 100 * spent[peer], "% of a CPU"))
    for (kind, name, lens), row in later.items():
        before = costs.get((kind, name, lens), {"time_ns": 0, "runs": 0})
        if (kind, name) == ("step", "add up") and row["runs"] > before["runs"]:
            a_run = (row["time_ns"] - before["time_ns"]) / (row["runs"] - before["runs"]) / 1e6
            figures.append(Figure(f"accumulating a reading: {lens}", a_run, "ms"))
    return figures


def streams(scale: Scale) -> list[Figure]:
    """Measure stream clients that never read. The server closes them when the kernel's buffers stay full for 30 s."""
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
        Figure("open streams, maximum", max(opened), ""),
        Figure(f"open streams after {len(opened)} s", opened[-1], ""),
        Figure("resident memory before, maximum", max(before), "MB"),
        Figure("resident memory, maximum", max(memories), "MB"),
        Figure("in the kernel's send buffers, maximum", max(queued), "MB"),
        Figure("late readings", late_after - late_before, ""),
    ]


def queued_mb() -> float:
    """Return the size of the kernel's send queues to the server's clients (w in skmem)."""
    said = run("ss", "-tmnHO", "sport", "=", f":{PORT}")
    return sum(map(int, re.findall(r",w(\d+),", said))) / 1e6


def deaf_client() -> socket.socket:
    """Open a stream client that never reads and has a small receive buffer."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((HOST, PORT))
    client.sendall(f"GET {STREAM} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    return client


def client_count(client: Client) -> int:
    """Return how many other clients are connected to the server."""
    count = re.search(rb"^nettop_http_connections (\S+)", client.get(METRICS), re.MULTILINE)
    assert count
    return int(float(count[1])) - 1


PARTS: dict[str, tuple[str, Callable[[Scale], list[Figure]]]] = {
    "scrapes": ("GET /metrics, 50 times", scrapes),
    "tables": ("GET /api/v1/connections, all rows, 10 times", tables),
    "memory": ("Resident memory of the server", memory),
    "idle": ("CPU time with a scrape every 15 s, while nobody watches", idle),
    "streams": ("Stream clients that never read", streams),
}


def main() -> int:
    """Run all parts, or the named ones."""
    options = arguments(
        __doc__,
        PARTS,
        rows=(50_000, "connections to hold; a loopback connection counts twice"),
        scrapes=(10_000, "scrapes to check whether memory grows"),
        quick=QUICK,
    )
    scale = Scale(options.rows, options.scrapes, 60, 100)
    if options.quick:
        scale = Scale(5_000, 1_000, 10, 20)
    own_namespace()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), max(hard, DESCRIPTORS)))
    reports: Iterator[Report] = ((PARTS[name][0], PARTS[name][1](scale)) for name in options.parts)
    with connections(scale.rows):
        print(f"{scale.rows:,} connections, {os.cpu_count()} CPUs", flush=True)
        return judge(reports)


if __name__ == "__main__":
    sys.exit(main())
