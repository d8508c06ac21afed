# SPDX-License-Identifier: Apache-2.0
"""Both directions of a connection: two flows, each byte counted once, however exporters report them."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from nettop.collector.decode import connections
from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from tests.builders.flow_messages import Sent, a_set, batch, message, template_set

from .flow_oracle import REVERSE, Field

ENDS: list[Field] = [(0, 8, 4), (0, 12, 4), (0, 7, 2), (0, 11, 2), (0, 4, 1), (0, 10, 2), (0, 14, 2)]
CLIENT, SERVER = (10, 0, 50, 10), (10, 1, 78, 5)
Row = tuple[int, int, int, int]
"""Bytes, packets, destination port and biflow direction."""


def ends(client_port: int = 55_182) -> bytes:
    """Return the fields ENDS of a connection to port 3128."""
    return bytes((*CLIENT, *SERVER)) + struct.pack("!HHBHH", client_port, 3128, 6, 2, 3)


def rows(*batches: list[Sent], decoder: Decoder | None = None) -> list[Row]:
    """Return the flows of consecutive batches."""
    decoder = decoder or Decoder()
    found: list[Row] = []
    for sent in batches:
        flows = decoder.decode(batch(sent)).flows
        columns = (flows[name].tolist() for name in ("bytes", "packets", "dst_port", "biflow_direction"))
        found += zip(*columns, strict=True)
        for place, (direction, src) in enumerate(
            zip(flows["biflow_direction"].tolist(), flows["src"].tolist(), strict=True)
        ):
            assert src[12:] == bytes(SERVER if direction == 2 else CLIENT)
            assert flows["in_if"][place] == (3 if direction == 2 else 2)
    return found


# --- IN and OUT -----------------------------------------------------------------------------------------------


def in_and_out(version: int, counters: dict[int, int], enterprise: int = 0) -> Sent:
    """Return a flow with these counters."""
    more: list[Field] = [(enterprise, 118, 2)] if enterprise else []
    declared = template_set(version, 300, [*ENDS, *((0, number, 4) for number in counters), *more])
    record = ends() + b"".join(struct.pack("!I", value) for value in counters.values()) + bytes(2 * len(more))
    return message(version, declared, a_set(300, record))


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({1: 2000, 2: 20, 23: 1_500_000, 24: 1000}, [(2000, 20, 3128, 1), (1_500_000, 1000, 55_182, 2)]),
        ({23: 1_500_000, 24: 1000, 1: 2000, 2: 20}, [(2000, 20, 3128, 1), (1_500_000, 1000, 55_182, 2)]),
        ({1: 60, 2: 1, 23: 120, 24: 1}, [(60, 1, 3128, 1), (120, 1, 55_182, 2)]),  # DNS
        ({1: 60, 23: 120}, [(60, 0, 3128, 1), (120, 0, 55_182, 2)]),
        ({2: 7, 24: 9}, [(0, 7, 3128, 1), (0, 9, 55_182, 2)]),
        ({1: 1500, 2: 3, 23: 0, 24: 0}, [(1500, 3, 3128, 0)]),  # ng_netflow
        ({1: 0, 2: 0, 23: 1600, 24: 4}, [(1600, 4, 3128, 0)]),
        ({1: 500, 2: 5, 23: 500, 24: 5}, [(500, 5, 3128, 0)]),  # FortiGate
        ({1: 0, 2: 31, 23: 900, 24: 31}, [(900, 31, 3128, 0)]),
        ({1: 500, 2: 5}, [(500, 5, 3128, 0)]),
        ({23: 500, 24: 5}, [(500, 5, 3128, 0)]),
        ({1: 0, 2: 0, 23: 0, 24: 0}, [(0, 0, 3128, 0)]),
    ],
)
def test_in_and_out_are_two_flows_where_they_differ(counters: dict[int, int], expected: list[Row]) -> None:
    """Equal counters describe one flow, as does a counter that stands alone."""
    assert rows([in_and_out(NETFLOW_9, counters)]) == expected
    assert rows([in_and_out(IPFIX, counters, enterprise=35_632)]) == expected


@pytest.mark.parametrize(
    ("counters", "expected"),
    [
        ({1: 1500, 2: 1, 23: 1520, 24: 1}, (1500, 1, 3128, 0)),
        ({1: 0, 2: 0, 23: 1600, 24: 4}, (1600, 4, 3128, 0)),
        ({23: 1600, 24: 4}, (1600, 4, 3128, 0)),
    ],
)
def test_counters_after_a_middlebox_are_not_another_flow(counters: dict[int, int], expected: Row) -> None:
    """In IPFIX these elements mean something else than in NetFlow v9, except from nProbe."""
    assert rows([in_and_out(IPFIX, counters)]) == [expected]


# --- events of firewalls --------------------------------------------------------------------------------------

CREATE, DELETE, DENY, UPDATE = 1, 2, 3, 5
NSEL: list[Field] = [*ENDS, (0, 233, 1), (0, 231, 4), (0, 232, 4), (0, 298, 4), (0, 299, 4)]
Event = tuple[int, int, int, int, int]
"""Event, then bytes of initiator and responder, then their packets."""
FIRST: Event = (CREATE, 0, 0, 0, 0)
UPDATES: tuple[Event, ...] = ((UPDATE, 2557, 1117, 10, 9), (UPDATE, 31, 0, 1, 0))
LAST: Event = (DELETE, 2588, 1117, 11, 9)


def event(said: Event, connection: int | None = None, client_port: int = 55_182) -> bytes:
    """Return an NSEL record."""
    number = b"" if connection is None else struct.pack("!I", connection)
    return ends(client_port) + struct.pack("!BIIII", *said) + number


def events(*records: bytes, template_id: int = 263, has_number: bool = False) -> Sent:
    """Return a message of these records."""
    fields: list[Field] = [*NSEL, *([(0, 148, 4)] if has_number else [])]
    declared = template_set(NETFLOW_9, template_id, fields)
    return message(NETFLOW_9, declared, a_set(template_id, b"".join(records)))


def sums(found: list[Row]) -> tuple[int, int, int, int]:
    """Return the bytes of each direction, and the packets of each."""
    of = {direction: [row for row in found if (row[3] == 2) == (direction == 2)] for direction in (1, 2)}
    return tuple(sum(row[place] for row in of[direction]) for place in (0, 1) for direction in (1, 2))  # type: ignore[return-value]


@pytest.mark.parametrize("connection", [None, 742_819_710])
@pytest.mark.parametrize(
    "said",
    [
        (FIRST, *UPDATES, LAST),
        (*UPDATES, LAST),
        (FIRST, LAST),
        (LAST,),
        (UPDATES[1], LAST),  # the other one was lost
        (FIRST, *UPDATES, (UPDATE, 0, 0, 0, 0), LAST),
        (FIRST, (UPDATE, *LAST[1:]), LAST),  # on teardown
        (FIRST, *UPDATES),  # it continues
    ],
)
def test_no_byte_of_a_connection_counts_twice(said: tuple[Event, ...], connection: int | None) -> None:
    """Increments in updates and the total at the end are combined, in one datagram, one batch or several."""
    records = [event(code, connection) for code in said]
    whole = events(*records, has_number=connection is not None)
    parts = [events(record, has_number=connection is not None) for record in records]
    for batches in ([[whole]], [parts], [[part] for part in parts]):
        found = rows(*batches)
        assert sums(found) == (2588, 1117, 11, 9)
        # Each event remains a row.
        assert len([row for row in found if row[3] == 1]) == len(said)


def test_connections_are_told_apart() -> None:
    """By the exporter's number, and by their endpoints."""
    total: Event = (DELETE, 100, 200, 1, 2)
    more = [event((UPDATE, 60, 150, 1, 1), 7), event((UPDATE, 9, 9, 1, 1), 8), event(total, 7)]
    assert sums(rows([events(*more, has_number=True)])) == (109, 209, 2, 3)
    more = [event((UPDATE, 60, 150, 1, 1)), event(total, client_port=1), event(total)]
    assert sums(rows([events(*more)])) == (200, 400, 2, 4)


def test_a_connection_of_the_same_ends_counts_by_itself() -> None:
    """A creation starts a new connection, even if the end of the previous one was lost."""
    again = [event(update) for update in (*UPDATES, FIRST, *UPDATES, LAST, FIRST, LAST)]
    assert sums(rows([events(*again)])) == tuple(3 * count for count in (2588, 1117, 11, 9))


def test_an_end_may_be_read_before_an_update() -> None:
    """With different templates in one batch, updates and ends are decoded one after the other."""
    for update, end in pairwise((300, 263, 300)):
        sent = [events(*map(event, UPDATES), template_id=update), events(event(LAST), template_id=end)]
        assert sums(rows(sent)) == (2588, 1117, 11, 9)


def test_an_end_may_overtake_an_update() -> None:
    """It then arrives in an earlier batch."""
    assert sums(rows([events(event(LAST))], [events(event(UPDATES[0]))])) == (2588, 1117, 11, 9)


@pytest.mark.parametrize("template_ids", [(256, 263, 270), (270, 263, 256), (300, 256, 263)])
def test_a_creation_may_be_read_after_an_update(template_ids: tuple[int, int, int]) -> None:
    """In one batch, with different templates: the connection number distinguishes it from others."""
    said = (FIRST, UPDATES[0], LAST)
    first, update, end = (
        events(event(each, 7), template_id=template_id, has_number=True)
        for each, template_id in zip(said, template_ids, strict=True)
    )
    for batches in ([[first, update], [end]], [[first, update, end]], [[first], [update], [end]]):
        assert sums(rows(*batches)) == (2588, 1117, 11, 9)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently updated one is evicted and counted; its end counts its full total."""
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 2)
    decoder = Decoder()
    sent = [events(event(UPDATES[0], number), has_number=True) for number in (1, 2, 1, 3)]
    sent += [events(event((DELETE, 9000, 0, 0, 0), number), has_number=True) for number in (1, 2, 3)]
    found = rows(sent, decoder=decoder)
    assert [row[0] for row in found if row[3] == 1][4:] == [9000 - 2 * 2557, 9000, 9000 - 2557]
    assert decoder.messages.known.dropped == {"connections": 1}


def test_totals_of_other_firewalls_are_kept() -> None:
    """Without initiator and responder counters, an event does not tell what was counted before."""
    fields: list[Field] = [*ENDS, (0, 233, 1), (0, 1, 4), (0, 2, 4)]
    record = ends() + struct.pack("!BII", DELETE, 700, 3)
    sent = message(NETFLOW_9, template_set(NETFLOW_9, 300, fields), a_set(300, record * 2))
    assert rows([sent]) == [(700, 3, 3128, 0)] * 2


def test_initiator_and_responder_without_events() -> None:
    """As counted by routers without a total."""
    fields: list[Field] = [*ENDS, (0, 231, 4), (0, 232, 4)]
    record = ends() + struct.pack("!II", 700, 900)
    sent = message(
        IPFIX, template_set(IPFIX, 300, fields), a_set(300, record + ends() + struct.pack("!II", 5, 0))
    )
    assert rows([sent]) == [(700, 0, 3128, 1), (5, 0, 3128, 1), (900, 0, 55_182, 2)]


@pytest.mark.parametrize("number", [1, 85, 352])
@pytest.mark.parametrize(("total", "is_both"), [(0, True), (700, True), (1600, True), (1500, False)])
def test_initiator_and_responder_beside_a_total(number: int, total: int, is_both: bool) -> None:
    """The total may be empty, the initiator's, or both; if it is neither, it counts, once."""
    fields: list[Field] = [*ENDS, (0, 231, 4), (0, 232, 4), (0, number, 4)]
    record = ends() + struct.pack("!III", 700, 900, total)
    sent = message(IPFIX, template_set(IPFIX, 300, fields), a_set(300, record))
    both = [(700, 0, 3128, 1), (900, 0, 55_182, 2)]
    assert rows([sent]) == (both if is_both else [(total, 0, 3128, 0)])


def test_a_biflow_by_reverse_elements() -> None:
    """The result is the same if the record has OUT_BYTES."""
    fields: list[Field] = [*ENDS, (0, 1, 4), (REVERSE, 1, 4), (0, 23, 4)]
    record = ends() + struct.pack("!III", 700, 900, 700)
    sent = message(IPFIX, template_set(IPFIX, 300, fields), a_set(300, record))
    assert rows([sent]) == [(700, 0, 3128, 1), (900, 0, 55_182, 2)]


@pytest.mark.parametrize(("version", "enterprise", "more"), [(IPFIX, 9, 0), (NETFLOW_9, 0, 0x8000)])
def test_client_and_server_of_cisco(version: int, enterprise: int, more: int) -> None:
    """AVC records have no source and destination: the client is the initiator."""
    numbers = {12_236: 4, 12_237: 4, 12_241: 2, 8337: 8, 8338: 8}
    fields: list[Field] = [(enterprise, number | more, length) for number, length in numbers.items()]
    fields += [(0, 298, 8), (0, 299, 8), (0, 10, 2), (0, 14, 2)]
    record = bytes((*CLIENT, *SERVER)) + struct.pack("!HQQQQHH", 443, 9000, 700, 3, 8, 2, 3)
    sent = message(version, template_set(version, 300, fields), a_set(300, record))
    assert rows([sent]) == [(700, 3, 443, 1), (9000, 8, 0, 2)]


def test_elements_of_iana_count_over_those_of_cisco() -> None:
    """A record may also have source and destination, which are not client and server."""
    fields: list[Field] = [(9, 12_236, 4), (9, 12_237, 4), *ENDS, (0, 1, 4)]
    record = bytes((*SERVER, *CLIENT)) + ends() + struct.pack("!I", 700)
    sent = message(IPFIX, template_set(IPFIX, 300, fields), a_set(300, record))
    assert rows([sent]) == [(700, 0, 3128, 0)]


def test_events_and_translations_of_an_older_asa() -> None:
    """Before 8.4(5) an ASA used element numbers of its own."""
    fields: list[Field] = [*ENDS, (0, 40_005, 1), (0, 40_001, 4), (0, 40_003, 2), (0, 85, 4)]
    record = ends() + struct.pack("!B4sHI", DELETE, bytes((192, 0, 2, 9)), 1024, 1600)
    sent = message(NETFLOW_9, template_set(NETFLOW_9, 300, fields), a_set(300, record))
    flows = Decoder().decode(batch([sent])).flows
    assert rows([sent]) == [(1600, 0, 3128, 0)]
    assert flows["event"].tolist() == [DELETE]
    assert (flows["nat_src"][0].tobytes()[12:], *flows["nat_src_port"].tolist()) == (
        bytes((192, 0, 2, 9)),
        1024,
    )
