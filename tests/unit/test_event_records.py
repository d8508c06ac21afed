# SPDX-License-Identifier: Apache-2.0
"""Records shared by programs and nettop, and the end of a connection by errno and previous state."""

from __future__ import annotations

import errno

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.probes.connections.event_records import (
    ACCEPT,
    CLOSE,
    CONNECT,
    EVENT,
    FAIL,
    is_failure,
    set_reasons,
)
from nettop.probes.connections.socket_rows import ROW, STATE
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import EVENT_KINDS, EVENTS, REASONS, STATES
from nettop.snapshots.snapshot import known
from tests.builders.arrays import unknown_rows

NO_REASON = 0
LABELS = {
    ("close", NO_REASON, "FIN_WAIT2"): "closed by us",
    ("close", NO_REASON, "LAST_ACK"): "closed by peer",
    ("close", NO_REASON, "CLOSING"): "closed by both",
    ("close", NO_REASON, "ESTABLISHED"): "reset by us",
    ("close", NO_REASON, "CLOSE_WAIT"): "reset by us",
    ("close", NO_REASON, "FIN_WAIT1"): "reset by us",
    ("close", NO_REASON, "SYN_RECV"): "reset by us",
    ("fail", NO_REASON, "SYN_SENT"): "given up",
    ("fail", errno.ECONNREFUSED, "SYN_SENT"): "refused",
    ("fail", errno.ETIMEDOUT, "SYN_SENT"): "timed out",
    ("fail", errno.ENETUNREACH, "SYN_SENT"): "network unreachable",
    ("fail", errno.EHOSTUNREACH, "SYN_SENT"): "host unreachable",
    ("fail", errno.EADDRNOTAVAIL, "SYN_SENT"): "no local port",
    ("fail", errno.EACCES, "SYN_SENT"): "prohibited",
    ("fail", errno.ECONNABORTED, "SYN_SENT"): "killed",
    ("close", errno.ECONNRESET, "ESTABLISHED"): "reset by peer",
    ("close", errno.EPIPE, "CLOSE_WAIT"): "reset by peer",
    ("close", errno.ECONNRESET, "LAST_ACK"): "reset by peer",
    ("close", errno.ETIMEDOUT, "ESTABLISHED"): "timed out",
    ("close", errno.ETIMEDOUT, "FIN_WAIT1"): "timed out",
    ("close", errno.ECONNABORTED, "ESTABLISHED"): "killed",
    ("close", errno.EPROTO, "ESTABLISHED"): "eproto",
}
"""What is shown for an event, the socket's errno, and the state that it left."""
KINDS = {name: number for number, name in EVENT_KINDS.items()}

ENDINGS = st.tuples(
    st.sampled_from([CLOSE, FAIL]),
    st.sampled_from([NO_REASON, *sorted(errno.errorcode)]),
    st.sampled_from([number for number in STATES if number < 14]),
)
OPENINGS = st.tuples(st.sampled_from([CONNECT, ACCEPT]), st.just(0xFFFF), st.sampled_from(sorted(STATES)))


def events_of(cells: list[tuple[int, int, int]]) -> Array:
    """Return events with these kinds, errnos and states; all else is unknown."""
    return unknown_rows(
        EVENT, *(dict(zip(("event", "reason", "state"), cell, strict=True)) for cell in cells)
    )


def reasons(cells: list[tuple[int, int, int]]) -> list[int]:
    """Return the reason that each event gets."""
    events = events_of(cells)
    set_reasons(events)
    actual: list[int] = events["reason"].tolist()
    return actual


@pytest.mark.parametrize(("ending", "label"), LABELS.items(), ids=str)
def test_reasons_by_name(ending: tuple[str, int, str], label: str) -> None:
    """An errno names the reason; otherwise it is who sent the first FIN, and a reset without one."""
    kind, error, state = ending
    assert [REASONS[reason] for reason in reasons([(KINDS[kind], error, STATE[state])])] == [label]


@given(st.lists(ENDINGS | OPENINGS, max_size=20))
def test_each_event_has_its_own_reason(cells: list[tuple[int, int, int]]) -> None:
    """A reason depends on its event alone; ended connections have a named one, others are unchanged.
    An end by FINs alone is no failure, any other end is."""
    events = events_of(cells)
    set_reasons(events)
    together = events["reason"].tolist()
    graceful = {"closed by us", "closed by peer", "closed by both"}
    assert is_failure(events).tolist() == [
        kind >= CLOSE and REASONS[reason] not in graceful
        for (kind, _, _), reason in zip(cells, together, strict=True)
    ]
    assert together == [reason for cell in cells for reason in reasons([cell])]
    for (kind, given_reason, _), reason in zip(cells, together, strict=True):
        if kind >= CLOSE:
            assert reason in REASONS
        else:
            assert reason == given_reason


def test_the_kinds_are_in_order() -> None:
    """Openings sort before ends: the programs and nettop compare with CLOSE."""
    assert CONNECT < CLOSE > ACCEPT
    assert CLOSE < FAIL


def test_an_event_begins_with_the_row() -> None:
    """The programs write the socket's row in place, so each field has the row's offset."""
    assert ROW.fields is not None
    assert EVENT.fields is not None
    for name, (form, at, *_) in ROW.fields.items():
        assert EVENT.fields[name][:2] == (form, at)


def test_all_bits_set_is_unknown_in_an_event() -> None:
    """The record has every field of the table, with its type; what no program set is unknown in all but addresses."""
    event = events_of([(0xFF, 0xFFFF, 0xFF)])
    for field in EVENTS.stored:
        column = event[field.name]
        assert column.dtype == np.dtype(field.dtype).base, field.name
        assert column.ndim > 1 or not known(column)[0], field.name
