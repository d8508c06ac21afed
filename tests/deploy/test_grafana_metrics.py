# SPDX-License-Identifier: Apache-2.0
"""Each query of the lens dashboards returns data from a real Prometheus that scrapes a real nettop under load."""

from __future__ import annotations

import contextlib
import json
import math
import re
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from tests.kernel import traffic
from tests.kernel.command import Running
from tests.kernel.lab import End, ip, laboratory, missing, until
from tests.kernel.lab import enter as enter_namespace
from tests.kernel.test_drops import drop_by_rule, refused, send, small_socket
from tests.kernel.test_losses import connect_and_close

from .grafana import FILES, PROMETHEUS, dashboard, promql, targets, variables
from .scraping import running_prometheus

pytest.importorskip("chdb")

from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from tests.collecting import Running as Collecting
from tests.unit.test_flow_decoder import DECLARED, NETFLOW_5, SFLOW
from tests.unit.test_flow_messages import a_set, message, plain

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(missing()), reason=str(missing())),
]

WINDOW_S = 10
CHOSEN = {"__rate_interval": f"{WINDOW_S}s", "__range": "60s"}
NO_DATA = {
    **dict.fromkeys(
        ("nettop / Flows / Memory / B", "nettop / Findings / Memory / B"),
        "these lenses have no programs and maps in the kernel",
    ),
    **dict.fromkeys(
        ("nettop / Services / Failed answers / A", "nettop / Services / Missing names / A"),
        "nothing asks a DNS server here; test_udp_requests.py has their numbers",
    ),
}
"""Queries without data here, and why."""
DEADLINE_S = 60
PIECE = 200_000
CLOSED_PORT = 9
WITH_TRACEFS = ("sh", "-c", 'mount -t tracefs tracefs /sys/kernel/tracing && exec "$0" "$@"')
"""`ip netns exec` mounts the namespace's own sysfs, which has the speed of its devices, but no tracefs."""
SERVING = re.compile(r"serving at http://(127.0.0.1:\d+)/")


class Prometheus:
    """Debian's Prometheus in a network namespace, scraping a nettop there every second."""

    def __init__(self, folder: Path, namespace: str, target: str) -> None:
        self._folder, self._namespace = folder, namespace
        static = [{"targets": [target]}]
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "nettop", "static_configs": static}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        # Requests are sent by a thread that has entered the namespace.
        self._inside = ThreadPoolExecutor(1, initializer=enter_namespace, initargs=(namespace,))

    def __enter__(self) -> Self:
        self._exits = contextlib.ExitStack()
        self._exits.callback(self._inside.shutdown)
        inside = ("ip", "netns", "exec", self._namespace)
        self._url = self._exits.enter_context(running_prometheus(self._folder / "prometheus.yml", inside))
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def get(self, url: str) -> Any:
        """Fetch a JSON document from inside the namespace."""

        def document() -> Any:
            try:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                raise AssertionError(f"{error.read().decode()}\n{url}") from None

        return self._inside.submit(document).result()

    def _get(self, path: str, **parameters: object) -> Any:
        return self.get(f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}")["data"]

    def values(self, query: str, *, is_instant: bool) -> list[float]:
        """Return all values of all series that a panel gets."""
        now = time.time()
        if is_instant:
            result = self._get("query", query=query, time=now)["result"]
            return [float(each["value"][1]) for each in result]
        result = self._get("query_range", query=query, start=now - 30, end=now, step=1)["result"]
        return [float(value) for each in result for _, value in each["values"]]

    def labels(self, query: str) -> list[str]:
        """Return the values of a variable: `label_values(SERIES, LABEL)`, as Grafana queries it."""
        matched = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert matched
        names: list[str] = self._get(f"label/{matched[2]}/values", **{"match[]": matched[1]})
        return names


class Load:
    """Load from two hosts and some routers, in steps."""

    def __init__(self, near: End, far: End, client: Any, server: Any, collector: Collecting) -> None:
        self._client, self._server, self._collector = client, server, collector
        self._far = far
        port = server.call(traffic.listen, "listener", far.v4)
        for name in ("call", "waiting"):
            client.call(traffic.connect, name, traffic.Call((far.v4, port)))
            server.call(traffic.accept, "listener", name)
        self._full = server.call(small_socket, far.v4)
        drop_by_rule(far.namespace, f"tcp dport {port} numgen random mod 50 0")
        self._numbers = count(1)
        self._exports_from = 0

    def press(self) -> None:
        """Produce TCP in both directions, retransmits, short connections, UDP, failures, drops, and lossy exports.

        One request stays unanswered; those of Prometheus itself are answered.
        """
        self._server.start(traffic.exchange, {"call": PIECE}, {"call": PIECE})
        self._client.call(traffic.exchange, {"call": PIECE}, {"call": PIECE})
        self._server.result()
        self._client.call(traffic.send, {"waiting": 1})
        self._client.call(connect_and_close, 1)
        self._client.call(refused, (self._far.v4, CLOSED_PORT), 3)
        self._client.call(send, (self._far.v4, self._full), 100)
        self._client.call(send, (self._far.v4, CLOSED_PORT), 5)
        next(self._numbers)
        sequence = next(self._numbers)
        exports = [
            message(
                version, DECLARED[version], a_set(300, plain(11)), a_set(399, plain(1)), sequence=sequence
            ).data
            for version in (NETFLOW_9, IPFIX)
        ]
        self._exports_from = self._collector.send(
            *exports, NETFLOW_5, SFLOW, b"\0\1rubbish", port=self._exports_from
        )


def add_uplink(near: End, far: End) -> None:
    """Add a link to another namespace that has a speed: that of a veth is made up."""
    ip("-n", far.namespace.name, "link", "add", "uplink", "link", far.device, "type", "macvlan")
    ip("-n", far.namespace.name, "link", "set", "uplink", "netns", near.namespace.name)
    ip("-n", near.namespace.name, "link", "set", "uplink", "up")


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Prometheus, Callable[[], None]]]:
    """Run Prometheus and nettop serve in a network namespace; yield it and a function that produces load."""
    with contextlib.ExitStack() as exits:
        lab = exits.enter_context(laboratory())
        folder = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="nettop-grafana")))
        folder.chmod(0o755)
        near, far = lab.pair()
        add_uplink(near, far)
        collector = exits.enter_context(Collecting(folder / "flows"))
        load = Load(near, far, lab.worker(near.namespace), lab.worker(far.namespace), collector)
        name = near.namespace.name
        # Without capabilities root may not access the collector user's files.
        collector.directory.chmod(0o755)
        socket = collector.directory / "flows.sock"
        socket.chmod(0o666)
        options = ("serve", "--listen", "127.0.0.1:0", "-t", "0.5", "--collector", f"unix:{socket}")
        nettop = exits.enter_context(Running(*options, around=("ip", "netns", "exec", name, *WITH_TRACEFS)))
        until(
            lambda: SERVING.search(nettop.errors()) or nettop.process.poll() is not None, "nettop serves", 60
        )
        serving = SERVING.search(nettop.errors())
        assert serving, nettop.errors()
        prometheus = exits.enter_context(Prometheus(folder, name, serving[1]))

        def press() -> None:
            load.press()
            # Flows are read, and so counted, only on demand.
            prometheus.get(f"http://{serving[1]}/api/v1/bandwidth.flows")

        yield prometheus, press


def test_each_query_has_data(scene: tuple[Prometheus, Callable[[], None]]) -> None:
    """Each PromQL panel and variable has data, with all hosts and labels selected."""
    prometheus, press = scene
    queries = {
        (each.place, each.text, each.is_instant)
        for made in map(dashboard, FILES)
        for each in targets(made)
        if each.plugin == PROMETHEUS
    }
    names = {
        variable["query"]
        for made in map(dashboard, FILES)
        for variable in variables(made)
        if variable["datasource"]["type"] == PROMETHEUS
    }
    missing_ = {place for place, *_ in queries}

    def have_data() -> bool:
        press()
        for place, text, is_instant in queries:
            if place in missing_:
                values = prometheus.values(promql(text, CHOSEN), is_instant=is_instant)
                if any(map(math.isfinite, values)):
                    missing_.discard(place)
        return missing_ <= NO_DATA.keys()

    try:
        until(have_data, "data", DEADLINE_S)
    except AssertionError:
        raise AssertionError(sorted(missing_ - NO_DATA.keys())) from None
    assert missing_ == NO_DATA.keys()
    assert all(prometheus.labels(promql(query, {})) for query in names)
