# SPDX-License-Identifier: Apache-2.0
"""Start and end times of flows: wrapped uptimes, clocks that were never set, and impossible times."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from tests.builders.flow_messages import (
    EXPORT_S,
    PLAIN,
    PORT,
    RECEIVED_NS,
    SENDER,
    Sent,
    a_set,
    batch,
    message,
    options_set,
    plain,
    template_set,
)

from .flow_oracle import Field

NOW_MS, RECEIVED_MS, DAY_MS = EXPORT_S * 1000, RECEIVED_NS // 1_000_000, 86_400_000
UPTIMES: list[Field] = [*PLAIN, (0, 22, 4), (0, 21, 4)]


def bits(uptime_ms: int) -> int:
    """Return an uptime as exporters count it."""
    return uptime_ms % 2**32


def netflow5(up_ms: int, first_ms: int, last_ms: int, export_s: int = EXPORT_S) -> Sent:
    """Return a flow with uptimes, of an exporter that has been up for this long."""
    head = struct.pack("!HHIIIIBBH", 5, 1, bits(up_ms), export_s, 0, 0, 0, 0, 0)
    return Sent(SENDER, PORT, head + struct.pack("!24xII16x", bits(first_ms), bits(last_ms)))


def netflow9(up_ms: int, first_ms: int, last_ms: int, export_s: int = EXPORT_S) -> Sent:
    record = plain(1) + struct.pack("!II", bits(first_ms), bits(last_ms))
    sets = template_set(NETFLOW_9, 300, UPTIMES) + a_set(300, record)
    return Sent(SENDER, PORT, struct.pack("!HHIIII", 9, 2, bits(up_ms), export_s, 0, 7) + sets)


def ipfix(up_ms: int, first_ms: int, last_ms: int, export_s: int = EXPORT_S) -> Sent:
    """Return a flow whose record has the exporter's start."""
    began_ms = (export_s * 1000 if export_s else RECEIVED_MS) - up_ms
    record = plain(1) + struct.pack("!IIQ", bits(first_ms), bits(last_ms), began_ms)
    return stamped(template_set(IPFIX, 300, [*UPTIMES, (0, 160, 8)]) + a_set(300, record), export_s)


def ipfix_by_options(up_ms: int, first_ms: int, last_ms: int, export_s: int = EXPORT_S) -> Sent:
    """Return a flow whose exporter's start is in an options record."""
    began_ms = (export_s * 1000 if export_s else RECEIVED_MS) - up_ms
    options = options_set(IPFIX, 301, [(0, 144, 4)], [(0, 160, 8)]) + a_set(
        301, struct.pack("!IQ", 1, began_ms)
    )
    record = plain(1) + struct.pack("!II", bits(first_ms), bits(last_ms))
    return stamped(options + template_set(IPFIX, 300, UPTIMES) + a_set(300, record), export_s)


def stamped(sets: bytes, export_s: int) -> Sent:
    return Sent(SENDER, PORT, struct.pack("!HHIII", 10, 16 + len(sets), export_s, 0, 7) + sets)


def with_fields(fields: list[Field], content: bytes) -> Sent:
    """Return a flow with these fields."""
    return message(IPFIX, template_set(IPFIX, 300, [*PLAIN, *fields]), a_set(300, plain(1) + content))


def times(sent: Sent) -> tuple[int, int]:
    """Return start and end of the flow in a datagram, 0 if unknown."""
    flows = Decoder().decode(batch([sent])).flows
    (start,), (end,) = flows["start"].tolist(), flows["end"].tolist()
    return start, end


BY_UPTIME = pytest.mark.parametrize("exporter", [netflow5, netflow9, ipfix, ipfix_by_options])
Exporter = Callable[..., Sent]


@BY_UPTIME
@pytest.mark.parametrize(
    "up_ms", [10_000, 40 * DAY_MS, 60 * DAY_MS, 500 * DAY_MS, 2**32, 2**32 + 3000, 2**33 - 1]
)
@pytest.mark.parametrize(("first_ms", "last_ms"), [(9000, 4000), (10, 1), (5256, -200)])
def test_an_uptime_is_of_the_time_nearest_to_the_export(
    exporter: Exporter, up_ms: int, first_ms: int, last_ms: int
) -> None:
    """For any uptime of the router, and if the 32 bits wrap before, within or after the flow."""
    sent = exporter(up_ms, up_ms - first_ms, up_ms - last_ms)
    assert times(sent) == (NOW_MS - first_ms, NOW_MS - last_ms)


@BY_UPTIME
@given(
    up_ms=st.integers(2**31, 2**39), ago_ms=st.integers(0, 2**31 - 1), duration_ms=st.integers(0, 2**31 - 1)
)
def test_any_uptime(exporter: Exporter, up_ms: int, ago_ms: int, duration_ms: int) -> None:
    """For any flow of the last 24.8 days."""
    duration_ms = min(duration_ms, ago_ms)
    first_ms = up_ms - ago_ms
    if bits(first_ms) or bits(first_ms + duration_ms):
        start = NOW_MS - ago_ms
        assert times(exporter(up_ms, first_ms, first_ms + duration_ms)) == (start, start + duration_ms)


@BY_UPTIME
@pytest.mark.parametrize("export_s", [0])
def test_a_clock_that_was_never_set(exporter: Exporter, export_s: int) -> None:
    """Our own clock is used instead."""
    sent = exporter(DAY_MS, DAY_MS - 9000, DAY_MS - 4000, export_s)
    assert times(sent) == (RECEIVED_MS - 9000, RECEIVED_MS - 4000)


@BY_UPTIME
def test_a_wrong_clock_is_not_corrected(exporter: Exporter) -> None:
    sent = exporter(DAY_MS, DAY_MS - 9000, DAY_MS - 4000, EXPORT_S + 3600)
    assert times(sent) == (NOW_MS + 3_600_000 - 9000, NOW_MS + 3_600_000 - 4000)


@BY_UPTIME
def test_empty_uptimes_are_unknown(exporter: Exporter) -> None:
    assert times(exporter(DAY_MS, 0, 0)) == (0, 0)


@BY_UPTIME
@pytest.mark.parametrize(
    ("first_ms", "last_ms", "start_ms", "end_ms"),
    [
        (-5000, -5300, -5000, -5000),  # rounded
        (-5000, -3_600_000, -5000, 0),
        (-5000, -DAY_MS, -5000, 0),
        (DAY_MS, -5000, 0, -5000),
    ],
)
def test_no_duration_is_negative(
    exporter: Exporter, first_ms: int, last_ms: int, start_ms: int, end_ms: int
) -> None:
    """The time that contradicts the one nearer to the export is dropped."""
    sent = exporter(2 * DAY_MS, 2 * DAY_MS + first_ms, 2 * DAY_MS + last_ms)
    assert times(sent) == tuple(NOW_MS + offset_ms if offset_ms else 0 for offset_ms in (start_ms, end_ms))


@pytest.mark.parametrize(
    ("fields", "content", "start", "end"),
    [
        ([(0, 152, 8)], struct.pack("!Q", NOW_MS), NOW_MS, 0),
        ([(0, 153, 8)], struct.pack("!Q", NOW_MS), 0, NOW_MS),
        ([(0, 152, 8), (0, 153, 8)], struct.pack("!QQ", NOW_MS, 0), NOW_MS, 0),
        ([(0, 152, 8), (0, 153, 8)], struct.pack("!QQ", NOW_MS, 86_400_000), NOW_MS, 0),
        ([(0, 152, 8), (0, 153, 8)], struct.pack("!QQ", NOW_MS, 2**64 - 1), NOW_MS, 0),
        ([(0, 152, 8), (0, 153, 8)], struct.pack("!QQ", 10**13, NOW_MS), 0, NOW_MS),
        ([(0, 152, 8), (0, 151, 4)], struct.pack("!QI", NOW_MS + 999, EXPORT_S), NOW_MS + 999, NOW_MS + 999),
        ([(0, 22, 4), (0, 21, 4)], struct.pack("!II", 5000, 6000), 0, 0),
        ([(0, 22, 4), (0, 21, 4), (0, 160, 8)], struct.pack("!IIQ", 5000, 6000, 0), 0, 0),
        ([(0, 22, 4), (0, 21, 4), (0, 160, 8)], struct.pack("!IIQ", 5000, 6000, 3000), 0, 0),
        ([], b"", 0, 0),
        # A duration gives the missing one of start and end, and nothing else.
        ([(0, 152, 8), (0, 161, 4)], struct.pack("!QI", NOW_MS - 9000, 5000), NOW_MS - 9000, NOW_MS - 4000),
        ([(0, 153, 8), (0, 161, 4)], struct.pack("!QI", NOW_MS - 4000, 5000), NOW_MS - 9000, NOW_MS - 4000),
        (
            [(0, 150, 4), (0, 162, 4)],
            struct.pack("!II", EXPORT_S - 9, 5_000_999),
            NOW_MS - 9000,
            NOW_MS - 4000,
        ),
        ([(0, 152, 8), (0, 161, 4)], struct.pack("!QI", NOW_MS - 9000, 0), NOW_MS - 9000, NOW_MS - 9000),
        (
            [(0, 152, 8), (0, 153, 8), (0, 161, 4)],
            struct.pack("!QQI", NOW_MS - 9, NOW_MS, 7),
            NOW_MS - 9,
            NOW_MS,
        ),
        ([(0, 152, 8), (0, 161, 8)], struct.pack("!QQ", NOW_MS, 2**63), NOW_MS, 0),
        ([(0, 161, 4)], struct.pack("!I", 5000), 0, 0),
    ],
)
def test_missing_times_are_unknown(fields: list[Field], content: bytes, start: int, end: int) -> None:
    """Missing, empty, from a clock that was never set, or in an impossible year."""
    assert times(with_fields(fields, content)) == (start, end)


@pytest.mark.parametrize(("said_in", "is_known"), [(7, True), (0, True), (8, False)])
def test_domain_0_speaks_for_the_whole_exporter(said_in: int, is_known: bool) -> None:
    """Another domain may belong to another exporter, as behind a relay."""
    began = options_set(IPFIX, 301, [(0, 144, 4)], [(0, 160, 8)])
    began += a_set(301, struct.pack("!IQ", 1, NOW_MS - 10_000))
    record = plain(1) + struct.pack("!II", 1000, 6000)
    flow = message(IPFIX, template_set(IPFIX, 300, UPTIMES), a_set(300, record))
    flows = Decoder().decode(batch([message(IPFIX, began, domain=said_in), flow])).flows
    expected = (NOW_MS - 9000, NOW_MS - 4000) if is_known else (0, 0)
    assert (*flows["start"].tolist(), *flows["end"].tolist()) == expected
