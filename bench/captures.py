# SPDX-License-Identifier: Apache-2.0
"""Send captured exports to nettop collect, and compare the result with that of other decoders.

`.venv/bin/python bench/captures.py DIR [--only NAME]`: DIR has `INDEX.tsv`, a row per capture with its `name`, its
`protocol`, the flows in sets whose template comes later (`unresolved_records`) and the reliability of the expectation
(`trust`); `captures/PROTOCOL/NAME.pcap`; and `records/NAME.tsv`, a row with 5-tuple, bytes and packets per flow. Each
capture is sent to a collector of its own; then all are sent interleaved to one collector, which must store the same.

The files have no times, and both directions of a record in one row. If the tests' plain decoder reads the flows of the
file in a capture, the stored rows must equal that decoder's, including times, directions and ICMP.
"""

import csv
import itertools
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from collecting import Senders, all_stored, arrived, collector
from measure import REQUIRED, arguments

from nettop.flows.decode.rows import BACKWARD
from tests.unit import flow_oracle

Record = tuple[str, str, int, int, int, int, int]
"""Addresses, ports, protocol, bytes and packets of a flow."""
Row = tuple[str | int, ...]
"""A record, and the values of MORE."""
MORE = ("biflow_direction", "icmp_type", "icmp_code", "start", "end")
"""Columns of a row beyond those of a record. Start and end are in ms since 1970, those of the last day in ms since
arrival: sFlow has no times, and the clocks of some exporters were never set."""
_RECORD, _DAY_MS = 7, 86_400_000
_JITTER_MS = 2
"""Cisco routers report their start time every half minute, which varies by a millisecond. It applies to all flows
decoded in one batch, so times depend on the batch size."""
_VLANS = (0x8100, 0x88A8)
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
EXACT = ("high", "high-", "medium")
"""Values of `trust` for which records must be equal."""


@dataclass(frozen=True)
class Datagram:
    """A datagram from an exporter's address and port."""

    exporter: str
    port: int
    content: bytes


@dataclass(frozen=True)
class Capture:
    """Datagrams, the flows in them, and the number of further flows once all templates are known."""

    name: str
    datagrams: list[Datagram]
    records: Counter[Any]
    later: int
    is_exact: bool


def captures(directory: Path) -> Iterator[Capture]:
    """Yield the captures in a directory."""
    with (directory / "INDEX.tsv").open() as index:
        for row in csv.DictReader(index, delimiter="\t"):
            name = row["name"]
            yield Capture(
                name,
                list(datagrams((directory / "captures" / row["protocol"] / f"{name}.pcap").read_bytes())),
                records(directory / "records" / f"{name}.tsv"),
                int(row["unresolved_records"] or 0) if row["unresolved_records"].isdecimal() else 0,
                row["trust"] in EXACT,
            )


def records(path: Path) -> Counter[Record]:
    """Return the expected flows; values that are not reported are 0, as in the store."""
    with path.open() as file:
        return Counter(
            (
                row["src"] or "::",
                row["dst"] or "::",
                *(int(row[name] or 0) for name in ("sport", "dport", "proto", "bytes", "packets")),
            )
            for row in csv.DictReader(file, delimiter="\t")
        )  # type: ignore[return-value]


def datagrams(content: bytes) -> Iterator[Datagram]:
    """Yield the UDP datagrams in a capture of Ethernet frames, with fragments reassembled."""
    parts: dict[bytes, bytes] = {}
    at = 24
    while at + 16 <= len(content):
        (size,) = struct.unpack_from("<8xI", content, at)
        packet = _packet(content[at + 16 : at + 16 + size])
        at += 16 + size
        if packet is None:
            continue
        key, source, offset, is_last, payload = packet
        whole = parts.pop(key, b"") + payload if offset else payload
        if not is_last:
            parts[key] = whole
            continue
        port, _, length = struct.unpack_from("!HHH", whole)
        yield Datagram(source, port, whole[8:length])


def _packet(frame: bytes) -> tuple[bytes, str, int, bool, bytes] | None:
    """Return a fragment's datagram key, sender, offset, whether it is the last, and its content; None if not UDP."""
    kind, at = struct.unpack_from("!H", frame, 12)[0], 14
    while kind in _VLANS:
        (kind,), at = struct.unpack_from("!H", frame, at + 2), at + 4
    if kind == _IPV4 and frame[at + 9] == _UDP:
        length, number, flags = struct.unpack_from("!xxHHH", frame, at)
        key = frame[at + 12 : at + 20] + number.to_bytes(2)
        content = frame[at + (frame[at] & 15) * 4 : at + length]
        source = socket.inet_ntoa(frame[at + 12 : at + 16])
        return key, source, flags & 0x1FFF, not flags & 0x2000, content
    if kind == _IPV6 and frame[at + 6] == _UDP:
        (length,) = struct.unpack_from("!4xH", frame, at)
        source = socket.inet_ntop(socket.AF_INET6, frame[at + 8 : at + 24])
        return b"", source, 0, True, frame[at + 40 : at + 40 + length]
    return None


def mixed(all_captures: Sequence[Capture]) -> Iterator[tuple[int, Datagram]]:
    """Yield the datagrams of all captures in round-robin order, each with its capture's number."""
    for turn in itertools.zip_longest(*(capture.datagrams for capture in all_captures)):
        yield from ((number, datagram) for number, datagram in enumerate(turn) if datagram is not None)


def read_plainly(capture: Capture) -> Counter[Row] | None:
    """Return the rows that the plain decoder reads in a capture; None if they differ from the expected flows."""
    first = flow_oracle.Oracle(time.time_ns() // 1_000_000)
    # Options apply to all flows of a batch, also to earlier ones, so everything is read a second time.
    oracle = flow_oracle.Oracle(first.received_ms, started_ms=first.started_ms)
    for each in (first, oracle):
        try:
            for datagram in capture.datagrams:
                each.message(datagram.exporter.encode(), datagram.port, datagram.content)
        except (struct.error, NotImplementedError, ValueError):
            return None
    if difference(capture, Counter(_row(row)[:_RECORD] for row in oracle.reported)):  # type: ignore[arg-type]
        return None
    return Counter(_row(row, oracle.received_ms) for row in oracle.rows)


def _row(read: flow_oracle.Row, received_ms: int = 0) -> Row:
    ends = (_address(read.get(name, bytes(16))) for name in ("src", "dst"))
    names = ("src_port", "dst_port", "protocol", "bytes", "packets", *MORE[:-2])
    times = (int(read.get(name, 0)) for name in MORE[-2:])
    since = (each - received_ms if abs(each - received_ms) < _DAY_MS else each for each in times)
    return (*ends, *(int(read.get(name, 0)) for name in names), *since)


def _address(value: int | bytes) -> str:
    assert isinstance(value, bytes)
    is_ipv4 = value[:12] == bytes(10) + b"\xff\xff"
    return socket.inet_ntoa(value[12:]) if is_ipv4 else socket.inet_ntop(socket.AF_INET6, value)


def stored(numbered: Sequence[tuple[int, Datagram]]) -> Counter[Row]:
    """Return the rows that a collector stores; each exporter of each capture sends from its own address."""
    hosts: dict[tuple[int, str], str] = {}
    with collector() as running, closing(Senders(running.port, most=len(numbered))) as senders:
        for number, datagram in numbered:
            host = hosts.setdefault((number, datagram.exporter), f"127.64.{number}.{len(hosts) % 250 + 1}")
            senders.send(host, datagram.content, (number, datagram.exporter, datagram.port))
        arrived(running, len(numbered))
        all_stored(running)
        numbers = ("src_port", "dst_port", "protocol", "bytes", "packets", *MORE[:-2])
        columns = (*map(_text, ("src", "dst")), *numbers, *map(_since, MORE[-2:]))
        rows = running.rows(f"SELECT {', '.join(columns)} FROM flows_raw")
    return Counter((src, dst, *(int(other or 0) for other in others)) for src, dst, *others in rows)


def _since(column: str) -> str:
    time_ms, received_ms = (f"toUnixTimestamp64Milli({name})" for name in (column, "received"))
    since = f"{time_ms} - {received_ms}"
    return f"if(abs({since}) < {_DAY_MS}, {since}, {time_ms})"


def as_records(rows: Counter[Row]) -> Counter[Record]:
    """Convert rows to records, without the reverse directions of biflows."""
    found: Counter[Record] = Counter()
    for row, count in rows.items():
        if row[_RECORD] != BACKWARD:
            found[row[:_RECORD]] += count  # type: ignore[index]
    return found


def _text(address: str) -> str:
    return f"replaceRegexpOne(IPv6NumToString({address}), '^::ffff:([0-9.]+)$', '\\\\1')"


def apart(expected: Counter[Any], have: Counter[Any]) -> tuple[Counter[Any], Counter[Any]]:
    """Return missing and unexpected rows; tolerate the jitter of the exporter's start time."""
    missing, more = expected - have, have - expected
    for row in list(missing.elements()):
        for start, end in itertools.product(range(-_JITTER_MS, _JITTER_MS + 1), repeat=2):
            near = (*row[:-2], row[-2] + start, row[-1] + end)
            if len(row) > _RECORD and more[near]:
                missing[row] -= 1
                more[near] -= 1
                break
    return +missing, +more


def difference(capture: Capture, have: Counter[Any]) -> str:
    """Describe the differences from the expected flows; empty if there are none."""
    missing, more = apart(capture.records, have)
    if not missing and more.total() == capture.later:
        return ""
    examples = [*(f"missing {record}" for record in missing), *(f"unexpected {record}" for record in more)]
    return (
        f"{missing.total()} missing, {more.total()} unexpected of {capture.records.total()}: {examples[:2]}"
    )


def main() -> int:
    """Compare all captures; return 1 if a reliable one differs."""
    options = arguments(__doc__, only=("", "compare this capture only"), directory=REQUIRED)
    chosen = [each for each in captures(Path(options.directory)) if options.only in ("", each.name)]
    wrong = 0
    alone, in_full = Counter[Row](), Counter[Row]()
    for capture in chosen:
        have = stored([(0, datagram) for datagram in capture.datagrams])
        alone += have
        expected = read_plainly(capture)
        if expected is None:
            problem = difference(capture, as_records(have))
        else:
            problem = difference(replace(capture, records=expected, later=0), have)
            in_full += expected
        if problem:
            print(f"{capture.name}{'' if capture.is_exact else ' (unreliable)'}: {problem}", flush=True)
            wrong += capture.is_exact
    reliable = sum(capture.is_exact for capture in chosen)
    print(f"{len(chosen)} captures with {alone.total()} flows, {reliable} of them reliable: {wrong} differ")
    print(f"{in_full.total()} of the flows are compared including times and directions")
    together = stored(list(mixed(chosen)))
    lost, more = apart(alone, together)
    print(f"all interleaved: {together.total()} flows, {lost.total()} missing, {more.total()} unexpected")
    return int(bool(wrong or lost or more))


if __name__ == "__main__":
    sys.exit(main())
