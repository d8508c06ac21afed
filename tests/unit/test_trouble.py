# SPDX-License-Identifier: Apache-2.0
"""Warnings of headlines: rows in trouble, their thresholds, and filters that show as many as are counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.trouble import FoundTrouble, present_troubles, threshold, trouble_filters
from nettop.query.view import View
from nettop.snapshots import all_views
from nettop.snapshots.connections import LENS, SOCKETS
from nettop.snapshots.schema import Lens, Trouble
from nettop.snapshots.snapshot import Frame
from tests.unit.build import Row, example_rows, make_frame

PAGE = Path(__file__).parents[2] / "docs" / "use" / "what-is-slow.md"
FILTERS = trouble_filters(SOCKETS)
ACCEPT_QUEUE, SYN_QUEUE, CLOSE_WAIT, STUCK, UNREAD, DATAGRAMS, RETRANSMITTING = (
    trouble.name for trouble in SOCKETS.troubles
)
LISTENER = {"state": "LISTEN", "accept_queue": 0, "backlog": 10, "syn_queue": 0}
BEFORE = {
    "send_queue": 0,
    "bytes_acked": 500,
    "bytes_received": 300,
    "busy_us": 0,
    "retransmits": 0,
    "data_packets_sent": 0,
    "drops": 3,
}
STUCK_ROW = {**BEFORE, "send_queue": 1, "busy_us": 950_000}
UNREAD_ROW = {**BEFORE, "state": "ESTABLISHED", "receive_queue": 4096}
DATAGRAMS_ROW = {**BEFORE, "protocol": "udp", "state": "UNCONN", "drops": 4}
RETRANSMITTING_ROW = {**BEFORE, "bytes_acked": 900, "retransmits": 10, "data_packets_sent": 900}


def troubles(frame: Frame) -> list[FoundTrouble]:
    """Return the screen's warnings."""
    return present_troubles(View(frame, screen_query(SOCKETS)), FILTERS)


def names(now: list[Row], before: list[Row] | None = None, elapsed_s: float = 1.0) -> list[str]:
    """Return the names of what the screen warns of."""
    return [each.trouble.name for each in troubles(make_frame(now, before, elapsed_s))]


def close_wait(number: int) -> list[Row]:
    """Return `number` connections closed only by the peer, and a healthy one."""
    return [*({"state": "CLOSE_WAIT"} for _ in range(number)), {"id": 100_000}]


@pytest.mark.parametrize(
    ("now", "name"),
    [
        (LISTENER | {"accept_queue": 7}, None),
        (LISTENER | {"accept_queue": 8}, ACCEPT_QUEUE),
        (LISTENER | {"accept_queue": 11}, ACCEPT_QUEUE),
        (LISTENER | {"syn_queue": 7}, None),
        (LISTENER | {"syn_queue": 8}, SYN_QUEUE),
        (LISTENER | {"syn_queue": None}, None),
        # What a connection has in its queues is no backlog.
        ({"receive_queue": 8, "send_queue": 10}, None),
        (STUCK_ROW, STUCK),
        (STUCK_ROW | {"bytes_acked": 501}, None),
        (STUCK_ROW | {"busy_us": 400_000}, None),
        (STUCK_ROW | {"send_queue": 0}, None),
        (STUCK_ROW | {"busy_us": None}, None),
        (RETRANSMITTING_ROW, RETRANSMITTING),
        (RETRANSMITTING_ROW | {"retransmits": 9}, None),
        (RETRANSMITTING_ROW | {"data_packets_sent": 1000}, None),
        (UNREAD_ROW, UNREAD),
        (UNREAD_ROW | {"receive_queue": 4095}, None),
        (UNREAD_ROW | {"bytes_received": 301}, None),
        (UNREAD_ROW | {"state": "CLOSE_WAIT"}, None),
        (DATAGRAMS_ROW, DATAGRAMS),
        (DATAGRAMS_ROW | {"drops": 3}, None),
        (DATAGRAMS_ROW | {"protocol": "tcp", "state": "LISTEN"}, None),
        # Long ago: nothing of it in the last interval.
        ({**BEFORE, "bytes_acked": 501}, None),
    ],
)
def test_a_row_is_in_trouble_from_its_threshold_on(now: Row, name: str | None) -> None:
    """A little less, or what nobody measured, is no trouble."""
    assert names([now], [BEFORE]) == ([] if name is None else [name])


def test_all_is_well_on_a_quiet_host() -> None:
    """Without changed rows, or before two readings, nothing is named."""
    rows = example_rows(60)
    assert names(rows, rows) == []
    assert names(rows) == []
    assert names([STUCK_ROW, RETRANSMITTING_ROW]) == []


@pytest.mark.parametrize(
    ("before", "now", "growth_per_s"),
    [
        (0, 9, None),
        (9, 10, 0.5),
        (10, 10, None),
        (11, 10, None),
        (99, 99, None),
        (100, 100, 0),
        (130, 100, -15),
    ],
)
def test_close_wait_counts_where_it_grows_or_is_much(
    before: int, now: int, growth_per_s: float | None
) -> None:
    """A busy server always has some; more each time are never closed. Growth is per second, of two here."""
    present = troubles(make_frame(close_wait(now), close_wait(before), 2.0))
    expected = [] if growth_per_s is None else [(CLOSE_WAIT, now, growth_per_s)]
    assert [(each.trouble.name, each.rows, each.growth_per_s) for each in present] == expected


def test_much_close_wait_counts_from_the_first_reading_on() -> None:
    """Whether it grows is not known yet."""
    (present,) = troubles(make_frame(close_wait(10_000)))
    assert (present.rows, present.growth_per_s) == (10_000, None)


def test_a_short_interval_says_nothing_of_a_stuck_queue() -> None:
    """The round trip may take longer; a reading that is a little early still counts."""
    busy = STUCK_ROW | {"busy_us": 200_000}
    assert names([busy], [BEFORE], elapsed_s=0.2) == []
    assert names([STUCK_ROW], [BEFORE], elapsed_s=0.95) == [STUCK]


def test_the_worst_stands_first() -> None:
    """Warnings are in order of declaration, whatever the rows."""
    rows = [RETRANSMITTING_ROW, STUCK_ROW, LISTENER | {"syn_queue": 10}, LISTENER | {"accept_queue": 10}]
    assert names(rows, [BEFORE] * 4) == [ACCEPT_QUEUE, SYN_QUEUE, STUCK, RETRANSMITTING]


some = st.one_of(st.none(), st.integers(0, 12))
rows_of_any_kind = st.lists(
    st.fixed_dictionaries(
        {
            "protocol": st.sampled_from(["tcp", "udp"]),
            "state": st.sampled_from(
                ["ESTABLISHED", "CLOSE_WAIT", "LISTEN", "SYN_RECV", "TIME_WAIT", "UNCONN", None]
            ),
            "receive_queue": st.sampled_from([None, 0, 5_000]),
            "drops": some,
            **dict.fromkeys(("accept_queue", "send_queue", "syn_queue", "bytes_acked"), some),
            "backlog": st.one_of(st.none(), st.integers(0, 12)),
            "busy_us": st.sampled_from([None, 0, 950_000]),
            "retransmits": st.sampled_from([None, 0, 9, 12]),
            "data_packets_sent": st.sampled_from([None, 0, 20, 5_000]),
            "id": st.integers(1, 20),
        }
    ),
    max_size=20,
    unique_by=lambda row: row["id"],
)


@given(rows_of_any_kind, rows_of_any_kind)
def test_as_many_rows_are_shown_as_are_counted(now: list[Row], before: list[Row]) -> None:
    """Each filter shows, without --all, just the rows that the headline counts.

    Only listeners have a backlog. What the table hides by default sends nothing.
    """
    for row in (*now, *before):
        row["backlog"] = row["backlog"] if row["state"] == "LISTEN" else None
        if row["state"] in ("LISTEN", "TIME_WAIT"):
            row["protocol"] = "tcp"
        if row["state"] in ("LISTEN", "TIME_WAIT", "UNCONN"):
            row["retransmits"] = row["send_queue"] = None
    frame, query = make_frame(now, before), screen_query(SOCKETS)
    every = [(replace(trouble, min_rows=0, min_growing_rows=None), rows) for trouble, rows in FILTERS]
    present = present_troubles(View(frame, query), every)
    assert len(present) == len(FILTERS)
    for each in present:
        shown = View(frame, replace(query, filter=parse_filter(SOCKETS, each.trouble.filter)))
        assert each.rows == (~shown.gone[shown.order]).sum()


def test_thresholds_in_words() -> None:
    """Thresholds equal those in the help and the documents."""
    trouble = Trouble("x", "state=CLOSE", "what it means", 1000, 10, 0.5)
    assert threshold(trouble) == "from 1,000 rows on, or 10 and growing, if the interval is 0.5 s or more"
    assert threshold(replace(trouble, min_rows=1, min_growing_rows=None, min_interval_s=0)) == "from 1 row on"


@pytest.mark.parametrize(
    ("lens", "trouble"),
    [(lens, trouble) for lens, table in all_views() for trouble in table.troubles],
    ids=lambda value: value.name if isinstance(value, Trouble) else value.id,
)
def test_the_documents_say_what_trouble_is(lens: Lens, trouble: Trouble) -> None:
    """docs/use/what-is-slow.md has a line for each, with its filter and its threshold."""
    line = f"{trouble.name} | {trouble.help} | {threshold(trouble)} | `{trouble.filter}` |\n"
    assert f"\n| {line if lens is LENS else f'{lens.id} | {line}'}" in PAGE.read_text()
