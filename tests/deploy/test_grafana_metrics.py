# SPDX-License-Identifier: Apache-2.0
"""Each PromQL query of the dashboards has data from a Prometheus that holds a minute of a busy host's scrapes."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.exposition import metrics_routes
from nettop.serve.metrics.totals import Totals
from nettop.snapshots.source import SourceOptions
from tests.builders.busy_host import ROWS, reading
from tests.unit.serving import LENSES, ask, make_app, make_served

from .grafana import DETAILS, FILES, KEPT, PROMETHEUS, Json, dashboard, options, promql, targets, variables
from .scraping import running_prometheus
from .tools import debian_package

SCRAPES, INTERVAL_S = 12, 5
CHOSEN = {"__rate_interval": "30s", "__range": "60s"}
COUNTS = ROWS | {"bandwidth": 32, "cpu.stacks": 80}
"""Rows of each table: enough for uplinks, and for stacks in RX softirqs."""
OF_TARGET = 'job="nettop",instance="web"'


async def scrapes() -> list[str]:
    """Return scrapes of a host, one after each reading."""
    served, counts = make_served(*(reading(lens, 1, COUNTS) for lens in LENSES)), ServerCounts()
    totals = Totals(served, {}, SourceOptions())
    app = make_app(metrics_routes(served, totals, counts))
    texts = []
    for number in range(1, SCRAPES + 1):
        for lens in LENSES:
            served.session.bus.publish(reading(lens, number, COUNTS))
        counts.count_response(200)
        texts.append((await ask(app, "/metrics")).body.decode())
    return texts


def samples(end_s: int) -> Iterator[str]:
    """Yield the samples of the scrapes, the last of which is at `end_s`, as lines of a file."""
    for number, text in enumerate(asyncio.run(scrapes()), 1):
        at_s = end_s - INTERVAL_S * (SCRAPES - number)
        for family in parse(text):
            for name, labels, value, *_ in family.samples:
                own = "".join(f"{label}={json.dumps(text)}," for label, text in labels.items())
                yield f"{name}{{{own}{OF_TARGET}}} {value} {at_s}"


class Prometheus:
    """A Prometheus whose newest data is of a given time."""

    def __init__(self, url: str, end_s: int) -> None:
        self._url, self._end_s = url, end_s

    def _get(self, path: str, **parameters: object) -> Any:
        url = f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{error.read().decode()}\n{url}") from None

    def has_data(self, query: str) -> bool:
        """Return whether a query has a number at the end."""
        result = self._get("query", query=query, time=self._end_s)["result"]
        return any(math.isfinite(float(sample["value"][1])) for sample in result)

    def options(self, variable: Json, chosen: Mapping[str, str]) -> list[str]:
        """Return the options of a variable: `label_values(SERIES, LABEL)` or `label_names(METRIC)`, as Grafana asks."""
        query = promql(variable["query"], chosen)
        if metric := re.fullmatch(r"label_names\((.+)\)", query):
            return options(variable, self._get("labels", **{"match[]": f'{{__name__=~".*{metric[1]}.*"}}'}))
        matched = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert matched
        return options(variable, self._get(f"label/{matched[2]}/values", **{"match[]": matched[1]}))


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run a Prometheus on the samples."""
    folder, end_s = tmp_path_factory.mktemp("prometheus"), int(time.time())
    lines = sorted(
        samples(end_s), key=lambda line: line.rsplit(" ", 2)[0]
    )  # those of a series in their order
    (folder / "samples").write_text("\n".join([*lines, "# EOF\n"]))
    promtool = debian_package("prometheus") / "usr/bin/promtool"
    words: list[str | Path] = [promtool, "tsdb", "create-blocks-from", "openmetrics"]
    subprocess.run([*words, folder / "samples", folder / "data"], check=True, capture_output=True)
    (folder / "prometheus.yml").write_text("{}")
    with running_prometheus(folder / "prometheus.yml") as url:
        yield Prometheus(url, end_s)


def test_each_query_has_data(prometheus: Prometheus) -> None:
    """Each PromQL panel and variable has data, with all hosts and labels selected."""
    made = [overview for overview in map(dashboard, FILES) if overview != DETAILS]
    queries = [target for one in made for target in targets(one) if target.plugin == PROMETHEUS]
    assert queries
    assert [query.place for query in queries if not prometheus.has_data(promql(query.text, CHOSEN))] == []
    asked = [
        variable
        for one in made
        for variable in variables(one)
        if variable["datasource"]["type"] == PROMETHEUS
    ]
    assert all(prometheus.options(query, {}) for query in asked)


def test_details_have_data(prometheus: Prometheus) -> None:
    """For each metric of each table that Details offers, one query has data, summed by the offered labels."""
    of_name = {declared["name"]: declared for declared in variables(DETAILS)}
    queries = [detail["expr"] for detail in DETAILS["panels"][0]["targets"]]
    tables = prometheus.options(of_name["table"], {})
    assert {"connections", "connections_by_process", "services"} <= set(tables)
    for table in tables:
        by = ",".join(prometheus.options(of_name["by"], {"table": table}))
        for metric in prometheus.options(of_name["metric"], {"table": table}):
            chosen = CHOSEN | KEPT | {"by": by, "metric": metric}
            assert any(prometheus.has_data(promql(query, chosen)) for query in queries), metric
