# SPDX-License-Identifier: Apache-2.0
"""Metrics: their names, series that never decrease and always add up, histograms, and both Prometheus formats."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.applications import Starlette

from nettop.engine.session import Session
from nettop.query.filter import parse_filter
from nettop.serve.api.traffic import HOST, Traffic
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.exposition import metrics_routes
from nettop.serve.metrics.families import ROWS, chosen_edges, count_families, series_sets
from nettop.serve.metrics.places import WINDOW_S
from nettop.serve.metrics.series import (
    EVICTED,
    OTHERS,
    CountedView,
    SeriesTotals,
    group_increments,
    reading_view,
)
from nettop.serve.metrics.totals import Totals
from nettop.serve.problems import application
from nettop.serve.served import Served
from nettop.settings import MAX_INTERVAL_S
from nettop.snapshots import lenses
from nettop.snapshots.bandwidth import INTERFACES, PROTOCOL_TABLE, SERVICE_TABLE
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.latency import BUCKETS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Field, Kind, Lens, Metrics, Table
from nettop.snapshots.snapshot import Ended, Frame, Snapshot, TextTable
from nettop.snapshots.source import SourceOptions
from tests.unit.build import TAKEN_NS, Row, make_rows
from tests.unit.logging_run import until
from tests.unit.scripted import Scripted
from tests.unit.serving import make_served

DEADLINE_S = 60.0
EVERY_SET = [declared for lens in (*lenses(), SELF) for declared in series_sets(lens)]
WAITS = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
JOBS = Table(
    name="jobs",
    fields=(
        Field("id", Kind.KEY, "ID", "number of the row", "u8"),
        Field("user", Kind.TEXT, "USER", "whose it is", "u4"),
        Field("bytes_sent", Kind.COUNTER, "SENT", "bytes it sent", "u8", "bytes"),
        Field("bytes_received", Kind.COUNTER, "RECEIVED", "bytes it received", "u8", "bytes"),
        Field("waits", Kind.HISTOGRAM, "WAITS", "how long it waited", WAITS.dtype, "ns", buckets=WAITS),
        Field("open", Kind.GAUGE, "OPEN", "what it has open", "u4"),
    ),
    key="id",
    screen=("id",),
    text=("id",),
    sort="id",
    text_sort="id",
    begins_at_zero=True,
)  # fmt: skip


def lens_of(*metrics: Metrics) -> Lens:
    """Return a lens whose table declares these metrics; without any it declares nothing."""
    return Lens("work", "Work", 9, "9", "what works?", (replace(JOBS, metrics=metrics or None),))


def reading(
    lens: Lens,
    rows: Sequence[Row],
    at_s: float,
    texts: dict[str, TextTable] | None = None,
    **of_snapshot: Any,
) -> Snapshot:
    """Return a snapshot of the lens."""
    taken_ns = TAKEN_NS + round(at_s * 1e9)
    made = make_rows(sorted(rows, key=lambda row: row["id"]), lens.main, taken_ns, (), texts)
    return Snapshot(lens.id, taken_ns, taken_ns, {lens.main.name: made}, **of_snapshot)


def job(number: int, user: str | None, sent: int = 0, **others: Any) -> Row:
    """Return a row."""
    return {"id": number, "user": user, "bytes_sent": sent, "bytes_received": 0} | others


def values(totals: SeriesTotals, column: str = "bytes_sent") -> dict[str, float]:
    """Return the value of each series, by its only label."""
    known = ((key, totals.value(column, slot)) for key, slot in totals.series())
    return {key[0]: float(value) for key, value in known if value is not None}


class Adding:
    """Totals of a set, fed one reading after the other."""

    def __init__(self, lens: Lens, most: int, filter_text: str = "") -> None:
        self.lens = lens
        self.totals = [
            SeriesTotals(declared, most if declared.metrics.top else declared.metrics.limit)
            for declared in series_sets(lens)
        ]
        self.shown = parse_filter(lens.main, filter_text)
        self.before: Snapshot | None = None
        self.at_s = 0.0

    def add(self, rows: Sequence[Row], at_s: float | None = None, **of_snapshot: Any) -> None:
        """Add the next reading, a second later unless it says otherwise."""
        self.at_s = self.at_s + 1 if at_s is None else at_s
        now = reading(self.lens, rows, self.at_s, **of_snapshot)
        view = reading_view(Frame(now), self.before, self.lens.main)
        counted = CountedView(view, self.shown.mask(view))
        for totals in self.totals:
            totals.add(group_increments(totals.declared, counted), self.at_s)
        self.before = now


TOP = Metrics(("user",), ("bytes_sent", "bytes_received"), prefix="work_by_user", top="user")
IN_ALL = Metrics(("id",), ("bytes_sent",), prefix="work")

# --- names ----------------------------------------------------------------------------------------------------


def test_names_are_legal_and_used_once() -> None:
    """A metric has one name; a counter ends in _total, times are in seconds, sizes in bytes."""
    families = [family for declared in EVERY_SET for family in declared.all_families]
    families += [family for lens in lenses() for family in count_families(lens)]
    names = [family.sample_name for family in families]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for family in families:
        assert re.fullmatch(r"nettop(_[a-z0-9]+)+", family.sample_name)
        assert family.sample_name.endswith("_total") == (family.kind is Kind.COUNTER)
        assert not re.search(r"_(ns|us|ms)(_|$)|_time$", family.sample_name)
        assert family.help


def test_names_and_columns() -> None:
    """Directions and entry points are labels."""
    by_name = {f.sample_name: (d, f) for d in EVERY_SET for f in d.all_families}
    declared, family = by_name["nettop_bandwidth_bytes_total"]
    assert declared.metrics.labels == ("namespace", "interface", "backing")
    assert (family.label, dict(family.columns)) == (
        "direction",
        {"received": "bytes_received", "sent": "bytes_sent"},
    )
    _, family = by_name["nettop_cpu_network_seconds_total"]
    assert family.label == "entry"
    assert dict(family.columns)["RX softirq"] == "rx_softirq_ns"
    assert family.divisor == 1e9
    assert by_name["nettop_latency_seconds"][1].buckets is BUCKETS
    assert by_name["nettop_connections_by_process_bytes_total"][0].metrics.top == "process"


def test_a_table_that_declares_nothing() -> None:
    """A table without declarations exports every number, labelled by its key texts, without row IDs."""
    (declared,) = series_sets(lens_of())
    assert declared.metrics.labels == ("user",)
    names = ["nettop_work_bytes", "nettop_work_waits_seconds", "nettop_work_open"]
    assert [family.name for family in declared.families] == names


# --- adding up ------------------------------------------------------------------------------------------------


def test_counters() -> None:
    """A new row counts from 0; one that goes leaves its counts; one that returns adds to them."""
    adding = Adding(lens_of(IN_ALL, TOP), 9)
    adding.add([job(1, "ann", 10), job(2, "bob", 5), job(3, "ann", 1)])
    adding.add([job(1, "ann", 15)])
    adding.add([job(1, "ann", 15), job(4, "bob", 7)])
    adding.add([job(1, "ann", 3), job(4, "bob", 8)])  # a counter that went back has counted nothing
    adding.add([job(1, "ann", 4), job(4, "bob", 8)])
    in_all, top = adding.totals
    assert values(top) == {"ann": 17, "bob": 13, OTHERS: 0}
    assert values(in_all) == {"1": 16, "2": 5, "3": 1, "4": 8}


def test_counts_of_a_group_that_is_gone() -> None:
    """Move the counts of a group that is gone for a whole window to those of evicted series."""
    adding = Adding(lens_of(IN_ALL), 9)
    adding.add([job(1, "ann", 10)])
    adding.add([])
    adding.add([job(2, "bob", 3)], at_s=2 * WINDOW_S)
    assert values(adding.totals[0]) == {"2": 3, EVICTED: 10}


def test_sockets_that_ended_between_readings_are_counted() -> None:
    """Connections that end between readings count under their labels if listed, else under nobody's."""
    adding = Adding(lens_of(TOP), 9)
    adding.add([job(1, "ann", 10)])
    texts = {"user": TextTable()}
    ended = ([job(2, "bob", 4)], [job(0, None, 9)])
    listed, total = (make_rows(rows, adding.lens.main, TAKEN_NS + 2_000_000_000, (), texts) for rows in ended)
    adding.add([job(1, "ann", 11)], ended={"jobs": Ended((listed,), total)}, texts=texts)
    assert values(adding.totals[0]) == {"ann": 11, "bob": 4, "(none)": 5, OTHERS: 0}


def test_the_largest_are_listed() -> None:
    """The largest groups are listed and the others are one series, so that the sum is that of all rows."""
    adding = Adding(lens_of(TOP), 1)
    (top,) = adding.totals
    adding.add([job(1, "ann", 10), job(2, "eve", 1), job(3, "bob", 5), job(4, "amy", 2)])
    assert values(top) == {"ann": 10, "bob": 5, "amy": 2, OTHERS: 1}
    adding.add([job(1, "ann", 10), job(2, "eve", 1), job(3, "bob", 6), job(4, "amy", 2)])
    top.mark_listed()
    adding.add([job(1, "ann", 10), job(2, "eve", 101), job(3, "bob", 6), job(4, "amy", 2)])
    assert values(top) == {"ann": 10, "eve": 100, "bob": 6, OTHERS: 1, EVICTED: 2}


def test_a_small_newcomer_does_not_end_another_series() -> None:
    """Without a free place, a small new group counts in the series of the others."""
    adding = Adding(lens_of(TOP), 1)
    (top,) = adding.totals
    adding.add([job(1, "ann", 10), job(2, "eve", 5), job(3, "bob", 1)])
    assert values(top) == {"ann": 10, "eve": 5, "bob": 1, OTHERS: 0}
    adding.add([job(1, "ann", 10), job(2, "eve", 5), job(3, "bob", 1), job(4, "amy", 2), job(5, "abe", 1)])
    assert values(top) == {"ann": 10, "eve": 5, "bob": 1, OTHERS: 3}


def test_clients_of_other_metrics_get_a_free_place() -> None:
    """A group with only other metrics gets a free place."""
    adding = Adding(lens_of(Metrics(("user",), ("bytes_sent", "open"), top="user")), 1)
    (top,) = adding.totals
    adding.add([job(1, "ann", 10), job(2, "stuck", open=3), job(3, "idle", open=0)])
    assert values(top, "open") == {"stuck": 3, OTHERS: 0}
    top.mark_listed()
    adding.add([job(1, "ann", 20), job(2, "stuck", open=3), job(4, "eve", 9), job(5, "amy", 4)])
    assert values(top) == {"ann": 20, "stuck": 0, "eve": 9, OTHERS: 4}


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        (["", None], {"(none)": 6, OTHERS: 0}),
        ([OTHERS, EVICTED, "eve"], {OTHERS: 6, "eve": 4}),
    ],
)
def test_labels_that_are_taken(users: list[str | None], expected: dict[str, int]) -> None:
    """Treat an empty label as missing, and merge a group named like the series of the others into that series."""
    adding = Adding(lens_of(TOP), 3)
    adding.add([job(at, user, 2 * at if at < 3 else 4) for at, user in enumerate(users, 1)])
    assert values(adding.totals[0]) == expected


USERS = st.sampled_from([*"abcdefgh", OTHERS, EVICTED])
READINGS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(1, 12), st.tuples(USERS, st.integers(0, 1 << 50)), max_size=12),
        st.sampled_from([1.0, 60.0, WINDOW_S]),
    ),
    max_size=8,
)


@given(READINGS, st.integers(1, 4))
def test_series_add_up_and_never_fall(readings: list[Any], most: int) -> None:
    """At each scrape all series sum up to the counts, the limit of series holds, and none decreases.

    A series that was evicted is missing for at least one scrape.
    """
    adding = Adding(lens_of(IN_ALL, TOP), most)
    in_all, top = adding.totals
    counts: dict[int, tuple[str, int]] = {}
    counted, before = 0, {}
    for added, pause_s in readings:
        counted += sum(count for _, count in added.values())
        for number, (user, count) in added.items():
            owner, sum_before = counts.get(number, (user, 0))
            counts[number] = owner, sum_before + count
        rows = [job(number, *owned) for number, owned in counts.items()]
        adding.add(rows, at_s=adding.at_s + pause_s)
        listed = values(top)
        assert sum(listed.values()) == sum(values(in_all).values()) == counted
        assert len(listed.keys() - {OTHERS, EVICTED}) <= 2 * most + most % 2
        fallen = [user for user, number in before.items() if user in listed and listed[user] < number]
        assert fallen == []
        before = listed
        top.mark_listed()


def test_the_filter() -> None:
    """Filtered rows are in no series, not even that of the others."""
    adding = Adding(lens_of(TOP), 1, "user!=eve")
    adding.add([job(1, "ann", 10), job(2, "bob", 5), job(3, "eve", 100)])
    assert values(adding.totals[0]) == {"ann": 10, "bob": 5, OTHERS: 0}


def test_a_finding_that_another_explains_is_no_series() -> None:
    """One incident is one alert."""
    adding = Adding(FINDINGS, 10)
    (totals,) = [total for total in adding.totals if total.declared.table is FINDINGS.main]
    cause = {"id": 1, "kind": "data unread", "severity": "problem", "process": "reportd"}
    adding.totals = [totals]
    adding.add(
        [cause, {"id": 2, "kind": "send queue stuck", "severity": "problem", "process": "web", "cause": 1}]
    )
    assert [key[0] for key, _ in totals.series()] == ["data unread"]


def test_gauges_are_of_the_last_reading() -> None:
    """Gauges are sums of the last reading."""
    adding = Adding(lens_of(Metrics(("user",), ("open",), "jobs")), 9)
    adding.add([job(1, "ann", open=3), job(2, "ann", open=4), job(3, "bob", open=None)])
    (totals,) = adding.totals
    assert values(totals, "open") == {"ann": 7}
    assert {key[0]: totals.value(ROWS, slot) for key, slot in totals.series()} == {"ann": 2, "bob": 1}
    adding.add([job(2, "ann", open=5)])
    assert values(totals, "open") == {"ann": 5}
    assert {key[0]: totals.value(ROWS, slot) for key, slot in totals.series()} == {"ann": 1, "bob": 0}


@given(st.lists(st.integers(0, 1 << 36), max_size=50))
@settings(max_examples=100)
def test_histograms(waits: list[int]) -> None:
    """A bucket has the counts below its edge, one of the fine buckets'; the last has all."""
    counts = np.bincount(WAITS.places(np.array(waits, np.float64)), minlength=WAITS.count).astype(np.uint64)
    adding = Adding(lens_of(Metrics(("user",), ("waits",))), 9)
    adding.add([job(1, "ann", waits=counts)])
    (totals,) = adding.totals
    ((_, slot),) = totals.series()
    value = totals.value("waits", slot)
    assert value is not None
    *listed, together = value.tolist()
    edges = [WAITS.edges[at] for at in chosen_edges(WAITS)]
    assert edges == [4**power for power in range(3, 18)]
    assert np.cumsum(listed).tolist() == [*(sum(w < edge for w in waits) for edge in edges), len(waits)]
    assert together == (counts * WAITS.middles).sum()


# --- the formats ----------------------------------------------------------------------------------------------


LISTED = Metrics(("user",), ("bytes_sent", "bytes_received", "waits", "open"), "jobs", prefix="work")
HOSTILE = 'a"b\\c\n<img src=x onerror=alert(1)>{}'


async def get(app: Starlette, **headers: str) -> httpx.Response:
    """Return the response to a scrape."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.get("/metrics", headers=headers)


def unread(lens: Lens, *published: Snapshot) -> tuple[Served, Starlette]:
    """Return a lens of which a session that does not run has published this, and the metrics."""
    served = make_served(*published, lenses=(lens,))
    totals = Totals(served, {}, SourceOptions())
    return served, application(metrics_routes(served, totals, ServerCounts()))


def scraped(*snapshots: Snapshot, lens: Lens, accept: str = "") -> tuple[str, str]:
    """Return the metrics after all these readings, and their media type."""
    with Session(MAX_INTERVAL_S, lambda name: Scripted(snapshots)) as session:
        served = Served(session, (lens,))
        totals = Totals(served, {}, SourceOptions())
        with totals.running():
            for snapshot in snapshots:
                until(lambda: totals.last.get(lens.id) is snapshot)  # noqa: B023 - called at once
                session.sample_now().result(DEADLINE_S)
            app = application(metrics_routes(served, totals, ServerCounts()))
            answer = asyncio.run(get(app, **({"Accept": accept} if accept else {})))
    assert answer.status_code == 200
    return answer.text, answer.headers["content-type"]


@pytest.mark.parametrize(
    ("accept", "media_type", "parse"),
    [
        ("", "text/plain", parse_text),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text", parse_openmetrics),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "text/plain",
            parse_text,
        ),
    ],
    ids=["text", "OpenMetrics", "both"],
)
def test_both_formats(accept: str, media_type: str, parse: Callable[[str], Iterable[Any]]) -> None:
    """Prometheus's own parser reads the counts; texts cannot break out of them."""
    lens = lens_of(LISTED)
    counts = np.zeros(WAITS.count, np.uint64)
    counts[[0, 100]] = 3, 2
    rows = [
        job(1, HOSTILE, 10, waits=counts, open=4),
        job(2, "bob", 7, bytes_received=None, waits=np.zeros_like(counts)),
    ]
    text, content_type = scraped(reading(lens, rows, 0), lens=lens, accept=accept)
    assert content_type.startswith(media_type)
    samples = {(s.name, *sorted(s.labels.items())): s.value for family in parse(text) for s in family.samples}
    user = ("user", HOSTILE)
    assert samples["nettop_work_bytes_total", ("direction", "sent"), user] == 10
    assert samples["nettop_work_bytes_total", ("direction", "sent"), ("user", "bob")] == 7
    assert ("nettop_work_bytes_total", ("direction", "received"), ("user", "bob")) not in samples
    assert samples["nettop_work_waits_seconds_bucket", ("le", "6.4e-08"), user] == 3
    assert samples["nettop_work_waits_seconds_bucket", ("le", "+Inf"), user] == 5
    assert samples["nettop_work_waits_seconds_count", user] == 5
    of_bob = [
        key for key in samples if key[0].startswith("nettop_work_waits_seconds_bucket") and "bob" in key[-1]
    ]
    assert of_bob == [("nettop_work_waits_seconds_bucket", ("le", "+Inf"), ("user", "bob"))]
    assert samples["nettop_work_waits_seconds_count", ("user", "bob")] == 0
    assert samples["nettop_work_open", user] == 4
    assert samples["nettop_work_jobs", user] == 1
    assert samples["nettop_lens_up", ("lens", "work")] == 1


def test_unavailable_fields_have_no_series() -> None:
    """An unavailable metric has neither samples nor a name; the hook's series has the reason."""
    lens = lens_of(LISTED)
    hook = HookStatus("waits", None, (("fentry", "no"),), ("waits", "bytes_received"))
    rows = [job(1, "ann", 10, bytes_received=4, waits=np.ones(WAITS.count, np.uint64))]
    text, _ = scraped(reading(lens, rows, 0, hooks=(hook,)), lens=lens)
    assert "waits_seconds" not in text
    assert 'direction="received"' not in text
    assert 'nettop_hook_info{hook="waits",lens="work",mechanism="n/a"} 1.0' in text


def test_not_before_every_lens_was_read() -> None:
    """Until every lens was read there are no metrics: missing series would look ended."""
    lens = lens_of(LISTED)
    served, app = unread(lens)
    answer = asyncio.run(get(app))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    served.session.bus.publish(reading(lens, [], 0))
    assert asyncio.run(get(app)).status_code == 200


def test_compression() -> None:
    """The text is compressed only on request, as by Prometheus."""
    lens = lens_of(LISTED)
    _, app = unread(lens, reading(lens, [], 0))
    compressed, plain = (
        asyncio.run(get(app, **{"Accept-Encoding": encoding})) for encoding in ("gzip", "identity")
    )
    assert (compressed.headers["content-encoding"], compressed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert "content-encoding" not in plain.headers
    assert compressed.num_bytes_downloaded < plain.num_bytes_downloaded / 2
    names = [{line.split()[0] for line in response.text.splitlines()} for response in (compressed, plain)]
    assert names[0] == names[1]


def test_losses_and_counts_of_a_lens() -> None:
    """Losses and counts of a lens add up too, and never decrease."""
    lens = replace(
        lens_of(LISTED),
        counts=(Field("opened", Kind.COUNTER, "O", "opened"), Field("now", Kind.GAUGE, "N", "now")),
    )
    readings = [
        reading(lens, [job(1, "ann")], at, counts={"opened": count, "now": count}, lost={"events": lost})
        for at, count, lost in ((0, 3, 1), (1, 5, 1), (2, 2, 4), (3, 3, 5))
    ]
    text, _ = scraped(*readings, lens=lens)
    assert "nettop_work_opened_total 6.0" in text
    assert "nettop_work_now 3.0" in text
    assert 'nettop_lost_total{lens="work",what="events"} 5.0' in text


# --- traffic --------------------------------------------------------------------------------------------------

OWN = os.stat("/proc/self/ns/net").st_ino


def interface(number: int, name: str, received: int, sent: int, **others: Any) -> Row:
    """Return a row of the table of interfaces; each packet has 100 bytes."""
    counted = {"bytes_received": received, "bytes_sent": sent}
    packets = {"packets_received": received // 100, "packets_sent": sent // 100}
    row = {"id": number, "interface": name, "netns": OWN, "backing": "uplink", "mode": "TCX"}
    return row | counted | packets | others


def part(number: int, name: str, of: Row, received: int, sent: int) -> Row:
    """Return a row of the tables of protocols and services."""
    packets = {"packets_received": received // 100, "packets_sent": sent // 100}
    return {"id": number, "interface": name, "bytes_received": received, "bytes_sent": sent} | packets | of


def bandwidth(at_s: float, interfaces: list[Row], protocols: list[Row], services: list[Row]) -> Snapshot:
    """Return a snapshot of the bandwidth lens."""
    taken_ns = TAKEN_NS + round(at_s * 1e9)
    tables = ((INTERFACES, interfaces), (PROTOCOL_TABLE, protocols), (SERVICE_TABLE, services))
    rows = {table.name: make_rows(of_table, table, taken_ns) for table, of_table in tables}
    return Snapshot("bandwidth", taken_ns, taken_ns, rows)


def add(traffic: Traffic, now: Snapshot, before: Snapshot | None) -> None:
    """Add what a snapshot counted since another."""
    tables = (INTERFACES, PROTOCOL_TABLE, SERVICE_TABLE)
    views = {table.name: reading_view(Frame(now), before, table) for table in tables}
    traffic.add(views, (now.boot_ns - before.boot_ns) / 1e9 if before else 0)


def test_traffic() -> None:
    """Traffic has both directions of the uplinks, or of one named interface; the peak is that of an interval."""
    traffic = Traffic()
    before = None
    for at_s, received, tcp, http in ((0, 0, 0, 0), (2, 4000, 2000, 1000), (4, 5000, 2500, 1000)):
        now = bandwidth(
            at_s,
            [
                interface(1, "eth0", received, 600),
                interface(2, "veth0", 7000, 7000, backing="virtual"),
                interface(3, "eth0", 9000, 9000, netns=OWN + 1),
            ],
            [
                part(1, "eth0", {"protocol": "tcp"}, tcp, 100),
                part(2, "eth0", {"protocol": "udp"}, 50, 0),
                part(3, "veth0", {"protocol": "tcp"}, 90, 0),
            ],
            [part(1, "eth0", {"service": "HTTP"}, http, 0), part(2, "eth0", {"service": "(other)"}, 1, 1)],
        )
        add(traffic, now, before)
        before = now
    realtime = traffic.by_name[HOST].realtime(1.0)
    parts = {"": (4000.0, 5.0), "tcp_": (2000.0, 2.5), "http_": (0.0, 0.0), "https_": (0.0, 0.0)}
    rates = {f"{name}bandwidth_bps": bits for name, (bits, _) in parts.items()}
    rates |= {f"{name}packets_per_sec": packets for name, (_, packets) in parts.items()}
    assert realtime == rates | {"total_packets": 56, "total_bytes": 5600}
    assert traffic.by_name["eth0"].realtime(1.0) == realtime
    summary = traffic.by_name[HOST].summary(1.0)
    assert summary["peak_bandwidth_bps"] == 16_000
    assert summary["tcp_percentage"] == 100 * 2600 / 5600
    assert summary["http_percentage"] == 100 * 1000 / 5600
    of_veth = traffic.by_name["veth0"].realtime(1.0)
    assert (of_veth["total_bytes"], of_veth["bandwidth_bps"]) == (14_000, 0)
    assert traffic.by_name.keys() == {HOST, "eth0", "veth0"}


def test_interfaces_that_are_gone() -> None:
    """Removed interfaces are forgotten, and their traffic stays in the host's sum."""
    traffic = Traffic()
    before = None
    for at_s, names in enumerate((["eth0", "eth1"], ["eth0"], ["eth0"])):
        rows = [interface(number, name, 500, 0) for number, name in enumerate(names, 1)]
        now = bandwidth(at_s, rows, [], [])
        add(traffic, now, before)
        before = now
    assert traffic.by_name.keys() == {HOST, "eth0"}
    of_host = traffic.by_name[HOST].realtime(1.0)
    assert of_host["total_bytes"] == 1000


def test_parts_that_are_not_counted() -> None:
    """With only the interface's own counters, the TCP share is unknown."""
    traffic = Traffic()
    before = bandwidth(0, [interface(1, "eth0", 0, 0, mode="counters")], [], [])
    now = bandwidth(1, [interface(1, "eth0", 500, 0, mode="counters")], [], [])
    add(traffic, before, None)
    add(traffic, now, before)
    realtime, summary = traffic.by_name[HOST].realtime(1.0), traffic.by_name[HOST].summary(1.0)
    assert (realtime["bandwidth_bps"], realtime["tcp_bandwidth_bps"]) == (4000.0, None)
    assert summary["tcp_percentage"] is None
