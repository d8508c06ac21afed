# SPDX-License-Identifier: Apache-2.0
"""The table of exporters: counts, losses and bounds."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.collector.columns import ADDRESS
from nettop.collector.decode import held
from nettop.collector.decode.batch import KEY
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.domains import DOMAINS_MAX, UNUSED_S
from nettop.collector.decode.sequences import Counting
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.exporters import COUNTED, EXPORTERS_MAX, UNRECOGNIZED_MAX, Exporters
from nettop.snapshots.arrays import as_list
from tests.builders.flow_messages import (
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
from tests.builders.netflow5 import FIRST, record
from tests.builders.sflow import AGENT, RAW, address, flow, mapped, words

NETFLOW_5 = 5
ELSEWHERE = mapped("198.51.100.9")


def netflow5(
    sequence: int, count: int, *, sender: bytes = SENDER, engine: int = 1, stated: int | None = None
) -> Sent:
    """Return a datagram with this many flows."""
    head = struct.pack("!HHIIIIHH", 5, count if stated is None else stated, 0, 0, 0, sequence, engine, 100)
    return Sent(sender, PORT, head + record(FIRST) * count)


def sflow(sequence: int, *, port: int = PORT, sub_agent: int = 3) -> Sent:
    """Return a datagram with one flow sample."""
    head = words(5) + address(AGENT) + words(sub_agent, sequence, 1000, 1)
    return Sent(SENDER, port, head + flow(RAW))


class Collected:
    """A decoder and a table, with the batches seen so far."""

    def __init__(self, exporters: Exporters | None = None) -> None:
        self.decoder = Decoder()
        self.exporters = exporters or Exporters()

    def see(self, *sent: Sent, received_ns: int = RECEIVED_NS) -> None:
        """Process the next batch."""
        datagrams = batch(list(sent))
        datagrams.received_ns[:] = received_ns + np.arange(len(sent))
        self.exporters.update(self.decoder.decode(datagrams))

    def rows(self, *names: str) -> dict[tuple[Any, ...], tuple[Any, ...]]:
        """Return columns of the table, by key."""
        table = self.exporters.table(self.decoder)
        keys, values = (
            zip(*(as_list(table[name]) for name in columns), strict=True) for columns in (KEY, names)
        )
        return dict(zip(keys, values, strict=True))

    def lost(self) -> tuple[int, int, int]:
        """Return the only exporter's losses, restarts and unchecked datagrams."""
        (row,) = self.rows("lost", "restarts", "unchecked").values()
        return row


def test_state_of_each_exporter() -> None:
    """By sender, port, version and domain; sFlow agents by address and sub-agent."""
    collected = Collected()
    declared = template_set(IPFIX, 300, PLAIN), options_set(IPFIX, 301, [(0, 149, 4)], [(0, 34, 4)])
    collected.see(
        message(IPFIX, *declared, a_set(301, struct.pack("!II", 7, 50)), a_set(300, plain(1) * 3)),
        sflow(1, port=1),
        netflow5(1, 2),
        message(IPFIX, a_set(300, plain(1)), sequence=9, domain=8),
        sflow(2, port=2),
        Sent(SENDER, 1, b"rubbish"),
    )
    collected.see(
        netflow5(3, 0), Sent(SENDER, 2, b""), netflow5(3, 1, stated=2), received_ns=RECEIVED_NS + 100
    )
    names = ("datagrams", "malformed", "rows", "options", "broken", "templates", "waiting", "sampling_rate")
    assert collected.rows(*names) == {
        (SENDER, PORT, IPFIX, 7): (1, 0, 3, 1, 0, 2, 0, 50),
        (SENDER, PORT, IPFIX, 8): (1, 0, 0, 0, 0, 0, 1, 0),
        (SENDER, PORT, NETFLOW_5, 1): (3, 0, 3, 0, 1, 0, 0, 100),
        (mapped(AGENT), 0, 105, 3): (2, 0, 2, 0, 0, 0, 0, 512),
        (SENDER, 0, 0, 0): (2, 2, 0, 0, 0, 0, 0, 0),
    }
    times = {key[2]: times for key, times in collected.rows("first_ns", "last_ns").items() if key[3] != 8}
    offsets = {NETFLOW_5: (2, 102), IPFIX: (0, 0), 105: (1, 4), 0: (5, 101)}
    assert times == {key: tuple(RECEIVED_NS + offset_ns for offset_ns in of) for key, of in offsets.items()}
    assert collected.rows("bytes")[SENDER, PORT, NETFLOW_5, 1] == (3 * 24 + 3 * 48,)
    table = collected.exporters.table(collected.decoder)
    assert {name: table[name].sum() for name in COUNTED} == {
        "datagrams": 9, "malformed": 2, "rows": 8, "options": 1, "broken": 1, "numbered": 10, "lost": 0, "restarts": 0,
        "unchecked": 0,
        "bytes": sum(count for (count,) in collected.rows("bytes").values()), "forgotten": 0,
    }  # fmt: skip


def test_sets_that_were_dropped_are_counted_for_their_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the exporter was evicted, the ledger alone counts them."""
    monkeypatch.setattr(held, "ADDRESS_BYTES_MAX", 8000)
    collected = Collected(Exporters(most=1))
    waiting = a_set(300, plain(1))
    collected.see(*(message(IPFIX, waiting, domain=1) for _ in range(10)))
    ((forgotten, still),) = collected.rows("forgotten", "waiting").values()
    assert (forgotten > 0, forgotten + still) == (True, 10)
    collected.see(*(message(IPFIX, waiting, domain=2) for _ in range(10)))
    collected.exporters.forget(collected.decoder.forget_waiting())
    assert collected.rows("forgotten") == {(SENDER, PORT, IPFIX, 2): (10,)}
    assert collected.decoder.totals["forgotten"] == 20


def test_the_last_sampling_rate_stays() -> None:
    """Also if later flows have none, or arrive in any order."""
    collected = Collected()
    declared = template_set(IPFIX, 300, [*PLAIN, (0, 34, 4)])
    for rates in ((10, 20, 0), (0,), (30, 0)):
        sets = (a_set(300, plain(1) + struct.pack("!I", rate)) for rate in rates)
        collected.see(*(message(IPFIX, declared, set_) for set_ in sets), message(IPFIX))
    assert list(collected.rows("sampling_rate").values()) == [(30,)]


# --- lost exports, as each protocol numbers them -------------------------------------------------------------

DECLARED = {
    version: (template_set(version, 300, PLAIN), options_set(version, 301, [(0, scope, 4)], [(0, 34, 4)]))
    for version, scope in ((NETFLOW_9, 1), (IPFIX, 149))
}
UNDECODED = (a_set(300, plain(1) * 5), struct.pack("!HH", 301, 100) + bytes(20), a_set(9, b""))


def numbered(*sequences: int, version: int = NETFLOW_9, flows: int = 10, domain: int = 7) -> list[Sent]:
    """Return datagrams with this many flows and these numbers."""
    sets = DECLARED[version][0], a_set(300, plain(1) * flows)
    return [message(version, *sets, sequence=sequence % 2**32, domain=domain) for sequence in sequences]


def ipfix(sequence: int, *sets: bytes) -> Sent:
    """Return an IPFIX message with this number."""
    return message(IPFIX, *sets, sequence=sequence)


def of_options_and_biflows() -> list[Sent]:
    """Return IPFIX messages of which each has five records, one of them a biflow; then a gap of seven."""
    declared = template_set(IPFIX, 300, [*PLAIN, (29305, 1, 4)]), DECLARED[IPFIX][1]
    data = a_set(300, (plain(1) + struct.pack("!I", 9)) * 3), a_set(301, struct.pack("!II", 7, 50) * 2)
    return [ipfix(40, *declared), ipfix(40, *data, *declared), ipfix(45, *data), ipfix(57)]


LOSSES: dict[str, tuple[list[Sent], tuple[int, int, int]]] = {
    "NetFlow 5 numbers flows, those stated": (
        [netflow5(100, 2), netflow5(102, 3), netflow5(115, 1), netflow5(116, 0, stated=30), netflow5(146, 1)],
        (10, 0, 0),
    ),
    "late flows": ([netflow5(100, 2), netflow5(102, 3), netflow5(115, 1), netflow5(105, 4)], (6, 0, 0)),
    "an implausible count": ([netflow5(100, 1, stated=60_000), netflow5(101, 1)], (0, 0, 0)),
    "NetFlow 9 numbers messages": (
        [message(NETFLOW_9, UNDECODED[0], sequence=at) for at in (2**32 - 2, 2**32 - 1, 2, 3, 1)],
        (1, 0, 0),
    ),
    "IPFIX numbers records": (of_options_and_biflows(), (7, 0, 0)),
    **{
        f"IPFIX records that were not decoded, {at}": (
            [
                ipfix(10, template_set(IPFIX, 301, PLAIN), a_set(301, plain(1) * 2), unknown),
                *(ipfix(17, a_set(301, plain(1))), ipfix(18)),
                *(ipfix(18, template_set(IPFIX, 300, PLAIN)), ipfix(20)),
            ],
            (2, 0, 1),
        )
        for at, unknown in enumerate(UNDECODED)
    },
    "a late message that was not decoded": (
        [ipfix(10), ipfix(10), ipfix(30), ipfix(35), ipfix(10, UNDECODED[0]), ipfix(35)],
        (5, 0, 0),
    ),
    "sFlow numbers datagrams of any port": (
        [sflow(7, port=1), sflow(8, port=2), sflow(8, port=2), sflow(11, port=1), sflow(1, port=1)],
        (2, 0, 0),
    ),
    "a restart at 0": ([netflow5(number, 1) for number in (99_999, 0, 1, 7)], (5, 1, 0)),
    "a restart far ahead": ([netflow5(2**31 * (at > 0) + at, 1) for at in (0, 1, 2, 8)], (5, 1, 0)),
    "a late datagram of long ago": ([netflow5(number, 1) for number in (99_999, 97_000, 100_000, 100_006)], (5, 0, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    """Count lost units, restarts, and datagrams before which losses are unknown."""
    collected = Collected()
    sent, expected = LOSSES[name]
    collected.see(*sent)
    assert collected.lost() == expected


def test_series_are_separate() -> None:
    """Follow engines, domains and sub-agents by their own numbers."""
    collected = Collected()
    collected.see(
        netflow5(100, 2), netflow5(102, 3), netflow5(0, 4, engine=2), sflow(1), sflow(3, sub_agent=4)
    )
    assert set(collected.rows("lost", "restarts").values()) == {(0, 0)}


@settings(max_examples=40)
@given(st.data())
def test_losses_equal_what_did_not_arrive(data: st.DataObject) -> None:
    """Count exactly what did not arrive, for several domains; where numbers contradict the protocol, count nothing."""
    version = data.draw(st.sampled_from((NETFLOW_9, IPFIX)))
    by_record = data.draw(st.booleans())
    domains = data.draw(st.integers(1, 3))
    number = dict.fromkeys(range(domains), data.draw(st.sampled_from((0, 7, 2**31, 2**32 - 40))))
    collected = Collected()
    lost = 0

    def next_of(domain: int, flows: int, options: int) -> tuple[Sent, int]:
        sets = (
            *DECLARED[version],
            *([a_set(300, plain(1) * flows)] if flows else []),
            *([a_set(301, struct.pack("!II", 7, 50) * options)] if options else []),
        )
        units = flows + options if by_record else 1
        sent = message(version, *sets, sequence=number[domain] % 2**32, domain=domain)
        number[domain] += units
        return sent, units

    # The first ones arrive, as losses before them would be unknown.
    for at in range(40):
        collected.see(next_of(at % domains, at % 3 + 2, at % 2)[0])
    for _ in range(3):
        pending: list[Sent] = []
        for _ in range(data.draw(st.integers(1, 20))):
            flows, options = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2))
            sent, units = next_of(data.draw(st.integers(0, domains - 1)), flows, options)
            if data.draw(st.integers(0, 4)):
                pending.append(sent)
            else:
                lost += units
        for at in range(0, len(pending), 7):
            collected.see(*pending[at : at + 7])
        # Losses at the end are revealed by what follows.
        for domain in range(domains):
            collected.see(next_of(domain, 3, 1)[0])
    countings = {counting for (counting,) in collected.rows("counting").values()}
    if by_record == (version == IPFIX):
        assert sum(lost for (lost,) in collected.rows("lost").values()) == lost
        assert {unchecked for (unchecked,) in collected.rows("unchecked").values()} == {0}
        assert countings == {Counting.RECORDS if by_record else Counting.DATAGRAMS}
    else:
        assert countings == {Counting.UNKNOWN}


NOTHING_LOST = {
    "series of two domains": [*(datagram for at in range(25) for domain in range(2)
                                for datagram in numbered(at, domain=domain))],
    "out of order": numbered(0, 1, 3, 2, 4, 5, 8, 6, 7, 9),
    "records out of order": numbered(0, 10, 20, 40, 30, 50, 80, 60, 70, 90, version=IPFIX),
    "over the wrap, and a restart": numbered(*range(2**32 - 5, 2**32 + 5), *range(4)),
    "a burst that is late": numbered(0, 1, 2, *range(43, 46), *range(3, 43), 46),
    "a burst that comes twice": numbered(*range(60), *range(10, 60), 60),
    "all twice": numbered(*(step // 2 for step in range(60))),
    "records twice": numbered(*(step // 2 * 10 for step in range(60)), version=IPFIX),
}  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("name", NOTHING_LOST)
def test_nothing_is_lost_where_all_has_come(name: str, at_once: int) -> None:
    """Count no loss and no restart for reordered and duplicate datagrams, in any batching."""
    sent, collected = NOTHING_LOST[name], Collected()
    for at in range(0, len(sent), at_once):
        collected.see(*sent[at : at + at_once])
    rows = collected.rows("lost", "restarts", "counting").values()
    assert [(lost, restarts) for lost, restarts, _ in rows] == [(0, 0)] * len(rows)
    assert Counting.UNKNOWN not in {counting for *_, counting in rows}


CONTRADICTING = {
    "v9 that numbers flows": numbered(*range(0, 500, 10)),
    "v9 that numbers flows, over the wrap": numbered(*range(2**32 - 50, 2**32 + 50, 10)),
    "v9 that numbers flows, out of order": numbered(0, 10, 20, 40, 30, 50, 80, 60, 70, 90),
    "v9 that numbers flows, twice": numbered(*(step // 2 * 10 for step in range(60))),
    "IPFIX that numbers messages": numbered(*range(50), version=IPFIX),
    "one series of two domains": [*(datagram for at in range(50) for datagram in numbered(at, domain=at % 2))],
    "every other one is elsewhere": [sflow(number) for number in range(0, 80, 2)],
}  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("name", CONTRADICTING)
def test_numbers_that_contradict_the_protocol(name: str, at_once: int) -> None:
    """Count no loss until two datagrams have had consecutive numbers; losses are unknown from the second on."""
    sent, collected = CONTRADICTING[name], Collected()
    for at in range(0, len(sent), at_once):
        collected.see(*sent[at : at + at_once])
        assert {lost for (lost,) in collected.rows("lost").values()} == {0}
    assert {counting for (counting,) in collected.rows("counting").values()} == {Counting.UNKNOWN}


@pytest.mark.parametrize("every", [3, 5, 20])
def test_losses_of_a_bad_network_are_known(every: int) -> None:
    """Known after each datagram, from the second on, though one in `every` is lost."""
    collected, arrived = Collected(), [number for number in range(300) if number < 2 or number % every]
    for at, number in enumerate(arrived):
        collected.see(*numbered(number))
        lost = number - at
        assert list(collected.rows("lost", "counting").values()) == [(lost, Counting.DATAGRAMS)]


@pytest.mark.parametrize("every", [2, 3])
def test_much_is_lost(every: int) -> None:
    """If one datagram in two or three arrives, all others are counted."""
    collected = Collected()
    collected.see(*numbered(*range(40)))
    generator = np.random.default_rng(1)
    came = sorted({*generator.choice(np.arange(40, 600), 560 // every, replace=False).tolist(), 599})
    for at in came:
        collected.see(*numbered(at))
    assert collected.lost()[0] == 600 - 40 - len(came)


A, B, C = range(1000, 1040), range(900_000, 900_040), range(5_000_000, 5_000_040)
UNEXPLAINED = {
    "in turn": [item for pair in zip(A, B, strict=True) for item in pair],
    "three": [item for three in zip(A, B, C, strict=True) for item in three],
    "with losses": [item for pair in zip(A, B, strict=True) for item in pair if item % 7],
    "no numbers at all": [0] * 40,
    "bytes are numbered, and once it looks otherwise": [5, 6, *(9 + at * 1300 + at**2 for at in range(40))],
}


@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("name", UNEXPLAINED)
def test_unexplained_numbers(name: str, at_once: int) -> None:
    """For two switches with the same agent address, or meaningless numbers, losses are unknown until most numbers are
    consecutive.
    """
    collected = Collected()
    sent = [sflow(number) for number in UNEXPLAINED[name]]
    for at in range(0, len(sent), at_once):
        collected.see(*sent[at : at + at_once])
    ((lost, counting, unchecked),) = collected.rows("lost", "counting", "unchecked").values()
    assert (lost, counting) == (0, Counting.UNKNOWN)
    assert unchecked > 20
    # One of them is gone, or was reconfigured.
    collected.see(*(sflow(number) for number in range(20_000, 20_100)))
    assert collected.rows("counting") == {(mapped(AGENT), 0, 105, 3): (Counting.DATAGRAMS,)}
    collected.see(sflow(20_105))
    assert collected.rows("lost") == {(mapped(AGENT), 0, 105, 3): (5,)}


@pytest.mark.parametrize("earlier", [numbered(*range(100), *range(104, 200)), numbered(*range(200), flows=1)])
def test_an_exporter_replaced_by_another_kind(earlier: list[Sent]) -> None:
    """Withdraw the losses once the numbers contradict the protocol."""
    collected = Collected()
    collected.see(*earlier)
    for at in range(200, 700, 10):
        collected.see(*numbered(at))
    assert collected.lost()[:2] == (0, 0)
    assert list(collected.rows("counting").values()) == [(Counting.UNKNOWN,)]


# --- bounds ---------------------------------------------------------------------------------------------------


def flood(count: int, *, header: bytes) -> Datagrams:
    """Return one datagram from each of this many senders, all the same."""
    senders = np.zeros((count, 16), np.uint8)
    senders[:, 12:] = np.arange(count, dtype=">u4").view(np.uint8).reshape(-1, 4)
    return Datagrams(
        np.frombuffer(header * count, np.uint8),
        np.arange(count) * len(header),
        np.full(count, len(header)),
        senders.view(ADDRESS).ravel(),
        np.full(count, PORT, np.uint16),
        RECEIVED_NS + np.arange(count),
    )


def test_a_flood_of_senders_is_bounded() -> None:
    """Counts are kept; an exporter that keeps sending stays in the table with its state."""
    collected = Collected()
    count, mine = 100_000, netflow5(10, 1)
    collected.see(mine)
    for at in range(0, count, 10_000):
        datagrams = flood(count, header=netflow5(5, 1).data)
        some = slice(at, at + 10_000)
        part = Datagrams(
            datagrams.buffer, datagrams.starts[some], datagrams.lengths[some], datagrams.senders[some],
            datagrams.ports[some], datagrams.received_ns[some],
        )  # fmt: skip
        collected.exporters.update(collected.decoder.decode(part))
        collected.see(netflow5(20 + at, 1))
    rows = collected.rows("datagrams", "restarts")
    assert len(rows) == EXPORTERS_MAX
    assert rows[SENDER, PORT, NETFLOW_5, 1] == (11, 0)
    assert collected.exporters.evicted == count + 1 - EXPORTERS_MAX
    assert len(collected.exporters._known.row_of) == EXPORTERS_MAX


@pytest.mark.parametrize("header", [b"rubbish", message(IPFIX, a_set(300, plain(1))).data], ids=len)
def test_a_flood_in_one_batch(header: bytes) -> None:
    """Garbage evicts nobody, and data without a known template does not evict known domains."""
    collected = Collected()
    collected.see(message(IPFIX, template_set(IPFIX, 300, PLAIN)))
    collected.exporters.update(collected.decoder.decode(flood(20_000, header=header)))
    is_garbage = header == b"rubbish"
    assert len(collected.rows("rows")) == (UNRECOGNIZED_MAX + 1 if is_garbage else EXPORTERS_MAX)
    exporters = collected.exporters
    dropped = exporters.evicted_unrecognized if is_garbage else exporters.evicted
    assert dropped == (20_000 - UNRECOGNIZED_MAX if is_garbage else 20_001 - EXPORTERS_MAX)
    assert list(collected.decoder.messages.known.all) == [(SENDER, PORT, IPFIX, 7)]


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_flood_of_forged_exporters_evicts_none_that_was_known(*, in_pieces: bool) -> None:
    """An exporter that sends little keeps its template, its counts and its numbers."""
    collected = Collected()
    collected.see(message(NETFLOW_9, template_set(NETFLOW_9, 300, PLAIN), a_set(300, plain(1)), sequence=1))
    forged = message(NETFLOW_9, template_set(NETFLOW_9, 300, PLAIN), a_set(300, plain(2))).data
    datagrams = flood(20_000, header=forged)
    for piece in datagrams.pieces(
        datagrams.lengths, 200 * len(forged) if in_pieces else len(datagrams.buffer)
    ):
        collected.exporters.update(collected.decoder.decode(piece))
    collected.see(message(NETFLOW_9, a_set(300, plain(3)), sequence=2))
    rows = collected.rows("datagrams", "rows", "lost", "templates", "waiting")
    assert rows[SENDER, PORT, NETFLOW_9, 7] == (2, 2, 0, 1, 0)
    assert collected.exporters.evicted == 20_001 - EXPORTERS_MAX
    assert collected.decoder.messages.known.dropped == {"domains": 20_001 - DOMAINS_MAX}


def test_exporters_that_were_silent_for_long_make_room() -> None:
    """Before any that still send."""
    collected = Collected(Exporters(most=3))
    collected.see(netflow5(0, 1, engine=1), netflow5(0, 1, engine=2), netflow5(0, 1, engine=3))
    rows = collected.exporters._known.rows
    rows["last_ns"][rows["domain"] == 2] -= int((UNUSED_S + 1) * 1e9)
    collected.see(netflow5(0, 1, engine=4))
    assert sorted(domain for *_, domain in collected.rows("rows")) == [1, 3, 4]


def test_an_evicted_exporter_begins_anew() -> None:
    """Neither its counts nor its numbers remain."""
    collected = Collected(Exporters(most=2))
    collected.see(netflow5(10, 1), netflow5(50, 1, engine=2), netflow5(11, 1), netflow5(90_000, 1, engine=3))
    assert collected.rows("datagrams", "lost", "restarts") == {
        (SENDER, PORT, NETFLOW_5, 1): (2, 0, 0),
        (SENDER, PORT, NETFLOW_5, 3): (1, 0, 0),
    }
    collected.see(netflow5(99, 1, engine=2), netflow5(12, 1, sender=ELSEWHERE))
    assert collected.rows("datagrams", "lost", "restarts") == {
        (SENDER, PORT, NETFLOW_5, 2): (1, 0, 0),
        (ELSEWHERE, PORT, NETFLOW_5, 1): (1, 0, 0),
    }
    assert collected.exporters.evicted == 3


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40),
    st.integers(1, 41),
    st.integers(1, 8),
)
def test_counts_are_those_of_each_exporter(sent: list[tuple[int, int]], at_once: int, most: int) -> None:
    """In any batching."""
    plenty, few = Collected(), Collected(Exporters(most))
    for at in range(0, len(sent), at_once):
        for collected in (plenty, few):
            collected.see(*(netflow5(0, count, engine=engine) for engine, count in sent[at : at + at_once]))
    engines = {engine for engine, _ in sent}
    counts = {
        (SENDER, PORT, NETFLOW_5, engine): (
            sum(number == engine for number, _ in sent),
            sum(count for number, count in sent if number == engine),
        )
        for engine in engines
    }
    assert plenty.rows("datagrams", "rows") == counts
    assert len(few.rows("rows")) == min(len(engines), most)
