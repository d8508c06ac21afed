# SPDX-License-Identifier: Apache-2.0
"""The view, compared with slow and obvious models: joins, rates, order, values and totals."""

from __future__ import annotations

import dataclasses
import math
import weakref
from dataclasses import replace
from functools import cmp_to_key
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.errors import UsageError
from nettop.query.query import parse_sort
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.snapshots.connections import DIRECTIONS, SOCKETS, STATES
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.unit.build import (
    Row,
    address_pair,
    example_rows,
    make_frame,
    make_hooks,
    make_rows,
    make_view,
)
from tests.unit.strategies import FIELDS, keyed_rows, rows

elapsed = st.floats(0.1, 3600)
PARTS = SOCKETS.by_name["bytes"].parts
FROM_ZERO = dataclasses.replace(SOCKETS, begins_at_zero=True)


def by_id(each: list[Row] | None) -> dict[int, Row]:
    """Return the rows by their key."""
    return {row["id"]: row for row in each or ()}


def all_values(view: View, name: str) -> list[Any]:
    """Return the column's values for every row."""
    return view.values(name, np.arange(view.size))


# --- differences and rates ----------------------------------------------------------------------------------


@given(keyed_rows, st.none() | keyed_rows, elapsed)
def test_differences_are_what_was_added_since_or_unknown(
    now: list[Row], before: list[Row] | None, elapsed_s: float
) -> None:
    """A difference needs both values and a counter that did not go back; it is never negative."""
    view = make_view(make_frame(now, before, elapsed_s), all_rows=True, deltas=True)
    rows_now, rows_before = by_id(now), by_id(before)
    for key, value in zip(view.raw("id").tolist(), all_values(view, "bytes_sent"), strict=True):
        new = rows_now[key]["bytes_sent"]
        old = rows_before[key]["bytes_sent"] if key in rows_before else None
        if new is None or old is None or new < old:
            assert value is None
        else:
            assert value == new - old


@given(keyed_rows, keyed_rows, elapsed)
def test_a_rate_is_the_difference_over_the_measured_time(
    now: list[Row], before: list[Row], elapsed_s: float
) -> None:
    """Time is taken from the two snapshots, never from the requested interval."""
    frame = make_frame(now, before, elapsed_s)
    view, differences = make_view(frame), make_view(frame, deltas=True)
    assert view.elapsed_s == pytest.approx(elapsed_s)
    pairs = zip(all_values(view, "bytes_sent_per_s"), all_values(differences, "bytes_sent"), strict=True)
    for rate, difference in pairs:
        assert rate == (None if difference is None else pytest.approx(difference / elapsed_s))


def test_a_counter_that_appears_late_has_no_first_interval() -> None:
    """If a column was n/a before, a new row's growth is unknown."""
    row = {"id": 1, "bytes_sent": 5}
    frame = make_frame([row], [], table=FROM_ZERO)
    assert frame.before is not None
    untold = dataclasses.replace(frame.before, hooks=make_hooks({}, {"bytes_sent": "no hook"}))
    assert all_values(make_view(frame, deltas=True), "bytes_sent") == [5]
    assert all_values(make_view(Frame(frame.now, untold), deltas=True), "bytes_sent") == [None]


def test_a_row_that_left_does_not_restart_at_zero() -> None:
    """A row that is in the snapshot before alone has no difference."""
    view = make_view(
        make_frame([], [{"id": 1, "bytes_sent": 5}], table=FROM_ZERO), closed=True, gone=True, deltas=True
    )
    assert all_values(view, "bytes_sent") == [None]


def test_no_time_between_snapshots_gives_no_rate() -> None:
    """Two snapshots of one moment are not divided by zero."""
    row = {"id": 1, "bytes_sent": 5}
    for frame in (make_frame([row], [row], 0.0), make_frame([row])):
        view = make_view(frame)
        assert view.elapsed_s is None
        assert all_values(view, "bytes_sent_per_s") == [None]
        assert all_values(view, "bytes_sent") == [5]


def test_a_sum_has_what_is_known_of_its_parts() -> None:
    """Of its total, of the last interval and of the rate alike; it is unknown where all its parts are."""
    before = [(10, 100), (10, None), (None, None), (10, 100)]
    now = [(13, 104), (13, None), (None, None), (9, 104)]  # the last one's first counter went back
    frame = make_frame(
        *([dict(zip(PARTS, row, strict=True)) for row in values] for values in (now, before)), 2.0
    )
    view = make_view(frame, "bytes>=113", "-bytes")
    assert all_values(view, "bytes") == [117, 13, None, 113]
    assert view.values("bytes", view.order) == [117, 113]
    assert all_values(view, "bytes_per_s") == [3.5, 1.5, None, 2.0]
    assert all_values(make_view(frame, deltas=True), "bytes") == [7, 3, None, 4]
    assert view.total("bytes_per_s", np.arange(view.size)) == 7.0


def test_measured_zero_is_not_unknown() -> None:
    """A connection that sent nothing has a rate of 0; one without a counter has none."""
    each = [{"id": 1, "bytes_sent": 7}, {"id": 2, "bytes_sent": None}]
    assert all_values(make_view(make_frame(each, each)), "bytes_sent_per_s") == [0.0, None]


@given(st.integers(0, 2**60), st.none() | st.integers(0, 2**60), elapsed)
def test_a_count_has_a_rate_when_both_snapshots_have_it(
    now: int, before: int | None, elapsed_s: float
) -> None:
    """A snapshot count's rate is its growth over the time between two; a decreased one has no rate."""
    frame = make_frame([], [], elapsed_s, counts={"closed": now, "opened": 5})
    assert frame.before is not None
    counted = {} if before is None else {"closed": before}
    view = make_view(Frame(frame.now, dataclasses.replace(frame.before, counts=counted)))
    grown = before is not None and now >= before
    assert view.count_rate("closed") == (pytest.approx((now - (before or 0)) / elapsed_s) if grown else None)
    assert view.count_rate("opened") is None
    assert view.count_rate("failed") is None


def test_a_count_has_no_rate_without_time() -> None:
    """One snapshot, or two of the same time, give no rate."""
    for frame in (make_frame([], [], 0.0, counts={"closed": 7}), make_frame([], counts={"closed": 7})):
        before = None if frame.before is None else dataclasses.replace(frame.before, counts={"closed": 3})
        assert make_view(Frame(frame.now, before)).count_rate("closed") is None


@given(keyed_rows, keyed_rows, st.booleans())
def test_a_ratio_is_of_totals_or_of_the_last_interval(
    now: list[Row], before: list[Row], deltas: bool
) -> None:
    """A ratio uses the columns as the query shows them; with a zero denominator it is unknown."""
    view = make_view(make_frame(now, before), deltas=deltas)
    parts = [all_values(view, name) for name in ("retransmits", "data_packets_sent")]
    for value, over, under in zip(all_values(view, "retransmit_ratio"), *parts, strict=True):
        if over is None or not under:
            assert value is None
        else:
            assert value == min(over / under, 1)


def test_the_total_of_a_ratio_is_the_ratio_of_the_sums() -> None:
    """A total ratio is unknown if all denominators are zero, and a share never exceeds 1."""
    rows = [{"retransmits": at, "data_packets_sent": 10 * at} for at in range(3)]
    view = make_view(make_frame([*rows, {"retransmits": 50, "data_packets_sent": 1}]))
    assert view.total("retransmit_ratio", np.arange(3)) == 0.1
    assert view.total("retransmit_ratio", np.arange(1)) is None
    assert view.total("retransmit_ratio", np.arange(4)) == 1.0


# --- joining ------------------------------------------------------------------------------------------------


@given(keyed_rows, keyed_rows, st.booleans())
def test_rows_that_went_stay_for_one_frame(now: list[Row], before: list[Row], closed: bool) -> None:
    """With `closed`, gone rows follow the others, with their last values and no rate."""
    view = make_view(make_frame(now, before), all_rows=True, closed=closed, gone=closed)
    rows_now, rows_before = by_id(now), by_id(before)
    gone = sorted(set(rows_before) - set(rows_now)) if closed else []
    assert view.raw("id").tolist() == sorted(rows_now) + gone
    assert view.size == len(view.raw("id")) == len(view.gone)
    assert view.raw("id")[view.gone].tolist() == gone
    assert view.raw("id")[view.appeared].tolist() == sorted(set(rows_now) - set(rows_before))
    for name in ("process", "remote_address", "bytes_sent", "state"):
        last = [(rows_before[key])[name] for key in gone]
        assert view.values(name, np.flatnonzero(view.gone)) == last
    assert not view.column("bytes_sent_per_s").known[view.gone].any()


def test_a_closed_row_keeps_its_process_when_the_texts_are_numbered_anew() -> None:
    """Two snapshots may have texts of their own; those of gone rows are kept, under their codes in the newer one."""
    before = make_rows(
        [{"id": 1, "process": "sshd"}, {"id": 2, "process": "nginx"}, {"id": 3, "process": "gone"}]
    )
    now = make_rows(
        [{"id": 4, "process": "nginx"}, {"id": 5, "process": "sshd"}], taken_ns=before.taken_ns + 1
    )
    first, second = (Snapshot("connections", 0, 0, {"sockets": table}) for table in (before, now))
    view = make_view(Frame(second, first), all_rows=True, closed=True, gone=True)
    assert all_values(view, "process") == ["nginx", "sshd", "sshd", "nginx", "gone"]


def test_gone_rows_stand_where_they_stood() -> None:
    """With the previous view, a gone row has its last interval's rate, and sorts by it."""
    first = [{"id": 1, "bytes_sent": 0}, {"id": 2, "bytes_sent": 0}, {"id": 3, "bytes_sent": 0}]
    second = [{"id": 1, "bytes_sent": 10}, {"id": 2, "bytes_sent": 500}, {"id": 3, "bytes_sent": 900}]
    third = [{"id": 1, "bytes_sent": 30}, {"id": 3, "bytes_sent": 1900}]
    by_rate = {"sort": "-bytes_sent_per_s", "closed": True, "gone": True}
    before = make_view(make_frame(second, first), **by_rate)
    frame = make_frame(third, second)
    alone = make_view(frame, **by_rate)
    view = View(frame, alone.query, last=before)
    assert alone.values("id", alone.order) == [3, 1, 2]
    assert view.values("id", view.order) == [3, 2, 1]
    assert view.values("bytes_sent_per_s", view.order) == [1000.0, 500.0, 20.0]


@pytest.mark.parametrize("shown", [1, 4])
def test_codes_and_numbers_without_a_text_or_label_are_unknown(shown: int) -> None:
    """Whether few rows are shown or many, and just behind the last text or label too."""
    rows = [{"id": at, "process": f"p{at}"} for at in range(1, 5)]
    frame = make_frame(rows)
    array = frame.now.tables["sockets"].array
    array["process"][0] = len(frame.now.tables["sockets"].texts["process"])
    array["state"][0] = max(STATES) + 1
    view = make_view(frame, all_rows=True)
    at = np.arange(shown)
    assert view.values("process", at) == [None, "p2", "p3", "p4"][:shown]
    assert view.values("state", at) == [None, *["ESTABLISHED"] * 3][:shown]


def test_a_view_keeps_no_reading_before_its_own() -> None:
    """A view has copies of the rows that left, and keeps neither the view before nor its rows."""
    last = make_view(make_frame([{"id": 1}, {"id": 2}], [{"id": 1}, {"id": 2}]))
    now = make_frame([{"id": 1}], [{"id": 1}]).now
    view = View(Frame(now, last.snapshot), replace(last.query, gone=True), last=last)
    kept = weakref.ref(last), weakref.ref(last.before.array)
    del last
    assert [reference() for reference in kept] == [None, None]
    assert view.left is not None and len(view.left.now) == 1


def test_without_an_earlier_snapshot_nothing_is_new_or_gone() -> None:
    """At the first frame every row would be new, which says nothing."""
    view = make_view(make_frame(example_rows(5)), closed=True, gone=True, all_rows=True)
    assert not view.appeared.any()
    assert not view.gone.any()


# --- order --------------------------------------------------------------------------------------------------

SORTS = [
    name
    for name in SOCKETS.names
    if name.removesuffix("_per_s") in {*FIELDS, "local", "remote", "owner", "rtt"}
]


def sort_key(view: View, name: str) -> list[Any]:
    """Return each row's sort key: numbers, lower-case texts, addresses as bytes; None for unknown."""
    each = view.table.by_name.get(name)
    if name in ("local_address", "remote_address"):
        return [address_pair(text) for text in all_values(view, name)]
    if (each is not None and each.labels) or name in ("process", "container"):
        return [None if text is None else text.casefold() for text in all_values(view, name)]
    if name == "opened_at":
        return [None if number == 2**64 - 1 else number for number in view.raw(name).tolist()]
    return all_values(view, name)


def compare(first: Any, other: Any, descending: bool) -> int:
    """Return the order of two values: unknown last both ways."""
    if first is None or other is None:
        return (first is None) - (other is None)
    return ((first > other) - (first < other)) * (-1 if descending else 1)


@given(keyed_rows, keyed_rows, st.sampled_from(SORTS), st.booleans(), st.none() | st.integers(0, 5))
def test_order_is_stable_and_unknown_comes_last_in_both_directions(
    now: list[Row], before: list[Row], name: str, descending: bool, limit: int | None
) -> None:
    """Against Python's stable sort of the values, part by part for composites, beyond 2^53 too."""
    sort = f"{'-' if descending else ''}{name}"
    view = make_view(make_frame(now, before), "", sort, all_rows=True, closed=True, gone=True, limit=limit)
    field = view.table.by_name.get(name)
    parts = field.parts if field and field.kind in (Kind.ENDPOINT, Kind.GROUP) else (name,)
    keys = list(zip(*(sort_key(view, part) for part in parts), strict=True))

    def whole(first: int, other: int) -> int:
        steps = (compare(a, b, descending) for a, b in zip(keys[first], keys[other], strict=True))
        return next((step for step in steps if step), 0)

    assert view.order.tolist() == sorted(range(view.size), key=cmp_to_key(whole))[:limit]


@pytest.mark.parametrize(
    ("field", "labels"), [("state", STATES), ("direction", DIRECTIONS)], ids=["state", "direction"]
)
def test_an_enum_sorts_by_its_label(field: str, labels: dict[int, str]) -> None:
    """People see words, not the kernel's numbers."""
    view = make_view(make_frame([{field: label} for label in labels.values()]), "", field, all_rows=True)
    assert view.values(field, view.order) == sorted(labels.values(), key=str.casefold)


def test_unasked_the_default_filter_applies_and_all_drops_it() -> None:
    """Listeners are hidden until somebody asks; a row of which nobody knows whether it is one is not."""
    each = [{"state": state} for state in ("ESTABLISHED", "LISTEN", "TIME_WAIT", "CLOSE_WAIT", None)]
    assert make_view(make_frame(each)).order.tolist() == [0, 3, 4]
    assert make_view(make_frame(each), all_rows=True).order.tolist() == [0, 1, 2, 3, 4]
    assert make_view(make_frame(each), "state=LISTEN", all_rows=True).order.tolist() == [1]


def test_a_listener_in_trouble_is_shown_unasked() -> None:
    """One of whose queues is nearly full; one whose queues are not known is a listener like others."""
    queues = [(4, 10, 0), (8, 10, 0), (0, 10, 8), (8, None, 8), (8, 0, 8)]
    each = [
        {"state": "LISTEN", "accept_queue": waiting, "backlog": backlog, "syn_queue": half_open}
        for waiting, backlog, half_open in queues
    ]
    assert make_view(make_frame(each)).order.tolist() == [1, 2]


def test_a_rate_is_the_same_whatever_was_computed_before() -> None:
    """Of rows that have gone too, which keep the rate of their last interval."""
    first, second, third = (
        [{"id": n, "bytes_sent": 10 * n * reading} for n in (1, 2)] for reading in (1, 2, 3)
    )
    shown = {"deltas": True, "gone": True}
    rates = []
    for order in (("bytes_sent", "bytes_sent_per_s"), ("bytes_sent_per_s",)):
        last = make_view(make_frame(second, first, 2.0), **shown)
        frame = make_frame(third[:1], second)
        view = View(frame, last.query, last=last)
        rates.append([view.values(name, np.arange(view.size)) for name in order][-1])
    assert rates == [[10.0, 10.0]] * 2


def test_an_unknown_sort_field_is_a_usage_error() -> None:
    """With the nearest names, and without its minus."""
    with pytest.raises(UsageError, match="unknown sort field 'byte_sent'") as caught:
        parse_sort(SOCKETS, "-byte_sent")
    assert "bytes_sent" in caught.value.remedy


# --- values -------------------------------------------------------------------------------------------------


@given(rows)
def test_values_are_what_went_in(each: list[Row]) -> None:
    """Every stored column gives back Python's own values, None where nothing is known."""
    view = make_view(make_frame(each), all_rows=True)
    for name in FIELDS:
        put_in = [row[name] for row in each]
        if name == "opened_at":
            put_in = [None if moment is None else rfc3339(moment) for moment in put_in]
        assert all_values(view, name) == put_in


@given(rows, st.data())
def test_values_of_some_rows_are_those_of_all(each: list[Row], data: st.DataObject) -> None:
    """A screen asks for a few rows in any order and gets what the whole table would show there."""
    view = make_view(make_frame(each, each), all_rows=True)
    positions = st.lists(st.integers(0, max(len(each) - 1, 0)), max_size=4 if each else 0)
    at = np.array(data.draw(positions), np.intp)
    for name in SOCKETS.names:
        whole = all_values(view, name)
        assert view.values(name, at) == [whole[place] for place in at]


def test_composites_read_as_people_write_them() -> None:
    """Endpoints with brackets and stars, groups with what is known of them."""
    each = [
        {"process": "nginx", "pid": 1812, "remote_address": "10.0.9.4", "remote_port": 9092},
        {
            "process": "java",
            "pid": 2210,
            "container": "docker:api-7f",
            "remote_address": "::1",
            "remote_port": 80,
        },
        {"remote_address": "0.0.0.0", "remote_port": None},
    ]
    view = make_view(make_frame(each))
    assert all_values(view, "remote") == ["10.0.9.4:9092", "[::1]:80", "0.0.0.0:*"]
    assert all_values(view, "owner") == ["nginx 1812", "java 2210 docker:api-7f", None]


def test_names_stand_in_for_addresses_in_endpoints_alone() -> None:
    """`remote` shows a name once it is known; the address column stays an address."""
    each = [
        {"remote_address": "203.0.113.9", "remote_port": 80},
        {"remote_address": "203.0.113.8", "remote_port": 80},
    ]
    view = View(
        make_frame(each), make_view(make_frame(each)).query, lambda raw: "web" if raw[-1] == 9 else None
    )
    assert all_values(view, "remote") == ["web:80", "203.0.113.8:80"]
    assert all_values(view, "remote_address") == ["203.0.113.9", "203.0.113.8"]


def test_a_number_without_a_label_is_unknown() -> None:
    """A newer kernel's state neither breaks the table nor passes a comparison."""
    view = make_view(
        make_frame([{"state": 13}, {"state": 200}, {"state": "LISTEN"}]), "", "state", all_rows=True
    )
    assert all_values(view, "state") == [None, None, "LISTEN"]
    assert view.order.tolist() == [2, 0, 1]
    assert make_view(view.frame, "state!=CLOSE", all_rows=True).order.tolist() == [2]


@given(rows)
def test_totals_add_what_is_known(each: list[Row]) -> None:
    """The line of totals: the sum without the unknown, or nothing when nothing is known."""
    view = make_view(make_frame(each), all_rows=True)
    sent = [row["bytes_sent"] for row in each if row["bytes_sent"] is not None]
    assert view.total("bytes_sent", view.order) == (pytest.approx(math.fsum(sent)) if sent else None)


@given(rows)
def test_counts_by_state(each: list[Row]) -> None:
    """How many connections are in each state, the most frequent first, adds up to all."""
    view = make_view(make_frame(each), all_rows=True)
    counts = view.count_by("state", view.order)
    for label in STATES.values():
        assert counts.get(label, 0) == sum(row["state"] == label for row in each)
    assert sum(counts.values()) == len(each)
    assert list(counts.values()) == sorted(counts.values(), reverse=True)


@given(st.integers(0, 2**62))
def test_times_are_utc_to_the_microsecond(wall_ns: int) -> None:
    """RFC 3339 reads back as the same microsecond, exactly."""
    micros = np.datetime64(rfc3339(wall_ns).removesuffix("Z"), "us").astype(int)
    assert micros == wall_ns // 1000


# --- size ---------------------------------------------------------------------------------------------------
