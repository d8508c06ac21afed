# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the drops lens: names of reasons, rows and their numbers, counters, the headline's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nettop.kernel.drop_reasons import NO_REASON, DropReasons
from nettop.kernel.links import Link
from nettop.probes.drops.probe import Here, Ids, Measure, Tally, make_rows, measures_of, program_text
from nettop.query.filter import parse_filter
from nettop.screens.drops import by_reason, row_looks, top_reason, why_empty
from nettop.snapshots.drops import COUNTERS, LENS, OF_DEVICES, OF_NAMESPACES, PACKETS, REASONS
from nettop.snapshots.snapshot import Frame, known
from nettop.widgets.cells import Look

from .build import Row, make_frame, make_view

NAMES = {0: "NOT_DROPPED_YET", 1: "CONSUMED", 2: "NOT_SPECIFIED", 12: "NETFILTER_DROP"}
THESE = DropReasons(4, NAMES, {1: "MAC80211_UNUSABLE", 2: "OPENVSWITCH"})


# --- reasons --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (12, "NETFILTER_DROP"),
        (999, "999"),
        (2 << 16 | 3, "OPENVSWITCH 3"),
        (7 << 16 | 5, "subsystem 7 5"),
        (0xFFFF0000, "subsystem 65535 0"),
    ],
)
def test_names_of_reasons(number: int, name: str) -> None:
    """A reason without a name is its number, behind the name or number of its subsystem."""
    assert THESE.name(number) == name


def test_kernels_without_reasons() -> None:
    """Where the tracepoint has no reason there is none, whatever number is asked for."""
    assert DropReasons(2).name(0) is None
    assert not DropReasons(2).are_told


def test_numbers_of_reasons() -> None:
    """A reason that the kernel lacks has a number that no packet can have."""
    assert THESE.number("CONSUMED") == 1
    assert THESE.number("NO_SUCH") == NO_REASON
    assert THESE.name(NO_REASON) != "NO_SUCH"


@pytest.mark.parametrize(
    ("arguments", "defined"),
    [(2, set()), (3, {"REASON_CONSUMED"}), (4, {"REASON_CONSUMED", "HAS_RECEIVER"})],
)
def test_the_program_asks_for_no_argument_that_is_not_there(arguments: int, defined: set[str]) -> None:
    """The verifier refuses an argument that this kernel's tracepoint does not have."""
    defines = program_text(DropReasons(arguments, NAMES)).defines
    assert {"REASON_CONSUMED", "HAS_RECEIVER"} & defines.keys() == defined


def test_reasons_are_explained_once() -> None:
    """A reason either hurts or is harmless, and its meaning is a sentence without an end."""
    for name, reason in REASONS.items():
        assert not (reason.hurts and reason.harmless), name
        assert reason.meaning, name
        assert not reason.meaning.endswith("."), name


# --- rows -----------------------------------------------------------------------------------------------------


def test_numbers_are_never_used_twice() -> None:
    """A row keeps its number as long as it is there; one that comes back is another one."""
    ids = Ids()
    assert ids.give(["a", "b"]) == [1, 2]
    assert ids.give(["b", "c"]) == [2, 3]
    assert ids.give(["a", "b"]) == [4, 2]


def test_rows_are_sorted_and_unknown_is_no_zero() -> None:
    """Rows are made in the order of their keys; None is unknown in texts and in numbers."""
    columns: dict[str, list[Any]] = {
        "id": [5, 3],
        "reason": ["XDP", None],
        "place": [None, "f"],
        "protocol": ["udp", "udp"],
        "family": ["IPv4", "IPv4"],
        "interface": ["eth0", None],
        "netns": [None, 7],
        "packets": [0, 1],
        "bytes": [0, 2**63],
        "last_seen": [1, 2],
    }
    rows = make_rows(PACKETS, columns, 17)
    assert rows.taken_ns == 17
    assert rows.array["id"].tolist() == [3, 5]
    assert rows.array["packets"].tolist() == [1, 0]
    assert rows.array["bytes"].tolist() == [2**63, 0]
    for name, there in (("reason", [False, True]), ("interface", [False, True]), ("netns", [True, False])):
        assert known(rows.array[name]).tolist() == there
    assert rows.texts["reason"][rows.array["reason"][1]] == "XDP"


def test_no_rows() -> None:
    """Without drops the table is empty, and still a table."""
    rows = make_rows(PACKETS, {field.name: [] for field in PACKETS.stored}, 17)
    assert len(rows) == 0
    assert rows.array.dtype == PACKETS.dtype


def test_tallies_add_up() -> None:
    """What was dropped at several addresses of a function is one number, and each address's own is kept."""
    tally = Tally()
    for packets, size, site in ((3, 300, 0x10), (2, 100, 0x20), (5, 50, 0x10)):
        tally.add(packets, size, site)
    assert (tally.packets, tally.bytes, tally.sites) == (10, 450, {0x10: 8, 0x20: 2})


def test_counters_of_a_namespace() -> None:
    """Of what a namespace and its devices tell, drops are taken; what they do not count is not there."""
    here = Here(
        {"UdpRcvbufErrors": 5, "UdpInDatagrams": 9}, [Link(2, "eth0", {"rx_dropped": 3, "rx_bytes": 8})]
    )
    assert dict(measures_of(77, here)) == {
        Measure("UdpRcvbufErrors", netns=77): 5,
        Measure("rx_dropped", interface="eth0", netns=77): 3,
    }
    assert dict(measures_of(77, Here({}, None))) == {}


def test_every_counter_has_words_of_its_own() -> None:
    """No two counters of a kind are called the same, and each fits its column."""
    for words in (OF_NAMESPACES, OF_DEVICES):
        assert len(set(words.values())) == len(words)
        assert max(map(len, words.values())) <= COUNTERS.by_name["counter"].width


def test_the_lens() -> None:
    """Both tables declare the columns that they show, and can be filtered as they say."""
    for table in LENS.tables:
        assert {*table.screen, *table.text, table.sort.removeprefix("-")} <= set(table.names)
        parse_filter(table, table.default_filter)


# --- the screen -------------------------------------------------------------------------------------------------


def frame_of(now: list[Row], before: list[Row] | None = None, **kwargs: Any) -> Frame:
    """Two snapshots of the table of packets, a second apart."""
    return make_frame(now, before, table=PACKETS, lens="drops", **kwargs)


def row(number: int, reason: str | None, packets: int, place: str = "f") -> Row:
    """A row of the table of packets."""
    return {"id": number, "reason": reason, "place": place, "packets": packets}


def test_the_top_reason_is_that_of_the_last_interval() -> None:
    """Most in all does not count, rows of one reason together do, and a row that is new is as good as others."""
    before = [row(1, "NO_SOCKET", 1000), row(2, "XDP", 5)]
    now = [row(1, "NO_SOCKET", 1003), row(2, "XDP", 7), row(3, "XDP", 2, "g")]
    assert top_reason(frame_of(now, before)) == "XDP"
    assert top_reason(frame_of(now, now)) is None
    assert top_reason(frame_of(now)) is None


def test_without_reasons_places_stand_in() -> None:
    """A kernel that tells no reason still tells the function."""
    told = frame_of([row(1, None, 3), row(2, None, 4, "g")], missing={"reason": "too old"})
    assert by_reason(told.now) == {"f": 3, "g": 4}
    assert by_reason(frame_of([]).now) == {}


def test_looks_of_rows() -> None:
    """A row is idle without a drop in the last interval, quiet when it harms nobody, and warns while it hurts."""
    reasons = ["XDP", "OTHERHOST", None, "NOMEM", "NOMEM", "NO_SUCH_REASON"]
    dropped = [0, 1, 1, 1, 0, 1]
    before = [row(number, reason, 3) for number, reason in enumerate(reasons, 1)]
    now = [one | {"packets": 3 + more} for one, more in zip(before, dropped, strict=True)]
    view = make_view(frame_of(now, before), deltas=True)
    assert row_looks(view, np.arange(len(now))) == [
        Look(idle=True),
        Look(quiet=True),
        Look(),
        Look(failed=True),
        Look(idle=True),
        Look(),
    ]


def test_why_a_table_is_empty() -> None:
    """Nothing was dropped, or nothing can be seen."""
    assert "nothing was dropped" in why_empty(make_view(frame_of([], via={"packets": "tp_btf/kfree_skb"})))
    assert "no tracepoint" in why_empty(make_view(frame_of([], via={"packets": "n/a: no tracepoint"})))
