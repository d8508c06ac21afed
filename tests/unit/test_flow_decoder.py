# SPDX-License-Identifier: Apache-2.0
"""Datagrams of all protocols through one decoder: recognition, counting, and state that is kept."""

from __future__ import annotations

import itertools
import json
import os
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nettop.collector.columns import COLUMNS
from nettop.collector.decode import domains, kept, options, sequences
from nettop.collector.decode.batch import DATAGRAM, Batch, DecodeResult
from nettop.collector.decode.decoder import Decoder, flows_at_most
from nettop.collector.decode.sequences import Counting, SequenceNumbers
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.exporters import Exporters
from nettop.errors import SourceFailed
from nettop.snapshots.arrays import Array
from tests.builders.exports import DECLARED, NETFLOW_5, SFLOW, sent
from tests.builders.flow_messages import (
    EXPORT_S,
    PLAIN,
    PORT,
    SENDER,
    Sent,
    a_set,
    batch,
    from_port,
    message,
    options_set,
    plain,
    template_set,
)
from tests.builders.sflow import AGENT, INTERFACE, mapped

from .flow_oracle import VARIABLE, Field

BIFLOW: list[Field] = [*PLAIN, (29305, 1, 4)]


def check(decoder: Decoder) -> None:
    """Check the invariants."""
    totals = decoder.totals
    assert totals["datagrams"] == totals["decoded"] + totals["unknown_version"] + totals["bad_header"]
    assert totals["held"] == totals["released"] + totals["forgotten"] + decoder.waiting
    assert min(totals.values(), default=0) >= 0


def decode(decoder: Decoder, *datagrams: Sent) -> Batch:
    """Decode a batch, and check that its columns match."""
    decoded = decoder.decode(batch(list(datagrams)))
    counts = decoded.counts
    assert set(decoded.flows) == {column.name for column in COLUMNS}
    assert (
        {len(values) for values in decoded.flows.values()} == {counts["rows"]} == {len(decoded.datagram_of)}
    )
    assert decoded.headers["rows"].sum() == counts["rows"]
    assert counts["datagrams"] == len(datagrams) == len(decoded.headers)
    assert counts["broken"] == decoded.headers["broken"].sum()
    check(decoder)
    return decoded


# --- what a datagram is ---------------------------------------------------------------------------------------


def test_all_protocols_on_one_port() -> None:
    """Each is recognized by its header, and yields flows with all columns."""
    biflow = template_set(IPFIX, 301, BIFLOW) + a_set(301, plain(5) + struct.pack("!I", 9))
    decoded = decode(
        Decoder(),
        message(IPFIX, biflow, sequence=8),
        *sent(b"\0\1rubbish", NETFLOW_5, SFLOW),
        message(NETFLOW_9, DECLARED[NETFLOW_9], a_set(300, plain(11)), sequence=7),
    )
    flows, datagrams = decoded.flows, decoded.headers
    rows = zip(
        decoded.datagram_of.tolist(), flows["protocol_version"].tolist(), flows["bytes"].tolist(), strict=True
    )
    assert sorted(rows) == [
        (0, 10, 5),
        (0, 10, 9),
        (2, 5, 84),
        (2, 5, 700),
        (3, 105, 1500),
        (3, 105, 1500),
        (4, 9, 11),
    ]
    assert datagrams["protocol_version"].tolist() == [10, 0, 5, 105, 9]
    assert datagrams["port"].tolist() == [PORT, 0, PORT, 0, PORT]
    assert [bytes(datagram) for datagram in datagrams["exporter"]] == [
        SENDER,
        SENDER,
        SENDER,
        mapped(AGENT),
        SENDER,
    ]
    assert datagrams["domain"].tolist() == [7, 0, 0x0102, 3, 7]
    assert datagrams["sequence"].tolist() == [8, 0, 77, 77, 7]
    assert datagrams["units"].tolist() == [1, 0, 2, 1, 1]
    assert datagrams["sampling_rate"].tolist() == [0, 0, 100, 512, 0]
    assert datagrams["rows"].tolist() == [2, 0, 2, 2, 1]
    assert decoded.counters["if_index"].tolist() == [int.from_bytes(INTERFACE[:4])]
    counts = Counter(
        datagrams=5, decoded=4, unknown_version=1, records=6, rows=7, templates=2, interface_counters=1
    )
    assert decoded.counts == counts


@pytest.mark.parametrize(
    ("content", "reading"),
    [
        (b"", DecodeResult.UNKNOWN_VERSION),
        (b"\0", DecodeResult.UNKNOWN_VERSION),
        (b"\0\0\0", DecodeResult.UNKNOWN_VERSION),
        *(
            (struct.pack("!H", version) + bytes(100), DecodeResult.UNKNOWN_VERSION)
            for version in (0, 1, 7, 8, 11, 1280)
        ),
        *((struct.pack("!I", version) + bytes(100), DecodeResult.UNKNOWN_VERSION) for version in (2, 4, 6)),
        *((struct.pack("!H", version), DecodeResult.BAD_HEADER) for version in (5, 9, 10)),
        (NETFLOW_5[:23], DecodeResult.BAD_HEADER),
        (message(NETFLOW_9).data[:19], DecodeResult.BAD_HEADER),
        (message(IPFIX).data[:15], DecodeResult.BAD_HEADER),
        (struct.pack("!HHIII", 10, 15, EXPORT_S, 0, 7), DecodeResult.BAD_HEADER),
        (SFLOW[:4], DecodeResult.BAD_HEADER),
        (SFLOW[:27], DecodeResult.BAD_HEADER),
    ],
)
def test_malformed_datagrams(content: bytes, reading: DecodeResult) -> None:
    """Malformed datagrams are counted by reason, and the next datagram is decoded."""
    decoded = decode(Decoder(), *sent(content, NETFLOW_5))
    assert decoded.headers["reading"].tolist() == [reading, DecodeResult.DECODED]
    assert (
        decoded.counts["unknown_version"] + decoded.counts["bad_header"],
        decoded.counts["decoded"],
        decoded.counts["rows"],
    ) == (1, 1, 2)
    assert bytes(decoded.headers["exporter"][0]) == SENDER


@pytest.mark.parametrize(
    "content",
    [
        NETFLOW_5[:-1],
        SFLOW[:-1],
        message(NETFLOW_9, a_set(0, struct.pack("!HH", 300, 9))).data,
        message(IPFIX, DECLARED[IPFIX], struct.pack("!HH", 300, 99)).data,
        message(IPFIX, a_set(9, b"")).data,
        message(IPFIX, DECLARED[IPFIX]).data[:-2],
    ],
)
def test_damage_within_a_datagram_is_broken(content: bytes) -> None:
    """The datagram is decoded as far as possible."""
    counts = decode(Decoder(), *sent(content)).counts
    assert (counts["decoded"], counts["unknown_version"] + counts["bad_header"], counts["broken"] > 0) == (
        1,
        0,
        True,
    )


OTHER: list[Field] = [(0, 1, 4), (0, 2, 4), (0, 7, 2), (0, 11, 2), (0, 8, 4)]
"""As long as the plain template."""
POOL = [
    *sent(NETFLOW_5, SFLOW, b"rubbish"),
    *(
        each
        for version in (NETFLOW_9, IPFIX)
        for domain in (1, 2)
        for each in (
            message(version, DECLARED[version], domain=domain),
            message(version, template_set(version, 300, OTHER), domain=domain),
            message(version, a_set(300, plain(1) + plain(2)), domain=domain),
            message(
                version,
                a_set(300, plain(3)),
                template_set(version, 300, OTHER),
                a_set(300, plain(4)),
                domain=domain,
            ),
            message(version, a_set(301, plain(5)), domain=domain),
            message(version, template_set(version, 301, [*PLAIN, (0, 82, VARIABLE)]), domain=domain),
        )
    ),
    message(IPFIX, a_set(2, struct.pack("!HH", 300, 0)), a_set(300, plain(6)), domain=1),
    message(IPFIX, a_set(2, struct.pack("!HH", 2, 0)), domain=2),
]
"""Datagrams, in any order."""


SCOPED: list[Field] = [(0, 34, 4), (0, 309, 4), (0, 310, 8), (0, 82, 4), (0, 160, 8)]
OF_OPTIONS = [
    message(
        version,
        options_set(version, 400, [(0, 10, 4)], SCOPED),
        a_set(400, struct.pack("!IIIQ4sQ", 5, rate, 3, population, b"eth0", EXPORT_S * 1000)),
        domain=domain,
    )
    for version in (NETFLOW_9, IPFIX)
    for domain in (1, 2)
    for rate, population in ((9, 1), (0, 1), (0, 2**40), (0, 300))
]


@given(st.lists(st.sampled_from([*POOL, *OF_OPTIONS]), max_size=8), st.data())
def test_any_bytes(pool: list[Sent], data: st.DataObject) -> None:
    """Whatever is changed or cut off, nothing is raised, the invariants hold, and the state can be saved."""
    decoder, datagrams = Decoder(), []
    for datagram in pool:
        changed = bytearray(datagram.data)
        for at, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(changed) - 1), st.integers(0, 255)), max_size=3)
        ):
            changed[at] = value
        datagrams.append(
            Sent(
                datagram.sender,
                datagram.port,
                bytes(changed[: data.draw(st.just(len(changed)) | st.integers(0, len(changed)))]),
            )
        )
    at = data.draw(st.integers(0, len(datagrams)))
    for part_of in (datagrams[:at], datagrams[at:]):
        decode(decoder, *part_of)
    restarted = Decoder()
    for key, domain in kept._parsed(kept._content(decoder)):
        restarted.messages.known.restore(key, domain)
    assert remembered(restarted) == remembered(decoder)


def rows_in(decoded: list[Batch]) -> Counter[tuple[Any, ...]]:
    """Return all rows, regardless of order."""
    return Counter(
        row
        for each in decoded
        for row in zip(*(values.tolist() for values in each.flows.values()), strict=True)
    )


@given(st.lists(st.sampled_from(POOL), max_size=20), st.integers(1, 5))
def test_batches_may_be_cut_anywhere(datagrams: list[Sent], at_once: int) -> None:
    """Any batching of the same datagrams yields the same flows and counts, even if templates arrive late or change."""
    whole, cut = Decoder(), Decoder()
    of_whole = [decode(whole, *datagrams)]
    of_cut = [decode(cut, *datagrams[at : at + at_once]) for at in range(0, len(datagrams), at_once)]
    assert rows_in(of_whole) == rows_in(of_cut)
    assert whole.totals == cut.totals
    assert whole.messages.waiting == cut.messages.waiting
    templates = [
        {key: domain.templates for key, domain in decoder.messages.known.all.items()}
        for decoder in (whole, cut)
    ]
    assert templates[0] == templates[1]


# --- templates and options ------------------------------------------------------------------------------------


def test_a_flow_belongs_to_the_datagram_with_its_template() -> None:
    """A held flow belongs to the datagram with its template, in whichever batch."""
    decoder = Decoder()
    waiting = message(IPFIX, a_set(300, plain(1)), sequence=5)
    first = decode(decoder, waiting, waiting)
    assert (first.counts["held"], first.counts["rows"], decoder.waiting) == (2, 0, 2)
    later = decode(decoder, waiting, message(IPFIX, DECLARED[IPFIX], a_set(300, plain(2)), sequence=9))
    assert (later.counts["held"], later.counts["released"], later.counts["rows"], decoder.waiting) == (
        1,
        3,
        4,
        0,
    )
    assert later.datagram_of.tolist() == [1] * 4
    assert sorted(later.flows["sequence"].tolist()) == [5, 5, 5, 9]
    assert later.headers["units"].tolist() == [0, 1]


def test_waiting_sets_can_be_dropped() -> None:
    """Held sets are dropped, as on exit."""
    decoder = Decoder()
    decode(decoder, message(IPFIX, a_set(300, plain(1)), a_set(301, plain(1))))
    assert decoder.forget_waiting() == {(SENDER, PORT, IPFIX, 7): 2}
    assert (decoder.waiting, decoder.totals["forgotten"]) == (0, 2)
    check(decoder)


@pytest.mark.parametrize("set_id", [2, 3])
@pytest.mark.parametrize("template_id", [1, 2, 3, 4, 255])
def test_only_their_set_id_withdraws_all_templates(set_id: int, template_id: int) -> None:
    """It withdraws all templates of its kind; another number below 256 is malformed (RFC 7011, section 8.1)."""
    decoder = Decoder()
    declared = DECLARED[IPFIX], options_set(IPFIX, 302, [(0, 149, 4)], [(0, 34, 4)])
    withdrawn = decode(
        decoder, message(IPFIX, *declared, a_set(set_id, struct.pack("!HHHH", template_id, 0, 0, 0)))
    )
    (domain,) = decoder.messages.known.all.values()
    is_sound = template_id == set_id
    assert withdrawn.counts["broken"] == (0 if is_sound else 1)
    left = {300, 302} - ({300 if set_id == 2 else 302} if is_sound else set())
    assert domain.templates.keys() == left


def test_the_last_template_of_a_set_wins() -> None:
    """If a set states a template twice, the last one wins, even if it repeats one known before the set."""
    decoder = Decoder()
    first, other = (template_set(IPFIX, 300, fields) for fields in (PLAIN, OTHER))
    twice = a_set(2, other[4:] + first[4:])
    decoded = decode(decoder, message(IPFIX, first), message(IPFIX, twice, a_set(300, plain(99))))
    assert decoded.flows["bytes"].tolist() == [99]


def test_exporters_of_one_model_have_rates_and_clocks_of_their_own() -> None:
    """Their templates are the same, so their flows are decoded together."""
    fields: list[Field] = [*PLAIN, (0, 48, 1), (0, 10, 4), (0, 22, 4)]
    declared = (
        template_set(IPFIX, 300, fields),
        options_set(IPFIX, 302, [(0, 302, 1)], [(0, 34, 4)]),
        options_set(IPFIX, 303, [(0, 10, 4)], [(0, 34, 4)]),
        options_set(IPFIX, 304, [(0, 149, 4)], [(0, 160, 8)]),
    )
    said: dict[int, tuple[bytes, ...]] = {
        1: (
            a_set(302, struct.pack("!BI", 1, 10) + struct.pack("!BI", 2, 20)),
            a_set(304, struct.pack("!IQ", 1, EXPORT_S * 1000 - 5000)),
        ),
        2: (a_set(302, struct.pack("!BI", 1, 30)), a_set(304, struct.pack("!IQ", 2, 2**64 - 1))),
        3: (a_set(303, struct.pack("!II", 9, 40) + struct.pack("!II", 8, 50)),),
        4: (),
    }
    flows = b"".join(
        plain(number) + struct.pack("!BII", sampler, in_if, 7)
        for number, sampler, in_if in ((1, 1, 9), (2, 2, 7))
    )
    decoder = Decoder()
    batches = [
        decode(
            decoder,
            *(
                from_port(message(IPFIX, *declared, *sets, domain=domain), domain)
                for domain, sets in said.items()
            ),
        ),
        decode(
            decoder, *(from_port(message(IPFIX, a_set(300, flows), domain=domain), domain) for domain in said)
        ),
    ]
    rows = batches[1].flows
    seen = {
        (domain, number): (rate, start)
        for domain, number, rate, start in zip(
            *(rows[name].tolist() for name in ("domain", "bytes", "sampling_rate", "start")), strict=True
        )
    }
    start = EXPORT_S * 1000 - 4993
    assert seen == {
        (1, 1): (10, start), (1, 2): (20, start), (2, 1): (30, 0), (2, 2): (0, 0), (3, 1): (40, 0), (3, 2): (0, 0),
        (4, 1): (0, 0), (4, 2): (0, 0),
    }  # fmt: skip


def test_lists_are_of_the_templates_of_their_own_domain() -> None:
    """Also if several domains share the template with the list."""
    outer: list[Field] = [(0, 292, VARIABLE)]
    inner: dict[int, list[Field]] = {1: [(0, 7, 2)], 2: [(0, 11, 2)]}
    content = a_set(300, b"\5" + struct.pack("!BHH", 3, 400, 1234))
    decoded = decode(
        Decoder(),
        *(
            message(
                IPFIX,
                template_set(IPFIX, 400, fields),
                template_set(IPFIX, 300, outer),
                content,
                domain=domain,
            )
            for domain, fields in inner.items()
        ),
    )
    ports = zip(*(decoded.flows[name].tolist() for name in ("domain", "src_port", "dst_port")), strict=True)
    assert sorted(ports) == [(1, 1234, 0), (2, 0, 1234)]


def test_one_domain_has_a_bounded_number_of_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest templates are evicted."""
    monkeypatch.setattr(domains, "DOMAIN_FIELDS_MAX", 10)
    decoder = Decoder()
    for number in range(300, 310):
        decode(decoder, message(IPFIX, template_set(IPFIX, number, PLAIN)))
    (domain,) = decoder.messages.known.all.values()
    assert (list(domain.templates), domain.fields) == ([308, 309], 8)
    assert decoder.messages.known.dropped == {"templates": 8}


def test_rates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per domain, and together with templates over all domains."""
    monkeypatch.setattr(domains, "RATES_MAX", 3)
    monkeypatch.setattr(domains, "FIELDS_MAX", 10)
    decoder = Decoder()
    declared = options_set(NETFLOW_9, 302, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)])
    rates = a_set(302, b"".join(struct.pack("!IBI", 1, sampler, 10 + sampler) for sampler in range(1, 6)))
    for number in (1, 2):
        decode(decoder, message(NETFLOW_9, declared, rates, domain=number))
    ((_, domain),) = decoder.messages.known.all.items()
    sampler = options.ExporterPart.SAMPLER
    assert (domain.rates, domain.fields) == ({(sampler, number): 10 + number for number in (3, 4, 5)}, 6)
    assert decoder.messages.known.dropped == {"samplers": 4, "domains": 1}


# --- names of interfaces --------------------------------------------------------------------------------------

LONG = "é" * 100


@pytest.mark.parametrize(
    ("version", "scopes", "fields", "content", "expected"),
    [
        (NETFLOW_9, [(0, 2, 4)], [(0, 82, 8), (0, 83, 8)], b"\0\0\0\5ge-0/0\0\0uplink\0x", "ge-0/0"),
        (NETFLOW_9, [(0, 1, 4)], [(0, 10, 2), (0, 82, 4)], b"\0\0\0\1\0\5eth0", "eth0"),
        (IPFIX, [(0, 10, 4)], [(0, 82, VARIABLE), (0, 83, VARIABLE)], b"\0\0\0\5\3lan\4left", "lan"),
        (IPFIX, [(0, 14, 4)], [(0, 82, VARIABLE)], b"\0\0\0\5\3\xff\x1b[", "\ufffd\x1b["),
        (IPFIX, [(0, 10, 4)], [(0, 82, VARIABLE)], b"\0\0\0\5\xc8" + LONG.encode(), LONG[:64]),
        (IPFIX, [(0, 10, 4)], [(0, 14, 4), (0, 82, 1)], b"\0\0\0\5\0\0\0\6x", "x"),
        (IPFIX, [(0, 10, 4)], [(0, 82, VARIABLE)], b"\0\0\0\5\0", None),
        (IPFIX, [(0, 10, 8)], [(0, 82, 1)], b"\1\0\0\0\0\0\0\5x", None),
        (IPFIX, [(0, 149, 4)], [(0, 82, 1)], b"\0\0\0\5x", None),
    ],
)
def test_names_come_from_options(
    version: int, scopes: list[Field], fields: list[Field], content: bytes, expected: str | None
) -> None:
    """By exporter and index; other strings are not names."""
    decoder = Decoder()
    decode(decoder, message(version, options_set(version, 256, scopes, fields), a_set(256, content)))
    assert decoder.messages.known.names() == ({(SENDER, PORT, 7, 5): expected} if expected else {})


def test_names_are_bounded_and_the_newest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interface that is named again stays; an empty name changes nothing."""
    monkeypatch.setattr(domains, "NAMES_MAX", 3)
    decoder = Decoder()
    declared = options_set(IPFIX, 256, [(0, 10, 4)], [(0, 82, 2)])
    names = b"".join(struct.pack("!I", index) + b"e%d" % index for index in (0, 1, 2, 3, 1))
    decode(decoder, message(IPFIX, declared, a_set(256, names + struct.pack("!I2x", 3))))
    decode(decoder, message(IPFIX, a_set(256, struct.pack("!I2s", 7, b"e7"))))
    assert decoder.messages.known.names() == {(SENDER, PORT, 7, index): f"e{index}" for index in (3, 1, 7)}
    (domain,) = decoder.messages.known.all.values()
    assert domain.fields == 2 + 3
    assert decoder.messages.known.dropped == {"interface names": 2}


# --- lost exports ---------------------------------------------------------------------------------------------

NEAR, FAR = 12, 40
"""Bounds on distances back and ahead in these tests."""


class Plain:
    """A simple reference that follows one exporter number by number."""

    def __init__(self) -> None:
        self.due: int | None = None
        self.is_exact = True
        self.missing: dict[int, int] = {}
        """Missing numbers, with the gap each belongs to."""
        self.gaps = 0
        self.lost = self.restarts = self.unchecked = 0

    def follow(self, sequence: int, units: int, is_exact: bool) -> None:
        """Process the next datagram."""
        ahead = 0 if self.due is None else (sequence - self.due + 2**31) % 2**32 - 2**31
        if self.due is None or not -NEAR <= ahead <= FAR:
            self.restarts += self.due is not None
            self.due, self.is_exact, self.missing = sequence + units, is_exact, {}
        elif ahead < 0:
            self._late(self.due + ahead, units, is_exact)
        else:
            if self.is_exact:
                self.gaps += 1
                self.missing |= dict.fromkeys(range(self.due, self.due + ahead), self.gaps)
                self.lost += ahead
            elif ahead:
                self.unchecked += 1
            self.due, self.is_exact = self.due + ahead + units, is_exact

    def _late(self, first: int, units: int, is_exact: bool) -> None:
        assert self.due is not None
        before = len(self.missing)
        end = first + units
        gap = self.missing.get(end)
        for number in range(first, end):
            self.missing.pop(number, None)
        while not is_exact and gap is not None and self.missing.get(end) == gap:
            del self.missing[end]
            end += 1
        self.lost -= before - len(self.missing)
        if first + units > self.due:
            self.due, self.is_exact = first + units, is_exact


def of_sequences(numbered: list[tuple[int, int, int, bool]]) -> tuple[Array, Array]:
    """Return rows and IPFIX datagrams with these sequence numbers, units and exactness."""
    datagrams = np.zeros(len(numbered), DATAGRAM)
    datagrams["protocol_version"] = IPFIX
    for name, at in (("sequence", 1), ("units", 2), ("is_exact", 3)):
        datagrams[name] = [numbers[at] for numbers in numbered]
    return np.array([numbers[0] for numbers in numbered], np.intp), datagrams


def a_follower(exporters: int) -> SequenceNumbers:
    """Return a follower for a number of IPFIX exporters."""
    follower = SequenceNumbers(exporters)
    for row in range(exporters):
        follower.begin(row, (SENDER, row, IPFIX, 0))
    return follower


DISTANCES = (0, 0, 0, 0, 0, 1, 3, 6, 10, -1, -3, -4, -6, -7, -9, FAR, FAR + 1, -NEAR, -NEAR - 1, 2**31)
STEPS = list(itertools.product(range(2), DISTANCES, (0, 1, 2, 5), (True, True, True, False)))
"""Exporter, distance from the last datagram, units, and exactness."""


@settings(max_examples=300)
@given(st.lists(st.sampled_from(STEPS), min_size=20, max_size=60), st.integers(0, 20), st.integers(1, 61))
@example([(1, FAR, 1, False), (1, -1, 1, True), (1, 0, 0, True), (1, FAR, 2, True)], 11, 8)
def test_gaps_match_a_simple_reference(
    steps: list[tuple[int, int, int, bool]], before_wrap: int, at_once: int
) -> None:
    """For any behavior of the exporters, including wraparound, and any batching."""
    last = dict.fromkeys(range(2), 2**32 - before_wrap)
    plain_ones = [Plain() for _ in last]
    numbered = []
    for row, distance, units, is_exact in steps:
        sequence = (last[row] + distance) % 2**32
        last[row] = sequence + units
        numbered.append((row, sequence, units, is_exact))
        plain_ones[row].follow(sequence, units, is_exact)
    counted = {name: [0, 0] for name in ("lost", "restarts", "unchecked")}
    follower = a_follower(2)
    proved = np.zeros((), sequences.SEQUENCE_STATE)
    proved["is_proved"] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "_LATE_MAX", dict.fromkeys(Counting, NEAR))
        patch.setattr(sequences, "_LOST_MAX", dict.fromkeys(Counting, FAR))
        patch.setattr(sequences, "GAPS_MAX", 1000)
        # These jump back and forth as no exporter would.
        patch.setattr(sequences, "_DOUBT_MAX", 1 << 40)
        for row in range(2):
            follower.resume(row, proved)
        for at in range(0, len(numbered), at_once):
            rows, datagrams = of_sequences(numbered[at : at + at_once])
            followed, _ = follower.follow(rows, datagrams)
            for name, sums in counted.items():
                for row, value in zip(followed["row"].tolist(), followed[name].tolist(), strict=True):
                    sums[row] += value
                    assert sums[row] >= 0
    assert counted == {name: [getattr(one, name) for one in plain_ones] for name in counted}


def test_only_the_newest_gaps_are_filled() -> None:
    """The memory per exporter is bounded, whatever it sends."""
    follower = a_follower(1)
    gaps = sequences.GAPS_MAX + 2
    numbered = [(0, 3 * at + two, 1, True) for at in range(gaps + 1) for two in range(2)]
    late = [(0, 3 * at + 2, 1, True) for at in range(gaps)]
    followed, _ = follower.follow(*of_sequences([*numbered, *late]))
    assert followed["lost"].sum() == 2


# --- relays ---------------------------------------------------------------------------------------------------

ROUTERS = [mapped("203.0.113.1"), mapped("203.0.113.2")]
ROUTERS_6 = [bytes.fromhex("20010db8" + "0" * 23 + each) for each in "12"]
NOBODY = bytes(16)


def exporters_of(*batches: Batch) -> list[bytes]:
    """Return the exporters of the flows."""
    return [address for changed in batches for address in changed.flows["exporter"].tolist()]


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
@pytest.mark.parametrize(
    ("number", "named"), [(130, ROUTERS), (131, ROUTERS_6), (403, ROUTERS), (404, ROUTERS_6), (131, ROUTERS)]
)
def test_a_relays_records_name_their_exporters(version: int, number: int, named: list[bytes]) -> None:
    """Each flow belongs to the exporter named in it, else to the relay; templates and numbers belong to the relay."""
    length = 4 if number in (130, 403) else 16
    fields = [*PLAIN, (0, number, length)]
    decoder, exporters = Decoder(), Exporters()
    sent_by = [*named, NOBODY, named[0]]
    records = [plain(at) + address[-length:] for at, address in enumerate(sent_by)]
    later = message(version, a_set(256, b"".join(records)), sequence=2 if version == NETFLOW_9 else 1)
    batches = [decode(decoder, message(version, template_set(version, 256, fields))), decode(decoder, later)]
    for changed in batches:
        exporters.update(changed)
    assert exporters_of(*batches) == [named[0], named[1], SENDER, named[0]]
    (row,) = exporters.table(decoder)
    assert (row["exporter"].tobytes(), row["rows"], row["templates"], row["lost"]) == (SENDER, 4, 1, 0)


def test_the_first_exporter_counts_over_relays_in_between() -> None:
    """A relay of relays sends both: RFC 7119 calls the first one original."""
    fields = [*PLAIN, (0, 130, 4), (0, 403, 4)]
    content = plain(1) + ROUTERS[1][-4:] + ROUTERS[0][-4:]
    sets = template_set(IPFIX, 256, fields), a_set(256, content)
    assert exporters_of(decode(Decoder(), message(IPFIX, *sets))) == [ROUTERS[0]]


def test_the_other_direction_is_of_the_same_exporter() -> None:
    """Both flows of a biflow have the same exporter."""
    fields = [*PLAIN, (0, 130, 4), (29305, 1, 4), (29305, 2, 4)]
    content = plain(1) + ROUTERS[0][-4:] + struct.pack("!II", 5, 1)
    sets = template_set(IPFIX, 256, fields), a_set(256, content)
    assert exporters_of(decode(Decoder(), message(IPFIX, *sets))) == [ROUTERS[0]] * 2


def relay_options(
    version: int, scopes: list[Field], fields: list[Field], *contents: bytes
) -> tuple[bytes, ...]:
    """Return options records with these fields."""
    return options_set(version, 257, scopes, fields), a_set(257, b"".join(contents))


OF_ALL: list[Field] = [(0, 1, 4)]
COUNTED_MESSAGES = struct.pack("!Q", 9)


@pytest.mark.parametrize(
    ("version", "options", "expected"),
    [
        (NETFLOW_9, relay_options(NETFLOW_9, OF_ALL, [(0, 130, 4)], b"\0\0\0\1" + ROUTERS[0][-4:]), ROUTERS[0]),
        (IPFIX, relay_options(IPFIX, [(0, 149, 4)], [(0, 130, 4)], b"\0\0\0\7" + ROUTERS[0][-4:]), ROUTERS[0]),
        (IPFIX, relay_options(IPFIX, [(0, 130, 4)], [(0, 34, 4)], ROUTERS[0][-4:] + bytes(4)), ROUTERS[0]),
        (IPFIX, relay_options(IPFIX, [(0, 149, 4)], [(0, 404, 16)], b"\0\0\0\7" + ROUTERS_6[0]), ROUTERS_6[0]),
        # Of another domain, of nobody, of several, and of a process that counts its exports.
        (IPFIX, relay_options(IPFIX, [(0, 149, 4)], [(0, 130, 4)], b"\0\0\0\x08" + ROUTERS[0][-4:]), SENDER),
        (IPFIX, relay_options(IPFIX, [(0, 149, 4)], [(0, 130, 4)], b"\0\0\0\7" + bytes(4)), SENDER),
        (IPFIX, relay_options(IPFIX, [(0, 130, 4)], [(0, 34, 4)],
                              *(router[-4:] + bytes(4) for router in ROUTERS)), SENDER),
        (IPFIX, relay_options(IPFIX, [(0, 130, 4)], [(0, 41, 8)], ROUTERS[0][-4:] + COUNTED_MESSAGES), SENDER),
        (IPFIX, relay_options(IPFIX, [(0, 130, 4)], [(0, 166, 8)], ROUTERS[0][-4:] + COUNTED_MESSAGES), SENDER),
    ],
)  # fmt: skip
def test_a_relays_options_name_the_exporter_of_a_domain(
    version: int, options: tuple[bytes, ...], expected: bytes
) -> None:
    """Later flows belong to that exporter, also after a restart, unless a record names another."""
    decoder, other = Decoder(), [*PLAIN, (0, 130, 4)]
    data = a_set(300, plain(1)), template_set(version, 301, other), a_set(301, plain(2) + ROUTERS[1][-4:])
    decode(decoder, message(version, DECLARED[version], *options))
    assert exporters_of(decode(decoder, message(version, *data))) == [expected, ROUTERS[1]]
    restarted = Decoder()
    for key, domain in kept._parsed(kept._content(decoder)):
        restarted.messages.known.restore(key, domain)
    assert exporters_of(decode(restarted, message(version, *data))) == [expected, ROUTERS[1]]


def test_domains_of_a_relay_have_exporters_of_their_own() -> None:
    """One options message may name exporters of several domains."""
    decoder = Decoder()
    named = (struct.pack("!I", domain) + router[-4:] for domain, router in zip((1, 2), ROUTERS, strict=True))
    decode(decoder, message(IPFIX, *relay_options(IPFIX, [(0, 149, 4)], [(0, 130, 4)], *named), domain=0))
    data = [message(IPFIX, DECLARED[IPFIX], a_set(300, plain(1)), domain=domain) for domain in (2, 0, 1)]
    flows = decode(decoder, *data).flows
    of_domains = dict(zip(flows["domain"].tolist(), flows["exporter"].tolist(), strict=True))
    assert of_domains == {0: SENDER, 1: ROUTERS[0], 2: ROUTERS[1]}


def test_names_are_those_of_the_exporters_interfaces() -> None:
    """The exporter named in the record, or that of its domain."""
    decoder = Decoder()
    names = options_set(IPFIX, 258, [(0, 10, 4)], [(0, 82, 1)]), a_set(258, b"\0\0\0\5x")
    of_other = options_set(IPFIX, 259, [(0, 130, 4), (0, 10, 4)], [(0, 82, 1)])
    decode(decoder, message(IPFIX, *relay_options(IPFIX, OF_ALL, [(0, 130, 4)], bytes(4) + ROUTERS[0][-4:])))
    decode(decoder, message(IPFIX, *names))
    decode(decoder, message(IPFIX, of_other, a_set(259, ROUTERS[1][-4:] + b"\0\0\0\5y")))
    assert decoder.messages.known.names() == {(ROUTERS[0], PORT, 7, 5): "x", (ROUTERS[1], PORT, 7, 5): "y"}


# --- templates on disk ----------------------------------------------------------------------------------------


def remembered(decoder: Decoder) -> tuple[Any, ...]:
    """Return everything a decoder knows about its exporters."""
    return (
        [(key, domain.templates, domain.rates, domain.boot_ms, domain.exporters, domain.fields, domain.names)
         for key, domain in decoder.messages.known.all.items()],
    )  # fmt: skip


def taught() -> Decoder:
    """Return a decoder with some state of each kind."""
    decoder = Decoder()
    sets = [
        template_set(IPFIX, 300, [*PLAIN, (29305, 1, 4), (0, 82, VARIABLE), (0, 22, 4)]),
        options_set(
            IPFIX, 301, [(0, 10, 4)], [(0, 34, 4), (0, 82, VARIABLE), (0, 83, VARIABLE), (0, 160, 8)]
        ),
        a_set(301, struct.pack("!II", 5, 100) + b'\4\xff\x1b"\n\0' + struct.pack("!Q", 1000)),
    ]
    relay = options_set(IPFIX, 302, [(0, 149, 4)], [(0, 130, 4)]), a_set(302, b"\0\0\0\1\xc0\0\2\1")
    sampler = options_set(NETFLOW_9, 302, [(0, 1, 4)], [(0, 48, 1), (0, 34, 4)])
    decode(
        decoder,
        message(IPFIX, *sets, *relay, domain=1),
        message(NETFLOW_9, DECLARED[NETFLOW_9], sampler, a_set(302, struct.pack("!IBI", 1, 2, 64))),
        message(
            NETFLOW_9,
            options_set(NETFLOW_9, 303, [], [(0, 34, 4)]),
            a_set(303, struct.pack("!I", 8)),
            options_set(NETFLOW_9, 304, [(0, 3, 2)], [(0, 34, 4)]),
            a_set(304, struct.pack("!HI", 1, 9)),
        ),
    )
    return decoder


def test_a_restart_loses_no_template(tmp_path: Path) -> None:
    """Data sets that arrive after a restart are decoded as before."""
    path, decoder, restarted = tmp_path / "templates", taught(), Decoder()
    assert kept.save(path, decoder)
    assert kept.load(path, restarted) is None
    assert remembered(restarted) == remembered(decoder)
    record_of = plain(7) + struct.pack("!I", 9) + b"\1x" + struct.pack("!I", 10)
    data = message(IPFIX, a_set(300, record_of), domain=1), message(NETFLOW_9, a_set(300, plain(8)))
    assert rows_in([decode(restarted, *data)]) == rows_in([decode(decoder, *data)])
    assert restarted.totals["rows"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["templates"]


def test_restored_templates_of_an_exporter_that_restarted_too(tmp_path: Path) -> None:
    """They are used while they fit, even if its port changed. Sets that do not fit wait."""
    path, decoder = tmp_path / "templates", Decoder()
    decode(decoder, message(IPFIX, DECLARED[IPFIX], domain=1), message(IPFIX, DECLARED[IPFIX], domain=2))
    assert kept.save(path, decoder)
    restarted = Decoder()
    assert kept.load(path, restarted) is None
    fits, other = a_set(300, plain(1) + bytes(3)), a_set(300, plain(2) + b"longer")
    decoded = decode(
        restarted,
        *(message(IPFIX, template, domain=1) for template in (fits, other, fits)),
        *(Sent(SENDER, 1, message(IPFIX, template, domain=2).data) for template in (fits, other, fits)),
    )
    assert (decoded.counts["rows"], decoded.counts["held"]) == (3, 3)
    assert kept.load(path, again := Decoder()) is None
    assert decode(again, message(IPFIX, a_set(300, plain(1) + b"pad"), domain=1)).counts["rows"] == 1


def test_only_changes_are_written(tmp_path: Path) -> None:
    """Neither repetitions nor loading count as changes."""
    path, decoder, restarted = tmp_path / "templates", Decoder(), Decoder()
    assert not kept.save(path, decoder)
    assert kept.load(path, restarted) is None
    decode(decoder, message(IPFIX, DECLARED[IPFIX]))
    assert kept.save(path, decoder)
    decode(decoder, message(IPFIX, DECLARED[IPFIX], a_set(300, plain(1))))
    assert not kept.save(path, decoder)
    kept.load(path, restarted)
    assert not kept.save(path, restarted)
    changes = [
        message(IPFIX, options_set(IPFIX, 301, [(0, 10, 4)], [(0, 34, 4), (0, 82, 1), (0, 160, 8)])),
        message(IPFIX, a_set(301, struct.pack("!IIsQ", 5, 100, b"x", EXPORT_S * 1000 - 1))),
        message(IPFIX, a_set(301, struct.pack("!IIsQ", 5, 200, b"x", EXPORT_S * 1000 - 1))),
        message(IPFIX, a_set(301, struct.pack("!IIsQ", 5, 200, b"y", EXPORT_S * 1000 - 1))),
        message(IPFIX, a_set(301, struct.pack("!IIsQ", 5, 200, b"y", EXPORT_S * 1000))),
        message(IPFIX, a_set(2, struct.pack("!HH", 300, 0))),
    ]
    for change in changes:
        decode(decoder, change)
        assert kept.save(path, decoder)
        decode(decoder, change)
        assert not kept.save(path, decoder)


def with_header(rest: bytes, **header: Any) -> bytes:
    """Return a file of these lines, with a valid header except for the given values."""
    right = {"format": kept.FORMAT, "version": kept.VERSION, "crc32": zlib.crc32(rest)}
    return json.dumps(right | header).encode() + b"\n" + rest


def changed_line(**values: Any) -> bytes:
    """Return a file whose domain line has these values."""
    domain = {
        "sender": SENDER.hex(), "numbers": [1, 10, 1], "boot_ms": -1, "exporters": [], "rates": [],
        "templates": [[300, False, 0, [[0, 1, 4]]]],
    }  # fmt: skip
    return with_header(json.dumps(domain | values).encode())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"{}",
        b"null\n",
        with_header(b"", format="another"),
        with_header(b"", version=1),
        with_header(b"", crc32=1),
        with_header(b"[]\n"),
        with_header(b"{}\n"),
        with_header(b"{\n"),
        with_header(b"[" * 100_000),
        changed_line(names=[[SENDER.hex(), 1]]),
        changed_line(sender="zz"),
        changed_line(sender=5),
        changed_line(rates=[[1, 0]]),
        changed_line(exporters=None),
        changed_line(templates={"x": 1}),
        changed_line(templates=[[300, False, 0, [1, 4]]]),
    ],
    ids=zlib.crc32,
)
def test_foreign_files_are_ignored(content: bytes, tmp_path: Path) -> None:
    """A warning is returned, and the decoder starts empty."""
    path, decoder = tmp_path / "templates", Decoder()
    path.write_bytes(content)
    warning = kept.load(path, decoder)
    assert warning is not None
    assert str(path) in warning
    assert remembered(decoder) == ([],)


@given(st.data())
def test_a_damaged_file_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Wherever it is truncated or changed."""
    path = tmp_path_factory.getbasetemp() / "damaged"
    kept.save(path, taught())
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(content.index(b"\n") + 1, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    path.write_bytes(content)
    decoder = Decoder()
    assert kept.load(path, decoder) is not None
    assert remembered(decoder) == ([],)


def test_a_file_that_is_too_large_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read into memory."""
    path, decoder = tmp_path / "templates", taught()
    kept.save(path, decoder)
    monkeypatch.setattr(kept, "FILE_BYTES_MAX", path.stat().st_size - 1)
    assert "it has more than" in (kept.load(path, Decoder()) or "")
    assert "is a directory" in (kept.load(tmp_path, Decoder()) or "")


def test_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file stays, nothing is left behind, and the next attempt writes everything."""
    path, decoder = tmp_path / "templates", taught()
    with pytest.raises(SourceFailed, match="no such file"):
        kept.save(tmp_path / "absent" / "templates", decoder)
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(SourceFailed, match="no space left"):
            kept.save(path, decoder)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    assert kept.save(path, decoder)
    assert kept.load(path, Decoder()) is None


def test_the_old_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file is synced before it replaces the old one, then the directory is."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        done.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    kept.save(tmp_path / "templates", taught())
    assert done == ["file", "rename", "directory"]


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 200))
def test_datagrams_in_pieces(lengths: list[int], most: int) -> None:
    """None is missing, and a piece that would be too large has one datagram."""
    datagrams = batch(sent(*(bytes([number]) * length for number, length in enumerate(lengths))))
    pieces = list(datagrams.pieces(datagrams.lengths, most))
    assert [start for piece in pieces for start in piece.starts.tolist()] == datagrams.starts.tolist()
    assert all(piece.lengths.sum() <= most or len(piece.starts) == 1 for piece in pieces)


def test_no_datagram_gives_more_flows_than_expected() -> None:
    """Templates may declare one-byte records; records of other protocols have a fixed length."""
    short = [(0, 4, 1)]
    whole = sent(NETFLOW_5, SFLOW, b"\0\1rubbish", b"")
    for version in DECLARED:
        whole.append(message(version, template_set(version, 300, short), a_set(300, bytes([6]) * 100)))
    datagrams = batch(whole)
    counts = np.bincount(Decoder().decode(datagrams).datagram_of, minlength=len(whole))
    assert counts.tolist()[4:] == [100, 100]
    assert (counts <= flows_at_most(datagrams)).all()
