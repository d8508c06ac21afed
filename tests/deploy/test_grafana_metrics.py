# SPDX-License-Identifier: Apache-2.0
"""Each PromQL query of the dashboards returns data from a real Prometheus that scrapes a real nettop under load."""

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
from collections.abc import Callable, Iterator, Mapping
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

from .grafana import (
    DETAILS,
    FILES,
    KEPT,
    PROMETHEUS,
    Json,
    dashboard,
    options,
    promql,
    targets,
    variables,
)
from .scraping import running_prometheus

pytest.importorskip("chdb")

from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from tests.builders.exports import DECLARED, NETFLOW_5, SFLOW
from tests.builders.flow_messages import a_set, message, plain
from tests.collecting import Running as Collecting

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(missing()), reason=str(missing())),
]

WINDOW_S = 10
CHOSEN = {"__rate_interval": f"{WINDOW_S}s", "__range": "60s"}
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

    def options(self, variable: Json, chosen: Mapping[str, str]) -> list[str]:
        """Return the options of a variable: `label_values(SERIES, LABEL)` or `label_names(METRIC)`, as Grafana asks."""
        query = promql(variable["query"], chosen)
        if metric := re.fullmatch(r"label_names\((.+)\)", query):
            return options(variable, self._get("labels", **{"match[]": f'{{__name__=~".*{metric[1]}.*"}}'}))
        matched = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert matched
        return options(variable, self._get(f"label/{matched[2]}/values", **{"match[]": matched[1]}))


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
    made = [each for each in map(dashboard, FILES) if each != DETAILS]
    queries = [each for one in made for each in targets(one) if each.plugin == PROMETHEUS]
    missing_ = {each.place for each in queries}

    def have_data() -> bool:
        press()
        for each in queries:
            if each.place in missing_:
                values = prometheus.values(promql(each.text, CHOSEN), is_instant=each.is_instant)
                if any(map(math.isfinite, values)):
                    missing_.discard(each.place)
        return not missing_

    with contextlib.suppress(AssertionError):
        until(have_data, "data", DEADLINE_S)
    assert sorted(missing_) == []
    asked = [each for one in made for each in variables(one) if each["datasource"]["type"] == PROMETHEUS]
    assert all(prometheus.options(each, {}) for each in asked)


def test_details_have_data(scene: tuple[Prometheus, Callable[[], None]]) -> None:
    """For each metric of each table that Details offers, one query has data, summed by the offered labels."""
    prometheus, press = scene
    press()
    of_name = {each["name"]: each for each in variables(DETAILS)}
    queries = [each["expr"] for each in DETAILS["panels"][0]["targets"]]
    tables = prometheus.options(of_name["table"], {})
    assert {"connections", "connections_by_process", "services"} <= set(tables)

    def have_data() -> bool:
        press()
        return all(
            any(prometheus.values(promql(query, chosen), is_instant=False) for query in queries)
            for table in tables
            for labels in [prometheus.options(of_name["by"], {"table": table})]
            for metric in prometheus.options(of_name["metric"], {"table": table})
            for chosen in [CHOSEN | KEPT | {"by": ",".join(labels), "metric": metric}]
        )

    until(have_data, "data", DEADLINE_S)
