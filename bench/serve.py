# SPDX-License-Identifier: Apache-2.0
"""Measure nettop serve: scrapes and REST beside node_exporter and ss, its CPU time and memory."""

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence

from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import NETTOP, READY_WITHIN_S, cpu_ns_of, resident_mb, run, running, until
from sockets import connections, own_namespace
from table import SS_OWNERS

HOST = "127.0.0.1"
PORT, PEER_PORT = 9471, 9100
PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
OPENMETRICS = "application/openmetrics-text;version=1.0.0"
"""Without text/plain, which nettop prefers."""
METRICS = "/metrics"
NODE_EXPORTER, PEER = "prometheus-node-exporter", "node_exporter"
UNWATCHED_AFTER_S = 35.0
"""Seconds until the server reads less often, after a request for a table."""


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

    def measured(self, path: str) -> Sample:
        """Return the milliseconds until the answer is complete, and its size in kB."""
        start = time.perf_counter()
        size = len(self.get(path))
        return {"time": (time.perf_counter() - start) * 1e3, "size": size / 1e3}


@contextlib.contextmanager
def started(command: Sequence[str], is_ready: Callable[[], bool]) -> Iterator[int]:
    """Run a server; yield its PID once it is ready."""
    with running(*command) as process:

        def ready() -> bool:
            if process.poll() is not None:
                raise SystemExit(f"{command[0]}: status {process.returncode}")
            with contextlib.suppress(OSError, SystemExit):  # it refuses, or has read nothing yet
                return is_ready()
            return False

        until(ready, command[0], 0.1)
        yield process.pid


def serving(rows: int) -> contextlib.AbstractContextManager[int]:
    """Run `nettop serve` with all lenses until it has read all connections twice; yield its PID."""

    def settled() -> bool:
        document = json.loads(Client().get("/api/v1/connections?limit=1"))
        return document["total"] >= rows and document["interval_s"] is not None

    return started((NETTOP, "serve", "--listen", f"{HOST}:{PORT}"), settled)


@contextlib.contextmanager
def exporting(bench_has_peer: bool) -> Iterator[int | None]:
    """Run node_exporter if it is installed; yield its PID."""
    if not bench_has_peer:
        yield None
        return
    command = (NODE_EXPORTER, f"--web.listen-address={HOST}:{PEER_PORT}", "--log.level=error")
    with started(command, lambda: bool(Client(PEER_PORT).get(METRICS))) as pid:
        yield pid


def has_peer() -> bool:
    """Return whether node_exporter is installed."""
    return scrape.missing(PEER) is None


@benchmark(
    "scrape", "A scrape", {"time": "ms", "size": "kB"}, over="connections", sizes=(5_000, 50_000), quick_size=200,
    rounds=25, peers={PEER: NODE_EXPORTER}, has_reference=True,
    targets=(Target(20, "time", 5_000), Target(200, "size", 5_000)),
)  # fmt: skip
def scrape(scale: Scale) -> Iterator[Turns]:
    """GET /metrics of a server with all lenses, as Prometheus asks for it, or as OpenMetrics."""
    own_namespace()
    with connections(scale.size), serving(scale.size), exporting(has_peer()):
        clients = {
            OURS: Client(accepts=PROMETHEUS_ACCEPTS),
            "nettop, OpenMetrics": Client(accepts=OPENMETRICS),
            PEER: Client(PEER_PORT, PROMETHEUS_ACCEPTS),
        }
        clients[OURS].get(METRICS)
        yield {name: lambda client=client: client.measured(METRICS) for name, client in clients.items()}  # type: ignore[misc]


@benchmark(
    "rest", "All connections over REST", {"time": "ms", "size": "kB"}, over="connections", sizes=(50_000,),
    quick_size=200, rounds=5, peers={"ss -tinp": "ss"},
)  # fmt: skip
def rest(scale: Scale) -> Iterator[Turns]:
    """GET /api/v1/connections with all rows and the default columns."""
    path = f"/api/v1/connections?all=true&limit={scale.size}"

    def by_ss() -> Sample:
        start = time.perf_counter()
        size = len(run(*SS_OWNERS))
        return {"time": (time.perf_counter() - start) * 1e3, "size": size / 1e3}

    own_namespace()
    with connections(scale.size), serving(scale.size):
        client = Client()
        yield {
            "nettop, JSON": lambda: client.measured(path),
            "nettop, CSV": lambda: client.measured(f"{path}&format=csv"),
            "ss -tinp": by_ss,
        }


@benchmark(
    "serve", "nettop serve with a scrape every 15 s", {"CPU": "% of a CPU", "memory": "MB"}, over="connections",
    sizes=(5_000,), quick_size=200, rounds=2, peers={PEER: NODE_EXPORTER}, has_reference=True,
    targets=(Target(4, "CPU", 5_000), Target(110, "memory", 5_000)),
)  # fmt: skip
def serve(scale: Scale) -> Iterator[Turns]:
    """All lenses, while nobody watches a table."""
    own_namespace()
    with connections(scale.size), serving(scale.size) as pid, exporting(has_peer()) as peer:
        time.sleep(scale.pick(UNWATCHED_AFTER_S, 1))

        def spent(pid: int | None, port: int) -> Sample:
            assert pid
            before, began = cpu_ns_of(pid), time.monotonic()
            Client(port).get(METRICS)
            time.sleep(scale.pick(15, 1))
            share = (cpu_ns_of(pid) - before) / (time.monotonic() - began) / 1e7
            return {"CPU": share, "memory": resident_mb(pid)}

        yield {OURS: lambda: spent(pid, PORT), PEER: lambda: spent(peer, PEER_PORT)}
