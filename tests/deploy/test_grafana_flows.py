# SPDX-License-Identifier: Apache-2.0
"""Each query of the flow dashboard runs on a filled store, in the form that Grafana's ClickHouse data source sends."""

from __future__ import annotations

import http.client
import ipaddress
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest

from nettop.collector.columns import ADDRESS, COLUMNS, default_values
from nettop.collector.protobuf import encoded_batch
from nettop.collector.reader import RemoteCollector
from tests.builders.exports import NETFLOW_5, SFLOW
from tests.collecting import Running

from .grafana import CLICKHOUSE, FILES, TimeRange, dashboard, sql, targets, variables

pytest.importorskip("chdb")

(DASHBOARD,) = (made for made in map(dashboard, FILES) if any(t.plugin == CLICKHOUSE for t in targets(made)))
TARGETS = {target.place: target for target in targets(DASHBOARD)}
COUNT = 400
OF_DATAGRAMS = 4
"""Flows that arrive in datagrams."""
NOTHING_HERE = {
    "nettop / Flows from routers / Dropped / A": "the kernel and the spool drop nothing at this load"
}
"""Queries whose result is 0 here, and why."""
NETWORKS = """network,asn,as_name,country,name
198.51.100.0/24,64500,Example,DE,example
203.0.113.0/24,64501,Other,FR,other
2001:db8::/32,64502,Third,NL,third
"""
OWN = "192.0.2.0/24"
HOUR_S, DAY_S = 3600, 86_400
SPANS = {"flows_1m": HOUR_S, "flows_5m": 2 * DAY_S, "flows_1h": 30 * DAY_S}
"""Time range that makes the dashboard read each table."""


def addresses(*texts: str) -> np.ndarray[Any, Any]:
    """Return COUNT addresses, cycling through these."""
    packed = []
    for text in texts:
        address = ipaddress.ip_address(text)
        packed.append(address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed)
    return np.frombuffer(b"".join(packed[at % len(packed)] for at in range(COUNT)), ADDRESS)


def flows(now_s: int) -> bytes:
    """Return flows of the last minutes, as posted by another producer, with values in all columns that queries read."""
    made = {column.name: default_values(column.name, COUNT) for column in COLUMNS}
    at = np.arange(COUNT)
    made["received"][:] = (now_s - 60 - at % 600) * 1000
    made["exporter"] = addresses("192.0.2.250", "2001:db8::fe")
    made["src"] = addresses("192.0.2.1", "198.51.100.2", "203.0.113.3", "2001:db8::4", "192.0.2.5")
    made["dst"] = addresses("198.51.100.2", "192.0.2.1", "192.0.2.5", "198.51.100.9")
    made["next_hop"] = addresses("203.0.113.254")
    for name, values in {
        "etype": (0x0800, 0x86DD),
        "protocol": (6, 17, 1, 58, 132, 200),
        "src_port": (443, 50_000, 53, 0),
        "dst_port": (50_001, 443, 22),
        "bytes": (64, 1500, 9000, 100_000),
        "packets": (1, 1, 6, 100),
        "tcp_flags": (2, 18, 17),
        "ttl": (64, 128, 255),
        "src_vlan": (10, 20),
        "in_if": (1, 2, 3),
        "out_if": (2, 1),
        "sampling_rate": (1000, 1),
    }.items():
        made[name][:] = np.array(values, made[name].dtype)[at % len(values)]
    return encoded_batch(made, 0, COUNT)


CHOICES = {
    "exporter": ("::ffff:192.0.2.250", "::ffff:192.0.2.99"),
    "side": ("in", "unknown"),
    "address": ("198.51.100.2", "198.51.100.77"),
    "as": ("64500", "64999"),
    "country": ("FR", "XX"),
    "port": ("443", "9"),
}
"""For each variable a value that some flows have, and one that none has."""


class Filled:
    """A collector whose store has the flows, and the dashboard's variables."""

    def __init__(self, running: Running, now_s: int) -> None:
        self._running, self._now_s = running, now_s
        self._chosen: dict[int, dict[str, str]] = {}

    def time(self, span_s: int) -> TimeRange:
        """Return a time range that covers the last `span_s` seconds and the ledger."""
        return TimeRange(self._now_s - span_s, self._now_s + 60)

    def send(self, text: str, form: str = "Native") -> bytes:
        """Send a query as ClickHouse's Go client, used by the data source, does; return the answer."""
        parameters = {"database": "nettop", "default_format": form, "client_protocol_version": 54_483}
        collector: RemoteCollector = self._running.collector
        status, answer = collector._answer("POST", "/?" + urlencode(parameters), text.encode())
        assert status == http.client.OK, f"{answer.decode(errors='replace')}\n{text}"
        return answer

    def rows(self, text: str) -> list[list[Any]]:
        """Return a query's rows."""
        return [json.loads(line) for line in self.send(text, "JSONCompactEachRow").splitlines()]

    def chosen(self, span_s: int) -> dict[str, str]:
        """Return the variables' values if the user has chosen none."""
        if span_s not in self._chosen:
            chosen = {variable["name"]: "" for variable in DASHBOARD["templating"]["list"]}
            for variable in variables(DASHBOARD):
                values = self.rows(sql(variable["query"], chosen, self.time(span_s)))
                assert values, variable["name"]
                if variable.get("hide"):
                    ((chosen[variable["name"]],),) = values
            self._chosen[span_s] = chosen
        return self._chosen[span_s]


def has_value(row: list[Any]) -> bool:
    """Return whether a row has a value besides its time."""
    return any(value not in (None, 0, "", "0", "1970-01-01 00:00:00.000") for value in row)


@pytest.fixture(scope="module")
def filled() -> Iterator[Filled]:
    """Run a collector with flows of the last minutes in its store."""
    now_s = int(time.time())
    with tempfile.TemporaryDirectory(prefix="nettop-grafana") as name:
        # A collector started as root gives its directory to the user that it switches to.
        folder = Path(name)
        folder.chmod(0o755)
        networks = folder / "networks.csv"
        networks.write_text(NETWORKS)
        options = ("--networks", str(networks), "--own-network", OWN)
        with Running(folder / "flows", *options) as running:
            status, answer = running.collector._answer("POST", "/ingest/flows", flows(now_s))
            assert (status, json.loads(answer)) == (http.client.OK, {"accepted": COUNT})
            running.send(NETFLOW_5, SFLOW, b"\0\1rubbish")
            running.stored(COUNT + OF_DATAGRAMS)
            yield Filled(running, now_s)


def test_the_rollup_fits_the_time_range(filled: Filled) -> None:
    """The time range selects the rollup, and a graph has at most 600 points."""
    for table, span_s in SPANS.items():
        chosen = filled.chosen(span_s)
        assert chosen["table"] == table
        assert span_s / int(chosen["step"]) <= 600


def test_each_query_has_rows(filled: Filled) -> None:
    """Each query returns rows for all exporters and sides, from each rollup table."""
    without = set()
    for span_s in SPANS.values():
        chosen, time_range = filled.chosen(span_s), filled.time(span_s)
        for place, target in TARGETS.items():
            rows = filled.rows(sql(target.text, chosen, time_range))
            assert rows, place
            if not any(map(has_value, rows)):
                without.add(place)
    assert without == NOTHING_HERE.keys()


def test_each_query_applies_the_variables(filled: Filled) -> None:
    """Each query returns rows for a value that flows have, and none for another."""
    chosen, time_range = filled.chosen(HOUR_S), filled.time(HOUR_S)
    used = set()
    for place, target in TARGETS.items():
        assert filled.send(sql(target.text, chosen, time_range))
        for name in (choice for choice in CHOICES if f", ${choice})" in target.text):
            used.add(name)
            some, none = (
                filled.rows(sql(target.text, chosen | {name: value}, time_range)) for value in CHOICES[name]
            )
            assert any(map(has_value, some)), (place, name)
            assert not any(map(has_value, none)), (place, name)
    assert used == CHOICES.keys()


def test_names_beside_numbers(filled: Filled) -> None:
    """Autonomous systems have the names of the networks file, and protocols their names."""
    chosen, time_range = filled.chosen(HOUR_S), filled.time(HOUR_S)
    for panel, names in (
        ("Largest source AS", {"AS64500 Example", "AS64501 Other", "AS64502 Third"}),
        ("Exporters' protocols and sampling", {"producer", "NetFlow 5", "sFlow 5"}),
    ):
        (target,) = (panel_target for place, panel_target in TARGETS.items() if f" / {panel} / " in place)
        shown = {value for row in filled.rows(sql(target.text, chosen, time_range)) for value in row}
        assert names <= shown, shown


def test_the_data_source_connects(filled: Filled) -> None:
    """The queries of the Go client's handshake, of the data source and of its test button are answered."""
    for text in (
        "SELECT displayName(), version(), revision(), timezone()",
        "SELECT version()",
        "SELECT 1",
    ):
        assert filled.send(text)
