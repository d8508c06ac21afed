# SPDX-License-Identifier: Apache-2.0
"""Alerts on real faults: Prometheus scrapes nettop while faults are produced in network namespaces.

The rules are the shipped ones, with minutes shortened to seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from nettop.collector.decode.templates import NETFLOW_9
from tests.kernel import traffic
from tests.kernel.command import Running
from tests.kernel.lab import Lab, laboratory, missing, until
from tests.kernel.test_cpu import DISCARD, make_crossing, threads_called
from tests.kernel.test_drops import drop_by_rule, refused, send, send_frames, small_socket
from tests.kernel.test_losses import connect_and_close

from .scraping import running_prometheus
from .test_prometheus import PROMETHEUS, STATIC

pytest.importorskip("chdb")

from tests.collecting import Running as Collecting
from tests.unit.test_flow_decoder import DECLARED
from tests.unit.test_flow_messages import a_set, message, plain

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.deploy,
    pytest.mark.skipif(bool(missing()), reason=str(missing())),
]

WINDOW_S, DURATION_S = 10, 2
TIMES = (
    (r"\[5m\]", f"[{WINDOW_S}s]"),
    (r"for: \d+m", f"for: {DURATION_S}s"),
    (r"_interval: 15s", "_interval: 1s"),
)
"""Replacements that shorten the shipped times."""
DEADLINE_S = 90
TOKEN = "of-this-test-and-of-no-other"
PIECE = 200_000
CLOSED_PORT, DISCARDED = 9, "udp dport 9"
ANSWERING = re.compile(r"queries at .*http://(127.0.0.1:\d+)/")
SERVING = re.compile(r"serving at http://127.0.0.1:(\d+)/")

Press = Callable[[], object]


def shorter(text: str) -> str:
    """Return a shipped file with shortened times."""
    for pattern, replacement in TIMES:
        text = re.sub(pattern, replacement, text)
    return text


class Nettop(Running):
    """nettop serve with a token, on a port that the kernel chooses."""

    def __init__(self, token: Path, *options: str) -> None:
        super().__init__("serve", "--listen", "127.0.0.1:0", "--token-file", str(token), *options)

    def target(self) -> str:
        """Wait until it serves and return its scrape target."""
        until(lambda: SERVING.search(self.errors()) or self.process.poll() is not None, "nettop serves", 60)
        serving = SERVING.search(self.errors())
        assert serving, self.errors()
        return f"127.0.0.1:{serving[1]}"


class Prometheus:
    """Debian's Prometheus with the shipped configuration, in its own folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(PROMETHEUS, folder)
        for path in (folder / STATIC, *(folder / "rules").iterdir()):
            path.write_text(shorter(path.read_text()))
        (folder / "nettop-token").write_text(TOKEN)
        self.scrape()

    def scrape(self, *targets: str) -> None:
        """Set the hosts to scrape."""
        new = self._folder / "targets.new"
        new.write_text(json.dumps([{"targets": targets}]))
        new.rename(self._folder / "targets/nettop.yml")

    def __enter__(self) -> Self:
        self._exits = contextlib.ExitStack()
        self._url = self._exits.enter_context(running_prometheus(self._folder / STATIC))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/{path}", timeout=30) as answer:
            return json.load(answer)["data"]

    def has(self, query: str) -> bool:
        """Return whether the query has a result."""
        return bool(self._get(f"query?{urllib.parse.urlencode({'query': query})}")["result"])

    def alerts(self, *states: str) -> dict[str, dict[str, str]]:
        """Return the annotations of the alerts in these states, by name."""
        return {
            alert["labels"]["alertname"]: alert["annotations"]
            for alert in self._get("alerts")["alerts"]
            if alert["state"] in states
        }


@dataclass
class Scene:
    """Two hosts that talk to each other, a router that exports flows, and the monitoring."""

    lab: Lab
    exits: contextlib.ExitStack
    folder: Path
    flows_dir: Path

    def __post_init__(self) -> None:
        self.near, self.far = self.lab.pair()
        self.client, self.server = self.lab.worker(self.near.namespace), self.lab.worker(self.far.namespace)
        port = self.server.call(traffic.listen, "listener", self.far.v4)
        self.client.call(traffic.connect, "call", traffic.Call((self.far.v4, port)))
        self.server.call(traffic.accept, "listener", "call")
        self.service = port
        self.numbers = count(1)
        self._exports_from = 0
        self.token = self.folder / "token"
        self.token.touch(0o600)
        self.token.write_text(TOKEN)
        self.queries = "127.0.0.1:0"
        self.collect()
        options = ("-t", "0.5", "--collector", f"http://{self.queries}")
        self.nettop = self.exits.enter_context(Nettop(self.token, *options))
        self.prometheus = self.exits.enter_context(Prometheus(self.folder / "prometheus"))
        self.prometheus.scrape(self.nettop.target())

    def collect(self) -> None:
        """Start the collector, or restart it at the same address."""
        self.collector = self.exits.enter_context(Collecting(self.flows_dir, "--query-listen", self.queries))
        answering = ANSWERING.search(self.collector.errors())
        assert answering, self.collector.errors()
        self.queries = answering[1]

    def export(self, lost: int = 0) -> None:
        """Send a datagram from the router, after `lost` ones that never arrive."""
        for _ in range(lost):
            next(self.numbers)
        sets = (DECLARED[NETFLOW_9], a_set(300, plain(11)))
        datagram = message(NETFLOW_9, *sets, sequence=next(self.numbers)).data
        self._exports_from = self.collector.send(datagram, port=self._exports_from)

    def talk(self) -> None:
        """Exchange data over an open connection and a new one."""
        self.server.start(traffic.exchange, {}, {"call": PIECE})
        self.client.call(traffic.exchange, {"call": PIECE}, {})
        self.server.result()
        self.client.call(connect_and_close, 1)

    def be_healthy(self) -> None:
        """Produce a step of fault-free load."""
        self.talk()
        self.export()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Share one scene among all tests, because starting it takes most of the time."""
    with contextlib.ExitStack() as exits:
        lab = exits.enter_context(laboratory())
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="nettop-alerts")))
        folder.chmod(0o755)
        yield Scene(lab, exits, folder, folder / "flows")


# --- faults -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lossy_path(scene: Scene) -> Iterator[Press]:
    """Drop one segment in eight."""
    drop_by_rule(scene.far.namespace, f"tcp dport {scene.service} numgen random mod 8 0")
    try:
        yield scene.talk
    finally:
        scene.far.namespace.run("nft", "delete table inet t")


@contextlib.contextmanager
def closed_port(scene: Scene) -> Iterator[Press]:
    """Connect to a service that is not running."""
    yield lambda: scene.client.call(refused, (scene.far.v4, CLOSED_PORT), 50)


@contextlib.contextmanager
def slow_acceptor(scene: Scene) -> Iterator[Press]:
    """Never accept from a listener with a backlog of one."""
    target = scene.far.v4, scene.server.call(traffic.listen, "full", scene.far.v4, 0, 1)
    calls: list[object] = []

    def call() -> None:
        calls.append(("waits", len(calls)))
        scene.client.call(traffic.connect_without_answer, calls[-1], traffic.Call(target))

    yield call
    scene.client.call(traffic.close, calls)
    scene.server.call(traffic.close, ["full"])


@contextlib.contextmanager
def slow_reader(scene: Scene) -> Iterator[Press]:
    """Never read from a socket with a small receive buffer."""
    port = scene.server.call(small_socket, scene.far.v4)
    yield lambda: scene.client.call(send, (scene.far.v4, port), 200)
    scene.server.call(traffic.close, ["small"])


@contextlib.contextmanager
def firewall(scene: Scene) -> Iterator[Press]:
    """Drop the client's packets by a rule."""
    drop_by_rule(scene.far.namespace, DISCARDED)
    try:
        yield lambda: scene.client.call(send, (scene.far.v4, CLOSED_PORT), 2000)
    finally:
        scene.far.namespace.run("nft", "delete table inet t")


@contextlib.contextmanager
def flood(scene: Scene) -> Iterator[Press]:
    """Send more packets from one CPU than the other can handle, which checks each by thousands of rules."""
    crossing = make_crossing(scene.lab)
    sender = scene.lab.worker(crossing.near.namespace)
    (helper,) = threads_called(f"ksoftirqd/{crossing.receives_on}")
    before = os.getpriority(os.PRIO_PROCESS, helper)
    os.setpriority(os.PRIO_PROCESS, helper, -20)
    try:
        yield lambda: sender.call(send, DISCARD, 5000, crossing.sends_on)
    finally:
        os.setpriority(os.PRIO_PROCESS, helper, before)


@contextlib.contextmanager
def unhandled_frames(scene: Scene) -> Iterator[Press]:
    """Send frames of a protocol that nobody handles."""
    yield lambda: scene.client.call(send_frames, scene.near.device, 500)


@contextlib.contextmanager
def silent_router(scene: Scene) -> Iterator[Press]:
    """Stop the router's exports; everything else continues."""
    yield scene.talk


@contextlib.contextmanager
def lost_exports(scene: Scene) -> Iterator[Press]:
    """Lose one of three of the router's datagrams: if it were most of them, their numbers would mean something else."""

    def press() -> None:
        scene.export(lost=1)
        scene.export()

    yield press


@contextlib.contextmanager
def ended_collector(scene: Scene) -> Iterator[Press]:
    """Stop the collector."""
    assert scene.collector.end() == 0
    try:
        yield scene.talk
    finally:
        scene.collect()


@contextlib.contextmanager
def stopped_reader(scene: Scene) -> Iterator[Press]:
    """Suspend nettop during more events than fit into its ring buffer."""
    with stopped(scene.nettop):
        scene.client.call(traffic.storm, "127.0.0.1", 2.0)
    yield scene.talk


@contextlib.contextmanager
def stopped_nettop(scene: Scene) -> Iterator[Press]:
    """Suspend nettop, so that it does not answer."""
    with stopped(scene.nettop):
        yield scene.talk


@contextlib.contextmanager
def stopped(nettop: Running) -> Iterator[None]:
    """Suspend nettop in the block."""
    nettop.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        nettop.process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def idle_lens(scene: Scene) -> Iterator[Press]:
    """Add a target: another nettop whose lens is read once an hour."""
    with Nettop(scene.token, "-t", "3600", "--lenses", "drops") as other:
        scene.prometheus.scrape(scene.nettop.target(), other.target())
        try:
            yield scene.be_healthy
        finally:
            scene.prometheus.scrape(scene.nettop.target())


FAULTS = {
    "TcpRetransmits": lossy_path,
    "ConnectionsFailing": closed_port,
    "AcceptQueueOverflow": slow_acceptor,
    "PacketsDropped": slow_reader,
    "PacketsRejected": firewall,
    "CpuFullOfSoftirqs": flood,
    "InterfaceDrops": unhandled_frames,
    "FlowExporterSilent": silent_router,
    "FlowExportsLost": lost_exports,
    "FlowCollectorDown": ended_collector,
    "NettopLosingData": stopped_reader,
    "NettopDown": stopped_nettop,
    "NettopLensNotRead": idle_lens,
}
"""Faults by alert. Interface errors and saturation cannot be produced here."""


def test_all_are_silent_without_faults(scene: Scene) -> None:
    """Normal traffic and exports raise no alert."""
    rate = f"instance:nettop_connections_data_packets_sent:rate5m[{WINDOW_S}s]"
    seen = f"min_over_time({rate}) > 50 and count_over_time({rate}) >= {WINDOW_S - 2}"

    def has_been_seen() -> bool:
        scene.be_healthy()
        return scene.prometheus.has(seen)

    until(has_been_seen, "Prometheus has seen the traffic for a while", DEADLINE_S)
    assert scene.prometheus.alerts("firing") == {}


@pytest.mark.parametrize("name", FAULTS)
def test_fires_on_a_real_fault(scene: Scene, name: str) -> None:
    """Each alert fires on its fault, and is silent before and after."""

    def is_silent() -> bool:
        scene.be_healthy()
        return name not in scene.prometheus.alerts("firing", "pending")

    until(is_silent, f"{name} is silent", DEADLINE_S)
    with FAULTS[name](scene) as press:

        def fires() -> dict[str, str] | None:
            press()
            return scene.prometheus.alerts("firing").get(name)

        said = until(fires, f"{name} fires", DEADLINE_S)
    assert "127.0.0.1:" in said["summary"]
    until(is_silent, f"{name} is silent again", DEADLINE_S)
