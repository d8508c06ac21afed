# SPDX-License-Identifier: Apache-2.0
"""Readings of several hosts as one snapshot: each row with its host, references, totals and rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.hosts.merging import Moment, Pair, merge, merge_before, of_host
from nettop.query.filter import parse_filter
from nettop.query.findings import parsed_rules
from nettop.query.query import Query, Sort
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots import find_table, own_lenses, several_hosts
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.cpu import CPUS
from nettop.snapshots.cpu import LENS as CPU
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.hosts import HOST, with_host
from nettop.snapshots.schema import Field, Kind, Lens, Severity, Table
from nettop.snapshots.snapshot import Ended, Frame, Rows, Snapshot
from tests.unit.build import Row, make_rows
from tests.unit.random_frames import random_frame
from tests.unit.recorded import SECOND_NS, Taken, random_readings

LENSES = {lens.id: lens for lens in own_lenses() if lens.of_hosts}
KEPT = {
    f"{lens.id}.{table.name}": (lens, table) for lens in LENSES.values() for table in lens.tables if not table.append
}  # fmt: skip
MOMENT = Moment(1_795_000_100 * SECOND_NS, 5_000 * SECOND_NS, 4_000 * SECOND_NS)
NAMES = ("web1", "admin@db-2", "größer")
INTERVALS_S = (1.0, 2.5, 1.0)
seeds = st.integers(0, 2**32)


# --- what hosts read ----------------------------------------------------------------------------------------------


def readings_of(lens: Lens, seed: int) -> dict[str, list[Taken]]:
    """Return three readings of each host, none of which shows another variant of a table than the others."""
    return {
        host: [plain(taken) for taken in random_readings(lens, seed + number, 3)]
        for number, host in enumerate(NAMES)
    }


def plain(taken: Taken) -> Taken:
    """Return the reading with tables that can show only one thing."""
    tables = {name: replace(rows, variant="") for name, rows in taken.snapshot.tables.items()}
    return Taken(replace(taken.snapshot, tables=tables), taken.batches)


def pairs_of(readings: Mapping[str, Sequence[Taken]]) -> dict[str, Pair]:
    """Return the last reading of each host and the one before."""
    return {host: Pair(taken[-1].snapshot, taken[-2].snapshot) for host, taken in readings.items()}


def frame_of(lens: Lens, hosts: Mapping[str, Pair]) -> Frame:
    """Return the merged readings as a frame."""
    return Frame(merge(lens, hosts, MOMENT), merge_before(lens, hosts, MOMENT))


def paced(frame: Frame, interval_s: float) -> Pair:
    """Return the snapshots of a frame as readings so far apart."""
    assert frame.before is not None
    then = frame.before
    return Pair(_at(frame.now, then, interval_s), then)


def hosts_of(table: Table, seed: int) -> dict[str, Pair]:
    """Return random readings of a table on hosts whose intervals differ."""
    return {
        host: paced(random_frame(table, seed + number), interval_s)
        for number, (host, interval_s) in enumerate(zip(NAMES, INTERVALS_S, strict=True))
    }


def _at(snapshot: Snapshot, before: Snapshot, later_s: float) -> Snapshot:
    """Return a snapshot as one that was taken so long after another one."""
    ns = round(later_s * SECOND_NS)
    taken_ns = next(iter(before.tables.values())).taken_ns + ns

    def moved(rows: Rows) -> Rows:
        return replace(rows, taken_ns=taken_ns)

    return replace(
        snapshot,
        boot_ns=before.boot_ns + ns,
        wall_ns=before.wall_ns + ns,
        tables={name: moved(rows) for name, rows in snapshot.tables.items()},
        ended={
            name: Ended(tuple(map(moved, ended.rows)), moved(ended.total), ended.count)
            for name, ended in snapshot.ended.items()
        },
    )


# --- views --------------------------------------------------------------------------------------------------------


def view_of(table: Table, frame: Frame, filter_text: str = "", *, deltas: bool = False) -> View:
    """Return all rows of a table in a frame, with those that have ended."""
    shown = parse_filter(table, filter_text)
    return View(frame, Query(table, Sort(table.key), shown, all_rows=True, deltas=deltas, closed=True))


def totals(view: View, names: Sequence[str]) -> dict[str, float]:
    """Return the totals that are known."""
    every = np.arange(view.size)
    found = {name: view.total(name, every) for name in names}
    return {name: total for name, total in found.items() if total is not None}


def summed(table: Table) -> list[str]:
    """Return the columns that add up: counters, sums of them, and their rates."""
    return [name for name in table.names if _adds_up(table, name)]


def _adds_up(table: Table, name: str) -> bool:
    field = table.by_name.get(name)
    return field is None or field.kind in (Kind.COUNTER, Kind.SUM)


def close_to(expected: Mapping[str, float]) -> Any:
    """Return an approximation that only allows for another order of floating-point additions."""
    return pytest.approx(dict(expected), rel=1e-9, abs=1e-6)


def cells(rows: Rows, fields: Sequence[Field]) -> Counter[tuple[Any, ...]]:
    """Return how often each combination of values is there; a NaN equals itself."""
    columns = [_cells(rows, field) for field in fields]
    return Counter(zip(*columns, strict=True)) if columns else Counter()


def _cells(rows: Rows, field: Field) -> list[Any]:
    column = rows.array[field.name]
    if field.kind is Kind.TEXT:
        texts = rows.texts[field.name]
        return [texts[code] if code < len(texts) else None for code in column]
    return [value.tobytes() for value in column]


def on_host(rows: Rows, host: str) -> Rows:
    """Return the rows of one host."""
    hosts = [rows.texts[HOST.name][code] for code in rows.array[HOST.name]]
    return replace(rows, array=rows.array[np.array([name == host for name in hosts], bool)])


# --- rows ---------------------------------------------------------------------------------------------------------


@given(name=st.sampled_from(list(LENSES)), seed=seeds)
def test_each_row_is_there_with_its_host(name: str, seed: int) -> None:
    """Keep each host's values besides keys and references; keys are unique and sorted."""
    lens = LENSES[name]
    hosts = pairs_of(readings_of(lens, seed))
    merged = merge(with_host(lens), hosts, MOMENT)
    assert merged.hosts == {host: pair.now.boot_ns for host, pair in hosts.items()}
    for table in (table for table in lens.tables if not table.append):
        found = [host for host, pair in hosts.items() if table.name in pair.now.tables]
        assert (table.name in merged.tables) == bool(found)
        if not found:
            continue
        rows = merged.tables[table.name]
        assert (np.diff(rows.array[rows.table.key].astype(object)) > 0).all()
        assert len(rows) == sum(len(hosts[host].now.tables[table.name]) for host in found)
        for host in found:
            own = hosts[host].now
            fields = [field for field in table.stored if has_same_value(field, table, own)]
            assert cells(on_host(rows, host), fields) == cells(own.tables[table.name], fields)


def has_same_value(field: Field, table: Table, snapshot: Snapshot) -> bool:
    """Return whether a host's value is shown as it is: not if it names a row, a finding's rank, or is missing."""
    if table.name == FINDINGS.name and field.name in ("rank", "finding", "filter"):
        return False
    is_number = field.kind is Kind.KEY and np.dtype(field.dtype).itemsize < 8
    return is_number or not (field.kind is Kind.KEY or field.refers or field.name in snapshot.missing)


@given(name=st.sampled_from(list(LENSES)), seed=seeds)
def test_references_still_point_to_the_same_rows(name: str, seed: int) -> None:
    """Map references to the merged key of the same host's row."""
    lens = LENSES[name]
    wide, readings = with_host(lens), readings_of(lens, seed)
    given_keys: list[tuple[str, int, int]] = []
    for (host, taken), table in product(readings.items(), lens.tables):
        merged_table = wide.table(table.name)
        assert merged_table is not None
        for rows in all_rows(taken[-1], table):
            shown = of_host(merged_table, rows, host)
            keys = [rows.table.key, *(field.name for field in table.stored if field.refers)]
            for key in keys:
                named = merged_table.key if key == table.key else key
                columns = rows.array[key].tolist(), shown.array[named].tolist()
                given_keys += [(host, *pair) for pair in zip(*columns, strict=True)]
    known = {(host, key): merged for host, key, merged in given_keys if key < 2**32 - 1}
    assert all(known[host, key] == merged for host, key, merged in given_keys if key < 2**32 - 1)
    assert len(set(known.values())) == len(known)
    assert max(known.values(), default=0) < 2**53
    unknown = 2**64 - 1
    assert all(merged == unknown for _, key, merged in given_keys if key == unknown)


def all_rows(taken: Taken, table: Table) -> Iterator[Rows]:
    """Yield the rows of a table in a reading, also those of events."""
    if table.name in taken.snapshot.tables:
        yield taken.snapshot.tables[table.name]
    yield from (batch for batch in taken.batches if batch.table.name == table.name)


def test_a_cpu_keeps_its_number() -> None:
    """Keep the number of a CPU beside a merged key, also in filters."""
    lens = with_host(CPU)
    rows = make_rows([{"cpu": number} for number in range(3)], CPUS)
    hosts = {host: Pair(Snapshot(lens.id, 0, 1, {CPUS.name: rows}), None) for host in NAMES}
    table = lens.table(CPUS.name)
    assert table is not None
    view = view_of(table, frame_of(lens, hosts), "cpu=2")
    assert Counter(values_of(view, "cpu", np.arange(view.size))) == dict.fromkeys(range(3), len(NAMES))
    assert sorted(values_of(view, HOST.name, view.order)) == sorted(NAMES)


# --- totals and rates ---------------------------------------------------------------------------------------------


@given(name=st.sampled_from(list(KEPT)), seed=seeds, deltas=st.booleans())
def test_totals_are_the_sums_of_the_hosts(name: str, seed: int, deltas: bool) -> None:
    """Sum counters and rates over the hosts' own views, with rows that ended."""
    lens, table = KEPT[name]
    hosts = hosts_of(table, seed)
    wide = with_host(lens)
    merged = view_of(wide.table(table.name) or table, frame_of(wide, hosts), deltas=deltas)
    names = summed(table)
    expected: Counter[str] = Counter()
    for pair in hosts.values():
        expected.update(totals(view_of(table, Frame(pair.now, pair.before), deltas=deltas), names))
    assert totals(merged, names) == close_to(expected)


@given(name=st.sampled_from(list(KEPT)), seed=seeds)
def test_rates_are_those_of_the_host(name: str, seed: int) -> None:
    """Compute rates over each host's own interval."""
    lens, table = KEPT[name]
    wide = with_host(lens)
    hosts = hosts_of(table, seed)
    merged = view_of(wide.table(table.name) or table, frame_of(wide, hosts))
    shown = values_of(merged, HOST.name, np.arange(merged.size))
    for host, pair in hosts.items():
        own = view_of(table, Frame(pair.now, pair.before))
        at = np.array([place for place, each in enumerate(shown) if each == host], int)
        for rate in (rate for rate in table.names if rate not in table.by_name):
            rates = [
                sorted(map(str, values_of(*each)))
                for each in ((merged, rate, at), (own, rate, np.arange(own.size)))
            ]
            assert rates[0] == rates[1], (host, rate)


@given(name=st.sampled_from(list(KEPT)), seed=seeds)
def test_a_host_that_has_just_come_has_no_rates(name: str, seed: int) -> None:
    """Give no rates for a new host, and keep those of others."""
    lens, table = KEPT[name]
    wide = with_host(lens)
    old, new = (paced(random_frame(table, seed + number), 1.0) for number in range(2))
    shown = wide.table(table.name) or table
    alone = view_of(table, Frame(old.now, old.before))
    merged = view_of(shown, frame_of(wide, {"old": old, "new": Pair(new.now, None)}))
    rates = [rate for rate in summed(table) if rate not in table.by_name]
    assert totals(merged, rates) == close_to(totals(alone, rates))
    only = view_of(shown, frame_of(wide, {"new": Pair(new.now, None)}))
    assert totals(only, rates) == {}
    counters = [name for name in summed(table) if name in table.by_name]
    sums = Counter(totals(alone, counters))
    sums.update(totals(view_of(table, Frame(new.now)), counters))
    assert totals(merged, counters) == close_to(sums)


@given(seed=seeds)
def test_rows_of_a_host_that_goes_are_not_closed(seed: int) -> None:
    """Remove rows with their host, without counting them as ended."""
    wide, table = with_host(CONNECTIONS), with_host(CONNECTIONS).tables[0]
    stays, goes = (paced(random_frame(SOCKETS, seed + number), 1.0) for number in range(2))
    both = frame_of(wide, {"stays": stays, "goes": goes})
    later = Pair(_at(stays.now, stays.now, 1.0), stays.now)
    frame = frame_of(wide, {"stays": later})
    query = Query(table, Sort(table.key), parse_filter(table, ""), all_rows=True, closed=True, gone=True)
    first, after = View(both, query), View(frame, query)
    assert "goes" in values_of(first, HOST.name, np.arange(first.size))
    assert set(values_of(after, HOST.name, np.arange(after.size))) <= {"stays"}


def test_the_interval_of_a_snapshot_is_that_of_the_hosts() -> None:
    """Rate counts over the hosts' interval, not the time between merges."""
    wide = with_host(CONNECTIONS)
    hosts = {
        host: Pair(Snapshot(wide.id, 0, 9 * SECOND_NS, {}, counts={"opened": 30}),
                   Snapshot(wide.id, 0, 7 * SECOND_NS, {}, counts={"opened": 10}))
        for host in NAMES
    }  # fmt: skip
    view = view_of(wide.tables[0], frame_of(wide, hosts))
    assert view.count_rate("opened") == 10 * len(NAMES)


# --- what is missing ----------------------------------------------------------------------------------------------


def test_a_column_that_one_host_has_not() -> None:
    """Leave a column unknown on a host that lacks it, and missing if all do."""
    wide = with_host(CONNECTIONS)
    rows = make_rows([{"id": 1, "bytes_sent": 7}])
    old = HookStatus("sockets", None, (("iterator", "too old"),), ("bytes_sent",))
    new = HookStatus("sockets", "iterator", (), ("bytes_sent",))
    ended = {SOCKETS.name: Ended((replace(rows, taken_ns=rows.taken_ns + 1),), rows, 1)}
    before = Snapshot(wide.id, 0, 0, {SOCKETS.name: rows})
    pairs = {
        name: Pair(Snapshot(wide.id, 0, 1, {SOCKETS.name: rows}, hooks=(hook,), ended=ended), before)
        for name, hook in (("new", new), ("old", old))
    }
    view = view_of(wide.tables[0], frame_of(wide, pairs))
    shown = dict(
        zip(*(values_of(view, name, np.arange(2)) for name in (HOST.name, "bytes_sent")), strict=True)
    )
    assert shown == {"new": 7, "old": None}
    assert view.frame.now.missing == {}
    left = view.frame.now.ended[SOCKETS.name]
    assert sorted(left.total.array["bytes_sent"].tolist()) == [7, 2**64 - 1]
    by_host = {rows.texts[HOST.name][0]: rows.array["bytes_sent"][0] for rows in left.rows}
    assert by_host == {"new": 7, "old": 2**64 - 1}
    assert "bytes_sent" in merge(wide, {"old": pairs["old"]}, MOMENT).missing


def test_losses_gaps_and_counts() -> None:
    """Counts and losses add up, facts are the largest, and gaps name their host."""
    each = [
        Snapshot("connections", 0, 1, {}, counts={"drops": number, "sampled_hz": 997}, lost={"events": number},
                 gaps={"namespace 7": "may not be entered"})
        for number in (1, 2)
    ]  # fmt: skip
    merged = merge(
        with_host(CONNECTIONS),
        {host: Pair(now, None) for host, now in zip(NAMES, each, strict=False)},
        MOMENT,
    )
    assert merged.counts == {"drops": 3, "sampled_hz": 997}
    assert merged.lost == {"events": 3}
    assert merged.gaps == {f"{host} namespace 7": "may not be entered" for host in NAMES[:2]}


# --- findings -----------------------------------------------------------------------------------------------------


def finding(rank: int, severity: Severity, **values: Any) -> Row:
    """Return a finding as a host lists it."""
    return {
        "id": rank,
        "rank": rank,
        "severity": severity.value,
        "finding": f"{severity.value} {rank}",
        "filter": "rtt>10ms",
        "view": "connections",
        "unseen": 0,
    } | values


def merged_findings(hosts: Mapping[str, Sequence[Row]]) -> View:
    """Return the findings of these hosts in one table."""
    wide = with_host(FINDINGS_LENS)
    pairs = {
        host: Pair(Snapshot(wide.id, 0, 1, {FINDINGS.name: make_rows(rows, FINDINGS)}), None)
        for host, rows in hosts.items()
    }
    table = wide.table(FINDINGS.name)
    assert table is not None
    frame = frame_of(wide, pairs)
    return View(frame, Query(table, Sort("rank"), parse_filter(table, ""), all_rows=True))


def test_findings_are_ranked_over_hosts() -> None:
    """The worst first, whoever has them, in the order of each host; those no longer seen are last."""
    view = merged_findings(
        {
            "web1": [finding(1, Severity.PROBLEM), finding(2, Severity.WARNING, id=20), finding(3, Severity.HINT)],
            "web2": [finding(1, Severity.WARNING), finding(2, Severity.PROBLEM, unseen=3_000_000_000)],
        }
    )  # fmt: skip
    assert values_of(view, "rank", view.order) == [1, 2, 3, 4, 5]
    assert values_of(view, "finding", view.order) == [
        "web1: problem 1",
        "web2: warning 1",
        "web1: warning 2",
        "web1: hint 3",
        "web2: problem 2",
    ]


def test_causes_stay_on_their_host() -> None:
    """A finding that follows from another one refers to the one of the same host."""
    rows = [finding(1, Severity.PROBLEM), finding(2, Severity.WARNING, cause=1)]
    view = merged_findings({"web1": rows, "web2": rows})
    at = np.arange(view.size)
    ids = dict(zip(values_of(view, "finding", at), values_of(view, "id", at), strict=True))
    causes = dict(zip(values_of(view, "finding", at), values_of(view, "cause", at), strict=True))
    assert {finding: cause for finding, cause in causes.items() if cause is not None} == {
        f"{host}: warning 2": ids[f"{host}: problem 1"] for host in ("web1", "web2")
    }


@pytest.mark.parametrize("host", ['a "b"\\', "admin@web1", "::1"])
def test_the_filter_of_a_finding_selects_its_host(host: str) -> None:
    """Of each rule, alone and after other terms, the filter selects rows of that host only, and is still known as the
    filter of a rule, which shows rows that are not listed by default."""
    with several_hosts():
        for lens in LENSES.values():
            for parsed in chain.from_iterable(parsed_rules(lens, table).rules for table in lens.tables):
                _, table = find_table(parsed.view)
                alone = parsed.rule.filter
                terms = f"({alone})" if " or " in alone else alone
                for text in (alone, f"id>0 and {terms}"):
                    view = merged_findings(
                        {host: [finding(1, Severity.PROBLEM, filter=text, view=parsed.view)]}
                    )
                    (shown,) = values_of(view, "filter", view.order)
                    selected = parse_filter(table, shown)
                    assert selected.names[0] == HOST.name
                    assert set(selected.names) == {HOST.name, *parse_filter(table, text).names}
                    assert shown.endswith((alone, f"({alone})"))


def test_a_filter_with_or_selects_one_host() -> None:
    """Each of its alternatives is on that host."""
    text = "rtt>10ms or rtt<1ms"
    view = merged_findings({"web1": [finding(1, Severity.PROBLEM, filter=text)]})
    (shown,) = values_of(view, "filter", view.order)
    wide = with_host(CONNECTIONS)
    rows = make_rows([{"id": 1, "rtt_us": 20_000}, {"id": 2, "rtt_us": 10}, {"id": 3, "rtt_us": 5_000}])
    hosts = {host: Pair(Snapshot(wide.id, 0, 1, {SOCKETS.name: rows}), None) for host in ("web1", "web2")}
    selected = view_of(wide.tables[0], frame_of(wide, hosts), shown)
    assert values_of(selected, HOST.name, selected.order) == ["web1", "web1"]
