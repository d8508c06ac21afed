# SPDX-License-Identifier: Apache-2.0
"""NetFlow v9 and IPFIX: the decoder agrees with the oracle, for any declarations and any batching."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from collections import Counter
from typing import NoReturn

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.collector.columns import ADDRESS, COLUMNS, Flows, concatenate_flows
from nettop.collector.decode import domains, held
from nettop.collector.decode.batch import Batch, DecodeResult
from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.messages import MessageDecoder
from nettop.collector.decode.templates import IPFIX, NETFLOW_9, Template
from tests.builders.flow_messages import (
    PLAIN,
    PORT,
    QUIET,
    RECEIVED_NS,
    SENDER,
    UPTIME_MS,
    Sent,
    a_set,
    batch,
    from_port,
    message,
    options_set,
    plain,
    template_set,
)

from .flow_oracle import GIVEN_BY, REVERSE, VARIABLE, Field, Oracle, Row

COMPARED = ("domain", "biflow_direction", *dict.fromkeys(name for name, _, _ in GIVEN_BY))
DEFAULTS: Row = {column.name: bytes(16) if column.dtype == ADDRESS else column.default for column in COLUMNS}
BITS = {c.name: (1 << 8 * np.dtype(c.dtype).itemsize) - 1 for c in COLUMNS if c.dtype.startswith("u")}
LENGTHS = {
    1: (1, 3, 4, 8), 2: (2, 4, 5, 8), 23: (4, 8), 24: (4,), 231: (4, 8), 232: (4, 8), 298: (4,), 299: (4,), 85: (8,),
    86: (4, 8), 8: (4,), 12: (4,), 27: (16,), 28: (16,),
    7: (2,), 11: (2,), 4: (1,), 56: (6,), 70: (3,), 32: (2,), 152: (8,), 154: (8,), 150: (4,), 158: (4,), 22: (4,),
    21: (4,), 151: (4,), 153: (8,), 160: (8,), 61: (1,), 82: (5,),
}  # fmt: skip
"""Elements, with their possible lengths."""


def decode(decoder: MessageDecoder, sent: list[Sent]) -> Batch:
    """Decode one batch."""
    (version,) = {struct.unpack_from("!H", datagram.data)[0] for datagram in sent}
    decoded = Batch(batch(sent))
    decoder.read(decoded, np.arange(len(sent)), version)
    return decoded


def flows_of(*decoded: Batch) -> Flows:
    """Return all flows of these batches."""
    parts = [part for each in decoded for part in each.parts]
    return concatenate_flows(parts, [len(of) for each in decoded for of in each.of])


def malformed(decoded: Batch) -> int:
    """Count messages, sets and templates that could not be read."""
    headers = decoded.headers
    return int(headers["broken"].sum() + (headers["reading"] != DecodeResult.DECODED).sum())


def rows_of(flows: Flows) -> list[Row]:
    """Return the compared columns, row by row."""
    values = [flows[name].tolist() for name in COMPARED]
    return [dict(zip(COMPARED, row, strict=True)) for row in zip(*values, strict=True)]


def expected(oracle: Oracle) -> list[Row]:
    """Return the oracle's rows, with defaults for missing columns, masked to the stored width."""
    rows = []
    for row in oracle.rows:
        values = {name: row.get(name, DEFAULTS[name]) for name in COMPARED}
        stored = {
            name: value & BITS[name]
            for name, value in values.items()
            if isinstance(value, int) and name in BITS
        }
        rows.append(values | stored)
    return rows


def counted(rows: list[Row]) -> Counter[tuple[tuple[str, int | bytes], ...]]:
    """Count rows regardless of order."""
    return Counter(tuple(sorted(row.items())) for row in rows)


# --- whatever exporters declare -------------------------------------------------------------------------------


@st.composite
def fields_of(draw: st.DrawFn, version: int) -> list[Field]:
    """Draw the fields of a template."""
    fields: list[Field] = []
    for number in draw(st.lists(st.sampled_from(list(LENGTHS)), min_size=1, max_size=12)):
        length = draw(st.sampled_from(LENGTHS[number]))
        enterprise = 0
        if version == IPFIX:
            enterprise = draw(st.sampled_from((0, 0, 0, 0, REVERSE, 12_345, 35_632)))
            if number == 82 and draw(st.booleans()):
                length = VARIABLE
        fields.append((enterprise, number, length))
    return fields


@st.composite
def a_record(draw: st.DrawFn, fields: list[Field]) -> bytes:
    """Draw the bytes of a record."""
    parts = []
    for _, _, length in fields:
        if length == VARIABLE:
            value = draw(st.binary(max_size=300))
            head = bytes([len(value)]) if len(value) < 255 else struct.pack("!BH", 255, len(value))
            parts.append(head + value)
        else:
            parts.append(draw(st.binary(min_size=length, max_size=length) | st.just(bytes(length))))
    return b"".join(parts)


@st.composite
def a_run(draw: st.DrawFn) -> list[Sent]:
    """Draw messages of some domains, which declare templates before using them and may redeclare them."""
    version = draw(st.sampled_from((NETFLOW_9, IPFIX)))
    known: dict[tuple[int, int], list[Field]] = {}
    sent = []
    for sequence in range(draw(st.integers(1, 6))):
        domain, sets = draw(st.integers(0, 1)), []
        for _ in range(draw(st.integers(1, 4))):
            template_id = draw(st.integers(256, 258))
            fields = known.get((domain, template_id))
            if fields is None or draw(st.integers(0, 4)) == 0:
                fields = known[domain, template_id] = draw(fields_of(version))
                sets.append(template_set(version, template_id, fields))
            rows = [draw(a_record(fields)) for _ in range(draw(st.integers(0, 4)))]
            shortest = sum(1 if length == VARIABLE else length for _, _, length in fields)
            padding = draw(st.integers(0, min(3, shortest - 1)))
            sets.append(a_set(template_id, b"".join(rows), padding))
        sent.append(message(version, *sets, domain=domain, sequence=sequence))
    return sent


@given(a_run(), st.integers(1, 6))
def test_flows_match_the_oracle(sent: list[Sent], at_once: int) -> None:
    """However many messages a batch has."""
    oracle, decoder = Oracle(RECEIVED_NS // 1_000_000), MessageDecoder()
    for datagram in sent:
        oracle.message(datagram.sender, datagram.port, datagram.data)
    batches = [sent[at : at + at_once] for at in range(0, len(sent), at_once)]
    decoded = [decode(decoder, each) for each in batches]
    assert counted(rows_of(flows_of(*decoded))) == counted(expected(oracle))
    assert sum(malformed(each) for each in decoded) == 0


@given(a_run(), st.data())
def test_broken_messages_harm_no_other(sent: list[Sent], data: st.DataObject) -> None:
    """Whatever is changed or cut off, nothing is raised, and other exporters' messages are decoded."""
    decoder, other = MessageDecoder(), MessageDecoder()
    broken = []
    for datagram in sent:
        changed = bytearray(datagram.data)
        for _ in range(data.draw(st.integers(0, 8))):
            changed[data.draw(st.integers(2, len(changed) - 1))] = data.draw(st.integers(0, 255))
        broken.append(
            Sent(datagram.sender, datagram.port, bytes(changed[: data.draw(st.integers(2, len(changed)))]))
        )
    sound = [Sent(datagram.sender, PORT + 1, datagram.data) for datagram in sent]
    mixed = [message for pair in zip(broken, sound, strict=True) for message in pair]
    decoded = decode(decoder, mixed)
    alone = rows_of(flows_of(decode(other, sound)))
    assert counted(alone) <= counted(rows_of(flows_of(decoded)))


# --- templates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
def test_sets_wait_for_their_template(version: int) -> None:
    """They keep their own message's header."""
    decoder = MessageDecoder()
    first = decode(decoder, [message(version, a_set(300, plain(11)), sequence=5)])
    assert (first.counts["held"], sum(map(len, first.of))) == (1, 0)
    elsewhere = decode(decoder, [message(version, template_set(version, 300, PLAIN), domain=8)])
    assert elsewhere.counts["released"] == 0
    later = decode(
        decoder, [message(version, template_set(version, 300, PLAIN), a_set(300, plain(13)), sequence=9)]
    )
    assert (later.counts["released"], later.counts["records"]) == (1, 2)
    flows = flows_of(later)
    assert dict(zip(flows["bytes"].tolist(), flows["sequence"].tolist(), strict=True)) == {11: 5, 13: 9}


@pytest.mark.parametrize("bound", ["DOMAIN_BYTES_MAX", "ADDRESS_BYTES_MAX", "BYTES_MAX"])
def test_waiting_sets_are_bounded(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets that have waited longest are dropped and counted."""
    monkeypatch.setattr(held, bound, 20_000)
    decoder = MessageDecoder()
    decoded = [decode(decoder, [message(IPFIX, a_set(300 + n, plain(n)))]) for n in range(40)]
    forgotten = sum(each.forgotten.total() for each in decoded)
    assert 0 < forgotten < 40
    every = [template_set(IPFIX, 300 + n, PLAIN) for n in range(40)]
    released = decode(decoder, [message(IPFIX, *every)])
    assert released.counts["released"] == 40 - forgotten
    assert sorted(flows_of(released)["bytes"].tolist()) == list(range(forgotten, 40))


@pytest.mark.parametrize(
    "noisy",
    [
        [message(IPFIX, a_set(300, bytes(1300)), domain=2)] * 1000,
        [message(IPFIX, a_set(300 + number, bytes(1300)), domain=2) for number in range(1000)],
        [
            dataclasses.replace(
                message(IPFIX, a_set(300, bytes(1300))), sender=QUIET[:-1] + b"\x03", port=port
            )
            for port in range(1000, 3000)
        ],
        [
            dataclasses.replace(
                message(IPFIX, a_set(300, bytes(1300)), domain=n), sender=QUIET[:-1] + b"\x03"
            )
            for n in range(2000)
        ],
    ],
    ids=["one domain", "many templates", "many ports", "many domains"],
)
def test_no_exporter_displaces_another(noisy: list[Sent]) -> None:
    """An exporter whose templates never arrive does not displace others' sets, even those of the same address."""
    decoder = MessageDecoder()
    decode(decoder, [message(IPFIX, a_set(256, plain(1)), domain=1)])
    dropped = decode(decoder, noisy).forgotten
    released = decode(decoder, [message(IPFIX, template_set(IPFIX, 256, PLAIN), domain=1)])
    assert (released.counts["released"], flows_of(released)["bytes"].tolist()) == (1, [1])
    waiting = Counter(decoder.waiting)
    assert sum(waiting.values()) * 1300 <= held.ADDRESS_BYTES_MAX
    assert (waiting + dropped).total() == len(noisy)
    assert {key[3] for key in dropped} <= {int.from_bytes(datagram.data[12:16]) for datagram in noisy}


def test_memory_of_waiting_sets_is_accounted() -> None:
    """Also if each set comes from another port."""
    decoder = MessageDecoder()
    tracemalloc.start()
    for port in range(6000):
        decode(decoder, [Sent(SENDER, port, message(IPFIX, a_set(300, plain(1))).data)])
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 1.5 * held.ADDRESS_BYTES_MAX


def test_templates_are_withdrawn() -> None:
    """One, or all of a kind; the other kind remains (RFC 7011, section 8.1)."""
    decoder = MessageDecoder()
    declared = [
        template_set(IPFIX, 300, PLAIN),
        template_set(IPFIX, 301, PLAIN),
        options_set(IPFIX, 302, [(0, 149, 4)], [(0, 34, 4)]),
    ]
    decode(decoder, [message(IPFIX, *declared)])
    decode(decoder, [message(IPFIX, a_set(2, struct.pack("!HH", 300, 0)))])
    assert decode(decoder, [message(IPFIX, a_set(300, plain(1)), a_set(301, plain(1)))]).counts["held"] == 1
    decode(decoder, [message(IPFIX, a_set(2, struct.pack("!HH", 2, 0)))])
    after = decode(decoder, [message(IPFIX, a_set(301, plain(1)), a_set(302, struct.pack("!II", 7, 100)))])
    assert (after.counts["held"], after.headers["options"].sum()) == (1, 1)


def test_empty_fields_take_no_memory() -> None:
    """A template may have a thousand of them, and a datagram thousands of records."""
    decoder, count = MessageDecoder(), 9000
    fields: list[Field] = [(0, 1000 + number, 0) for number in range(1000)]
    sent = message(IPFIX, template_set(IPFIX, 300, [*fields, (0, 4, 1)]), a_set(300, bytes([6]) * count))
    tracemalloc.start()
    flows = flows_of(decode(decoder, [sent]))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert flows["protocol"].tolist() == [6] * count
    assert peak_bytes < count * 2000


def test_variable_lengths_are_read_where_they_are() -> None:
    """The buffer is sized for thousands of datagrams, even if few arrived; it is not copied."""
    fields: list[Field] = [*PLAIN, (0, 82, VARIABLE)]
    sent = message(IPFIX, template_set(IPFIX, 300, fields), a_set(300, plain(5) + b"\4eth0"))
    few, room = batch([sent]), np.zeros(8 << 20, np.uint8)
    room[: len(sent.data)] = few.buffer
    datagrams = dataclasses.replace(few, buffer=room)
    tracemalloc.start()
    flows = Decoder().decode(datagrams).flows
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert flows["bytes"].tolist() == [5]
    assert peak_bytes < len(room) / 8


def test_a_withdrawal_looks_at_no_other_template() -> None:
    """A datagram full of withdrawals costs no more if a domain has many templates."""

    class Unread(dict[int, Template]):
        def values(self) -> NoReturn:
            raise AssertionError

    decoder = MessageDecoder()
    decode(decoder, [message(IPFIX, template_set(IPFIX, 300, PLAIN), template_set(IPFIX, 301, PLAIN))])
    (domain,) = decoder.known.all.values()
    domain.templates = Unread(domain.templates)
    withdrawn = [struct.pack("!HH", number, 0) for number in (300, 300, 302)]
    decode(decoder, [message(IPFIX, a_set(2, b"".join(withdrawn)), a_set(3, struct.pack("!HH", 3, 0)))])
    assert list(domain.templates) == [301]
    decode(decoder, [message(IPFIX, a_set(2, struct.pack("!HH", 2, 0)))])
    assert not domain.templates


@pytest.mark.parametrize(
    ("version", "content"),
    [
        (NETFLOW_9, a_set(0, struct.pack("!HH", 300, 60_000))),
        (NETFLOW_9, a_set(0, struct.pack("!HHHH", 200, 1, 1, 4))),
        (IPFIX, a_set(2, struct.pack("!HHHH", 300, 2, 1, 4))),
        (IPFIX, a_set(3, struct.pack("!HHHHH", 300, 1, 2, 34, 4))),
        (IPFIX, a_set(2, struct.pack("!HHHH", 300, 1, 1, 0))),
        (IPFIX, a_set(7, b"1234")),
        (IPFIX, struct.pack("!HH", 256, 3)),
        (IPFIX, struct.pack("!HH", 256, 300)),
    ],
)
def test_malformed_parts_are_counted(version: int, content: bytes) -> None:
    """The part of the message before it still counts."""
    sound = template_set(version, 256, PLAIN) + a_set(256, plain(5))
    decoded = decode(MessageDecoder(), [message(version, sound, content)])
    assert (malformed(decoded), decoded.counts["records"]) == (1, 1)


@pytest.mark.parametrize("beyond", [1, 4, 15, 20, 36])
def test_a_set_beyond_the_length_of_its_message(beyond: int) -> None:
    """It is decoded if the datagram has it, and counted; what follows is not part of the message."""
    sets = template_set(IPFIX, 300, PLAIN), a_set(300, plain(1) + plain(2))
    whole = message(IPFIX, *sets)
    length = struct.pack("!H", len(whole.data) - beyond)
    sent = Sent(SENDER, PORT, whole.data[:2] + length + whole.data[4:] + a_set(300, plain(3)))
    decoded = decode(MessageDecoder(), [sent])
    is_begun = beyond <= len(sets[1]) - 4
    assert flows_of(decoded)["bytes"].tolist() == ([1, 2] if is_begun else [])
    assert malformed(decoded) == int(is_begun)


def test_domains_and_templates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those known for longest stay, however little they send; of the others, the newest."""
    monkeypatch.setattr(domains, "DOMAINS_MAX", 10)
    monkeypatch.setattr(domains, "FIELDS_MAX", 20)
    decoder = MessageDecoder()
    for domain in range(100):
        decode(decoder, [message(IPFIX, template_set(IPFIX, 300, PLAIN), domain=domain)])
    assert len(decoder.known._all) <= 10
    assert (
        decoder.known._fields
        == sum(len(t.fields) for d in decoder.known._all.values() for t in d.templates.values())
        <= 20
    )
    assert decode(decoder, [message(IPFIX, a_set(300, plain(1)), domain=99)]).counts["records"] == 1
    assert decode(decoder, [message(IPFIX, a_set(300, plain(1)), domain=0)]).counts["records"] == 1
    assert decode(decoder, [message(IPFIX, a_set(300, plain(1)), domain=98)]).counts["held"] == 1


def test_domains_that_were_not_used_for_long_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any that are in use."""
    monkeypatch.setattr(domains, "DOMAINS_MAX", 10)
    decoder = MessageDecoder()
    for domain in range(10):
        decode(decoder, [message(IPFIX, template_set(IPFIX, 300, PLAIN), domain=domain)])
    for key in list(decoder.known.all)[2:5]:
        decoder.known.get(key).used_at -= domains.UNUSED_S + 1
    for domain in (10, 11, 12, 13):
        decode(decoder, [message(IPFIX, template_set(IPFIX, 300, PLAIN), domain=domain)])
    assert [number for *_, number in decoder.known.all] == [0, 1, 5, 6, 7, 8, 9, 10, 11, 13]
    assert decoder.known.dropped == {"domains": 4}


# --- ICMP -----------------------------------------------------------------------------------------------------


def icmp_sets(version: int, protocol: int, port: int, fields: list[Field], content: bytes) -> list[bytes]:
    """Return a flow with this protocol and destination port, and more fields."""
    declared = template_set(version, 300, [*PLAIN, (0, 4, 1), (0, 7, 2), (0, 11, 2), *fields])
    return [declared, a_set(300, plain(84) + struct.pack("!BHH", protocol, 0, port) + content)]


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
@pytest.mark.parametrize(
    ("protocol", "port", "more", "type_and_code"),
    [
        (1, 0x0303, ([], b""), (3, 3)),
        (1, 0x0800, ([], b""), (8, 0)),
        (1, 0, ([], b""), (0, 0)),
        (58, 0x8000, ([], b""), (128, 0)),
        (58, 0x0104, ([], b""), (1, 4)),
        (58, 135, ([], b""), (135, 0)),  # the type alone
        (1, 8, ([], b""), (8, 0)),
        (6, 0x0303, ([], b""), (0, 0)),
        (17, 53, ([], b""), (0, 0)),
        # The identifier of echo requests, as from ASA: fields give the type.
        (1, 17_549, ([(0, 176, 1), (0, 177, 1)], bytes((0, 0))), (0, 0)),
        (1, 17_549, ([(0, 32, 2)], bytes((11, 1))), (11, 1)),
        (58, 17_549, ([(0, 139, 2)], bytes((136, 0))), (136, 0)),
        # The type alone in a field for both.
        (1, 0, ([(0, 32, 2)], bytes((0, 8))), (8, 0)),
        (1, 0, ([(0, 32, 1)], bytes((11,))), (11, 0)),
        (58, 0, ([(0, 139, 2)], bytes((0, 135))), (135, 0)),
        (58, 17_549, ([(0, 178, 1), (0, 179, 1)], bytes((134, 0))), (134, 0)),
    ],
)
def test_type_and_code_of_icmp(
    version: int, protocol: int, port: int, more: tuple[list[Field], bytes], type_and_code: tuple[int, int]
) -> None:
    """From the fields present, else from the destination port."""
    sent = message(version, *icmp_sets(version, protocol, port, *more))
    (row,) = rows_of(flows_of(decode(MessageDecoder(), [sent])))
    assert (row["icmp_type"], row["icmp_code"]) == type_and_code


# --- exporters whose port changes, and that restart --------------------------------------------------------------

LONGER: list[Field] = [*PLAIN, (0, 7, 2)]
SWAPPED: list[Field] = [(0, 12, 4), (0, 8, 4), (0, 2, 4), (0, 1, 4)]
RESTARTED_MS = UPTIME_MS - 61_000
"""Uptime of an exporter that started clearly later."""


def longer(byte_count: int) -> bytes:
    """Return a record of the longer template."""
    return plain(byte_count) + b"\x01\xbb"


def byte_counts(*decoded: Batch) -> list[int]:
    """Return the bytes of all flows, sorted."""
    counts: list[int] = sorted(flows_of(*decoded)["bytes"].tolist())
    return counts


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
def test_templates_are_those_of_the_exporter_where_its_port_changes(version: int, at_once: bool) -> None:
    """As long as no other exporter could have sent them."""
    decoder = MessageDecoder()
    data = message(version, a_set(300, plain(1)), sequence=2)
    sent = [
        message(version, template_set(version, 300, PLAIN)),
        from_port(data, PORT + 1),
        from_port(data, PORT + 2),
        from_port(data, PORT + 1, sender=QUIET),
        from_port(message(version, a_set(300, plain(1)), domain=8), PORT + 1),
        from_port(message(version, a_set(301, plain(1))), PORT + 1),
    ]
    decoded = [
        decode(decoder, batch_of) for batch_of in ([sent] if at_once else [[datagram] for datagram in sent])
    ]
    assert byte_counts(*decoded) == [1, 1]
    assert sum(each.counts["held"] for each in decoded) == 3
    assert len(decoder.known.all) == 1


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
def test_templates_of_two_exporters_behind_one_address(version: int) -> None:
    """Each has its own. If a port changes, an ambiguous template is not used, and sets wait."""
    decoder = MessageDecoder()
    for port, fields in ((1, PLAIN), (2, SWAPPED)):
        decode(decoder, [from_port(message(version, template_set(version, 300, fields)), port)])
    data = message(version, a_set(300, plain(7)), sequence=2)
    assert [byte_counts(decode(decoder, [from_port(data, port)])) for port in (1, 2, 3)] == [[7], [1], []]
    same = message(version, template_set(version, 300, SWAPPED))
    assert byte_counts(decode(decoder, [from_port(same, 3)])) == [1]
    decode(decoder, [from_port(same, 1)])
    assert byte_counts(decode(decoder, [from_port(data, 4)])) == [1]


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
def test_templates_of_implausible_exporters_are_not_used(version: int) -> None:
    """If the records have another length, sets wait for their own."""
    decoder = MessageDecoder()
    decode(decoder, [message(version, template_set(version, 300, PLAIN))])
    other = message(version, a_set(300, longer(3)), sequence=2)
    assert decode(decoder, [from_port(other, 1)]).counts["held"] == 1
    declared = message(version, template_set(version, 300, LONGER))
    assert byte_counts(decode(decoder, [from_port(declared, 1)])) == [3]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("version", "uptime_ms", "sequence"),
    [
        (NETFLOW_9, RESTARTED_MS, 90_009),
        (NETFLOW_9, RESTARTED_MS, 0),
        (NETFLOW_9, UPTIME_MS, 0),
        (IPFIX, 0, 0),
        (IPFIX, 0, 4000),
    ],
)
def test_a_restart_ends_templates_that_no_longer_fit(
    version: int, uptime_ms: int, sequence: int, at_once: bool
) -> None:
    """Sets that arrive before the new template wait for it; other templates stay."""
    decoder = MessageDecoder()
    declared = template_set(version, 300, PLAIN), template_set(version, 301, PLAIN)
    sent = [
        message(version, *declared, sequence=90_004),
        message(version, a_set(300, plain(1)), a_set(301, plain(1)), sequence=90_005),
        *(
            from_port(message(version, *sets, sequence=sequence + at), PORT, uptime_ms=uptime_ms)
            for at, sets in enumerate(
                (
                    (a_set(300, longer(2)), a_set(301, plain(2))),
                    (a_set(300, longer(3)), a_set(301, plain(3))),
                    (template_set(version, 300, LONGER), a_set(300, longer(4))),
                    (a_set(300, longer(5)), a_set(301, plain(5))),
                )
            )
        ),
    ]
    decoded = [
        decode(decoder, batch_of) for batch_of in ([sent] if at_once else [[datagram] for datagram in sent])
    ]
    assert byte_counts(*decoded) == [1, 1, 2, 2, 3, 3, 4, 5, 5]
    assert sum(each.counts["released"] for each in decoded) == 2


@pytest.mark.parametrize("port", [PORT, PORT + 1])
@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
def test_datagrams_that_arrive_again_are_decoded(version: int, port: int) -> None:
    """However low their numbers."""
    decoder = MessageDecoder()
    data = [
        from_port(message(version, a_set(300, plain(1), padding=3), sequence=number), port)
        for number in (1, 2, 90_000, 90_001)
    ]
    decode(decoder, [message(version, template_set(version, 300, PLAIN), sequence=0)])
    decoded = [decode(decoder, datagrams) for datagrams in (data, data, data[::-1])]
    assert byte_counts(*decoded) == [1] * 12


@pytest.mark.parametrize("padding", [b"\1", b"\xff" * 7])
def test_trailing_bytes_of_a_set_are_no_restart(padding: bytes) -> None:
    """Some exporters pad with arbitrary bytes."""
    decoder = MessageDecoder()
    sets = template_set(NETFLOW_9, 300, PLAIN), a_set(300, plain(1) + padding)
    decoded = [
        decode(decoder, [message(NETFLOW_9, *sets)]),
        decode(decoder, [message(NETFLOW_9, sets[1], sequence=2)]),
    ]
    assert byte_counts(*decoded) == [1, 1]


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
@pytest.mark.parametrize("numbers", [(1_000_001, 999_990, 1_000_002), (4_100, 4, 4_101), (2**32 - 9, 9, 40)])
def test_a_reordered_datagram_is_no_restart(version: int, numbers: tuple[int, ...]) -> None:
    """Whatever its padding; nor are numbers that wrap."""
    decoder = MessageDecoder()
    data = a_set(300, plain(1) + b"padding")
    decode(decoder, [message(version, template_set(version, 300, PLAIN), sequence=numbers[0] - 1)])
    decoded = [decode(decoder, [message(version, data, sequence=number)]) for number in numbers]
    assert byte_counts(*decoded) == [1, 1, 1]


@pytest.mark.parametrize("port", [1, 2])
def test_an_exporter_that_wraps_its_uptime_has_not_restarted(port: int) -> None:
    """After 49.7 days; its clock may be one second off."""
    decoder = MessageDecoder()
    declared = from_port(message(NETFLOW_9, template_set(NETFLOW_9, 300, PLAIN)), 1, uptime_ms=2**32 - 500)
    decode(decoder, [declared])
    padding = b"padding" if port == 1 else b""
    data = message(NETFLOW_9, a_set(300, plain(1) + padding), sequence=2)
    assert byte_counts(decode(decoder, [from_port(data, port, uptime_ms=500)])) == [1]


def test_ports_are_forgotten_with_their_domains(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exporter that sends each datagram from another port takes no more room than others."""
    monkeypatch.setattr(domains, "DOMAINS_MAX", 10)
    decoder = MessageDecoder()
    declared, data = message(IPFIX, template_set(IPFIX, 300, PLAIN)), message(IPFIX, a_set(300, plain(1)))
    for port in range(1, 100, 2):
        decode(decoder, [from_port(declared, port)])
        assert byte_counts(decode(decoder, [from_port(data, port + 1)])) == [1]
    assert [len(ports) for ports in decoder.known._ports.values()] == [10]


# --- lists, biflows, sampling ---------------------------------------------------------------------------------


def test_lists_are_looked_into() -> None:
    """The record's own fields take precedence over those in its lists (RFC 6313)."""
    inner: list[Field] = [(0, 7, 2), (0, 11, 2), (0, 1, 4)]
    outer: list[Field] = [(0, 8, 4), (0, 293, VARIABLE), (0, 1, 4), (0, 291, VARIABLE)]
    nested = struct.pack("!HHI", 1234, 443, 99)
    multi = struct.pack("!BHH", 3, 400, 4 + len(nested)) + nested
    basic = struct.pack("!BHH", 3, 4, 1) + bytes([17])
    record = (
        bytes((10, 0, 0, 1))
        + bytes([len(multi)])
        + multi
        + struct.pack("!I", 55)
        + bytes([len(basic)])
        + basic
    )
    declared = template_set(IPFIX, 400, inner), template_set(IPFIX, 300, outer)
    (row,) = rows_of(flows_of(decode(MessageDecoder(), [message(IPFIX, *declared, a_set(300, record))])))
    assert (row["src_port"], row["dst_port"], row["protocol"], row["bytes"]) == (1234, 443, 17, 55)


@pytest.mark.parametrize(
    ("number", "ethernet"), [(315, bytes(6) + bytes((2, 0, 0, 0, 0, 9)) + b"\x08\x00"), (313, b"")]
)
def test_sampled_packets_are_read(number: int, ethernet: bytes) -> None:
    """Their headers fill columns without an element; elements take precedence."""
    ports = struct.pack("!HHIIBBHHH", 1234, 443, 0, 0, 0x50, 0x12, 0, 0, 0)
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    packet = ethernet + struct.pack("!BBHHHBBH", 0x45, 0, 1400, 7, 0, 63, 6, 0) + addresses + ports
    fields: list[Field] = [(0, number, VARIABLE), (0, 11, 2)]
    record = bytes([len(packet)]) + packet + struct.pack("!H", 8443)
    flows = flows_of(
        decode(MessageDecoder(), [message(IPFIX, template_set(IPFIX, 300, fields), a_set(300, record))])
    )
    (row,) = rows_of(flows)
    assert (row["src_port"], row["dst_port"], row["protocol"], row["bytes"], row["packets"]) == (
        1234,
        8443,
        6,
        1400,
        1,
    )
    assert (flows["tcp_flags"].tolist(), flows["ttl"].tolist()) == ([0x12], [63])
    assert row["src_mac"] == (0x020000000009 if ethernet else 0)


def test_a_biflow_is_two_flows() -> None:
    """The reverse flow has both ends swapped and the reverse counters; it is omitted if nothing came back."""
    fields: list[Field] = [*PLAIN, (REVERSE, 1, 4), (REVERSE, 2, 4)]
    records = plain(700) + struct.pack("!II", 900, 3) + plain(11) + bytes(8)
    decoded = decode(
        MessageDecoder(), [message(IPFIX, template_set(IPFIX, 300, fields), a_set(300, records))]
    )
    assert decoded.counts["records"] == 2
    rows = rows_of(flows_of(decoded))
    assert [(row["bytes"], row["packets"], row["biflow_direction"]) for row in rows] == [
        (700, 1, 1),
        (11, 1, 1),
        (900, 3, 2),
    ]
    assert (rows[2]["src"], rows[2]["dst"]) == (rows[0]["dst"], rows[0]["src"])


@pytest.mark.parametrize(
    ("options", "record", "of_flow", "rate"),
    [
        ((NETFLOW_9, [(0, 1, 4)], [(0, 34, 4), (0, 35, 1)]), struct.pack("!IIB", 7, 512, 1), None, 512),
        (
            (NETFLOW_9, [(0, 1, 4)], [(0, 48, 1), (0, 50, 4)]),
            struct.pack("!IBI", 7, 3, 64),
            (48, b"\x03"),
            64,
        ),
        ((NETFLOW_9, [(0, 2, 4)], [(0, 34, 4)]), struct.pack("!II", 5, 32), (10, b"\0\0\0\x05"), 32),
        ((NETFLOW_9, [], [(0, 34, 4), (0, 35, 1)]), struct.pack("!IB", 512, 2), None, 512),
        ((IPFIX, [], [(0, 34, 4), (0, 35, 1)]), struct.pack("!IB", 512, 2), None, 512),
        ((IPFIX, [(0, 149, 4)], [(0, 305, 4), (0, 306, 4)]), struct.pack("!III", 7, 1, 99), None, 100),
        (
            (IPFIX, [(0, 302, 8)], [(0, 309, 4), (0, 310, 4)]),
            struct.pack("!QII", 9, 2, 256),
            (302, b"\x09"),
            128,
        ),
        ((IPFIX, [(0, 149, 4)], [(0, 41, 8)]), struct.pack("!IQ", 7, 1000), None, 0),
        # A rate without a sampler or interface, or with number 0, applies to all.
        (
            (NETFLOW_9, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)]),
            struct.pack("!IBI", 7, 0, 64),
            (48, b"\x03"),
            64,
        ),
        ((NETFLOW_9, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)]), struct.pack("!IBI", 7, 0, 64), (48, b"\0"), 64),
        ((NETFLOW_9, [(0, 2, 4)], [(0, 34, 4)]), struct.pack("!II", 0, 64), (10, b"\0\x05"), 64),
        ((NETFLOW_9, [(0, 1, 4)], [(0, 34, 4)]), struct.pack("!II", 7, 64), (48, b"\x03"), 64),
        # A rate for another one does not apply.
        ((NETFLOW_9, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)]), struct.pack("!IBI", 7, 3, 64), (48, b"\x04"), 0),
        ((NETFLOW_9, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)]), struct.pack("!IBI", 7, 3, 64), None, 0),
        ((NETFLOW_9, [(0, 2, 4)], [(0, 34, 4)]), struct.pack("!II", 5, 32), (10, b"\0\x06"), 0),
        ((NETFLOW_9, [(0, 2, 4)], [(0, 34, 4)]), struct.pack("!II", 5, 32), None, 0),
        ((IPFIX, [(0, 14, 4)], [(0, 34, 4)]), struct.pack("!II", 5, 32), (10, b"\0\x06"), 0),
        ((IPFIX, [(0, 302, 8)], [(0, 34, 4)]), struct.pack("!QI", 9, 32), (302, b"\x08"), 0),
        # If rates belong to samplers, a flow without one was not sampled.
        ((NETFLOW_9, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)]), struct.pack("!IBI", 7, 3, 64), (48, b"\0"), 1),
        ((NETFLOW_9, [(0, 2, 4)], [(0, 34, 4)]), struct.pack("!II", 5, 32), (48, b"\0"), 0),
        # samplingProbability.
        ((IPFIX, [(0, 149, 4)], [(0, 311, 8)]), struct.pack("!Id", 7, 0.001), None, 1000),
        ((IPFIX, [(0, 149, 4)], [(0, 311, 4)]), struct.pack("!If", 7, 1 / 3), None, 3),
        ((IPFIX, [(0, 302, 2)], [(0, 311, 8)]), struct.pack("!Hd", 9, 1.0), (302, b"\x09"), 1),
        ((IPFIX, [(0, 149, 4)], [(0, 311, 8)]), struct.pack("!Id", 7, 0.0), None, 0),
        ((IPFIX, [(0, 149, 4)], [(0, 311, 8)]), struct.pack("!Id", 7, 1.5), None, 0),
        ((IPFIX, [(0, 149, 4)], [(0, 311, 8)]), struct.pack("!Id", 7, float("nan")), None, 0),
        ((IPFIX, [(0, 149, 4)], [(0, 311, 2)]), struct.pack("!IH", 7, 9), None, 0),
        # Systematic sampling in time, and rates that are not integers.
        ((IPFIX, [(0, 149, 4)], [(0, 307, 4), (0, 308, 4)]), struct.pack("!III", 7, 1000, 99_000), None, 100),
        ((IPFIX, [(0, 149, 4)], [(0, 305, 4), (0, 306, 4)]), struct.pack("!III", 7, 3, 5), None, 3),
        ((IPFIX, [(0, 149, 4)], [(0, 309, 4), (0, 310, 4)]), struct.pack("!III", 7, 3, 10), None, 3),
    ],
)
def test_sampling_rates_come_from_options(
    options: tuple[int, list[Field], list[Field]], record: bytes, of_flow: tuple[int, bytes] | None, rate: int
) -> None:
    """From the domain, or from the sampler or interface a flow names; bytes stay as reported."""
    version, scopes, fields = options
    number, value = of_flow or (4, b"\x06")
    sets = [
        options_set(version, 256, scopes, fields),
        template_set(version, 300, [*PLAIN, (0, number, len(value))]),
        a_set(256, record),
        a_set(300, plain(1500) + value),
    ]
    decoded = decode(MessageDecoder(), [message(version, *sets)])
    flows = flows_of(decoded)
    assert (flows["sampling_rate"].tolist(), flows["bytes"].tolist()) == ([rate], [1500])
    assert decoded.headers["options"].sum() == 1


@pytest.mark.parametrize(
    ("fields", "content", "rate"),
    [
        ([(0, 34, 4)], struct.pack("!I", 9), 9),
        ([(0, 34, 8)], struct.pack("!Q", 2**32 + 9), 64),
        ([(0, 34, 4)], struct.pack("!I", 0), 64),
        ([(0, 311, 8)], struct.pack("!d", 0.01), 100),
        ([(0, 305, 4), (0, 306, 4)], struct.pack("!II", 1, 9), 10),
    ],
)
def test_a_flows_own_rate_comes_first(fields: list[Field], content: bytes, rate: int) -> None:
    """If it is a valid rate."""
    sets = [
        options_set(IPFIX, 256, [], [(0, 34, 4)]),
        a_set(256, struct.pack("!I", 64)),
        template_set(IPFIX, 300, [*PLAIN, *fields]),
        a_set(300, plain(1) + content),
    ]
    assert flows_of(decode(MessageDecoder(), [message(IPFIX, *sets)]))["sampling_rate"].tolist() == [rate]


def test_the_rate_of_a_flow_stays_whatever_else_is_announced() -> None:
    """From a sampler, an interface, or everything that names none."""
    decoder = MessageDecoder()
    of_samplers = options_set(NETFLOW_9, 256, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)])
    of_interfaces = options_set(NETFLOW_9, 257, [(0, 2, 4)], [(0, 34, 4)])
    of_all = options_set(NETFLOW_9, 258, [(0, 1, 4)], [(0, 34, 4)])
    declared = template_set(NETFLOW_9, 300, [*PLAIN, (0, 48, 1), (0, 10, 1)])
    decode(decoder, [message(NETFLOW_9, of_samplers, of_interfaces, of_all, declared)])
    names = (1, 0), (0, 1), (0, 0), (1, 1), (9, 9), (9, 1)
    data = a_set(300, b"".join(plain(1) + bytes(column_name) for column_name in names))
    seen = []
    for said in (
        a_set(256, struct.pack("!IBI", 7, 1, 10)),
        a_set(256, struct.pack("!IBI", 7, 2, 20)),
        a_set(257, struct.pack("!II", 1, 30)),
        a_set(257, struct.pack("!II", 2, 40)),
        a_set(258, struct.pack("!II", 7, 50)),
    ):
        decode(decoder, [message(NETFLOW_9, said)])
        seen.append(flows_of(decode(decoder, [message(NETFLOW_9, data)]))["sampling_rate"].tolist())
    assert seen == [
        [10, 1, 1, 10, 0, 0],
        [10, 1, 1, 10, 0, 0],
        [10, 30, 1, 10, 0, 30],
        [10, 30, 1, 10, 0, 30],
        [10, 30, 50, 10, 50, 30],
    ]


@pytest.mark.parametrize(
    ("said", "rates"),
    [
        ({6: [(3, 64)]}, [64, 0, 0]),
        ({6: [(0, 64)]}, [64, 64, 64]),
        ({6: [(3, 64), (4, 128)]}, [64, 128, 0]),
        ({6: [(3, 64)], 5: [(3, 64), (4, 128)]}, [64, 128, 0]),
        ({6: [(3, 64)], 5: [(3, 65)]}, [0, 0, 0]),
        ({6: [(3, 64)], 7: [(4, 128)]}, [0, 128, 0]),
    ],
)
def test_a_domain_that_says_nothing_has_the_rates_of_others(
    said: dict[int, list[tuple[int, int]]], rates: list[int]
) -> None:
    """From the same port, if they agree. Flows without a sampler get the general rate."""
    decoder = MessageDecoder()
    declared = options_set(NETFLOW_9, 256, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)])
    for domain, samplers in said.items():
        records = b"".join(struct.pack("!IBI", 7, *sampler) for sampler in samplers)
        decode(decoder, [message(NETFLOW_9, declared, a_set(256, records), domain=domain)])
    data = [
        template_set(NETFLOW_9, 300, [*PLAIN, (0, 48, 1)]),
        template_set(NETFLOW_9, 301, PLAIN),
        a_set(300, b"".join(plain(value) + bytes([value]) for value in (3, 4))),
        a_set(301, plain(5)),
    ]
    flows = flows_of(decode(decoder, [message(NETFLOW_9, *data)]))
    seen = dict(zip(flows["bytes"].tolist(), flows["sampling_rate"].tolist(), strict=True))
    assert [seen[number] for number in (3, 4, 5)] == rates
    of_other_port = from_port(message(NETFLOW_9, data[1], data[3], sequence=2), 9)
    assert flows_of(decode(decoder, [of_other_port]))["sampling_rate"].tolist() == [0]


@pytest.mark.parametrize(
    ("version", "scope", "said", "rates"),
    [
        # Line cards: no field of a flow identifies its line card.
        (NETFLOW_9, 3, {0: 100, 1: 100}, [100, 100]),
        (NETFLOW_9, 3, {0: 100, 1: 200}, [0, 0]),
        (IPFIX, 141, {1: 100, 2: 200}, [0, 0]),
        (NETFLOW_9, 4, {1: 100, 2: 200}, [0, 0]),
        # Templates.
        (NETFLOW_9, 5, {300: 100, 301: 200}, [100, 200]),
        (IPFIX, 145, {300: 100, 301: 200}, [100, 200]),
        (IPFIX, 145, {300: 100}, [100, 100]),
        # Domains.
        (IPFIX, 149, {7: 100, 8: 200}, [100, 100]),
        (IPFIX, 149, {8: 200, 7: 100}, [100, 100]),
        (IPFIX, 149, {0: 100, 8: 200}, [100, 100]),
        (IPFIX, 149, {8: 100, 9: 200}, [0, 0]),
    ],
)
def test_rates_of_parts_of_an_exporter(
    version: int, scope: int, said: dict[int, int], rates: list[int]
) -> None:
    """However many are announced, a flow never gets another part's rate."""
    sets = [
        options_set(version, 256, [(0, scope, 4)], [(0, 34, 4)]),
        a_set(256, b"".join(struct.pack("!II", *item) for item in said.items())),
        template_set(version, 300, PLAIN),
        template_set(version, 301, [*PLAIN, (0, 10, 4)]),
        a_set(300, plain(1)),
        a_set(301, plain(2) + bytes(4)),
    ]
    flows = flows_of(decode(MessageDecoder(), [message(version, *sets)]))
    assert flows["sampling_rate"].tolist() == rates


@pytest.mark.parametrize(
    ("scope", "number", "of_flow"),
    [
        ((0, 1, 4), 7, (4, b"\x06")),
        ((0, 2, 4), 5, (10, b"\x05")),
        ((0, 48, 4), 3, (48, b"\x03")),
        ((0, 3, 4), 1, (4, b"\x06")),
        ((0, 5, 4), 300, (4, b"\x06")),
    ],
)
def test_a_rate_of_0_takes_back_the_one_before(scope: Field, number: int, of_flow: tuple[int, bytes]) -> None:
    """For the domain, an interface, a sampler, a line card and a template."""
    decoder = MessageDecoder()
    scopes, fields = ([], [scope]) if scope[1] == 48 else ([scope], [])
    element, value = of_flow
    declared = [
        options_set(NETFLOW_9, 256, scopes, [*fields, (0, 34, 4)]),
        template_set(NETFLOW_9, 300, [*PLAIN, (0, element, len(value))]),
    ]
    seen = []
    for rate in (100, 1, 0, 50):
        sets = [*declared, a_set(256, struct.pack("!II", number, rate)), a_set(300, plain(1) + value)]
        flows = flows_of(decode(decoder, [message(NETFLOW_9, *sets)]))
        seen += flows["sampling_rate"].tolist()
    assert seen == [100, 1, 0, 50]


def test_rates_stay_where_the_port_of_an_exporter_changes() -> None:
    """As its templates do."""
    decoder = MessageDecoder()
    sets = [
        options_set(NETFLOW_9, 256, [], [(0, 34, 4)]),
        template_set(NETFLOW_9, 300, PLAIN),
        a_set(256, struct.pack("!I", 64)),
    ]
    decode(decoder, [message(NETFLOW_9, *sets)])
    data = message(NETFLOW_9, a_set(300, plain(1)), sequence=2)
    seen = [
        flows_of(decode(decoder, [from_port(data, port)]))["sampling_rate"].tolist() for port in (PORT, 1)
    ]
    assert seen == [[64], [64]]
