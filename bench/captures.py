# SPDX-License-Identifier: Apache-2.0
"""Captured exports, sent to nettop collect, beside what other decoders have read in them.

`.venv/bin/python bench/captures.py DIR [--only NAME]`: DIR has `INDEX.tsv`, a row for each capture with its `name`, its
`protocol`, the flows in sets whose template comes later (`unresolved_records`) and how sure the expectation is
(`trust`); `captures/PROTOCOL/NAME.pcap`; and `records/NAME.tsv`, a row with 5-tuple, bytes and packets for each flow.
Each capture is sent to a collector of its own; then all are sent to another one, mixed, which has to store the same.

The files say no times, and have both directions of a record in one row. Where the tests' plain decoder reads in a
capture what its file says, the rows that are stored have to be that decoder's: times, directions and ICMP too.
"""

import argparse
import csv
import itertools
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.flows.decode.rows import BACKWARD  # noqa: E402 - the checkout comes first
from tests.collecting import Running, until  # noqa: E402
from tests.unit import flow_oracle  # noqa: E402

Record = tuple[str, str, int, int, int, int, int]
"""Addresses, ports, protocol, bytes and packets of a flow."""
Row = tuple[str | int, ...]
"""A record, and the values of MORE."""
MORE = ("biflow_direction", "icmp_type", "icmp_code", "start", "end")
"""What rows have beside a record. Start and end are in ms since 1970, those of the last day in ms since arrival: of
sFlow, which says no times, and of exporters whose clock was never set."""
_RECORD, _DAY_MS = 7, 86_400_000
_JITTER_MS = 2
"""Routers of Cisco say every half minute when they began, each time a millisecond more or less. What they say holds for
all flows that are decoded at once, so times depend on how many those are."""
_VLANS = (0x8100, 0x88A8)
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
EXACT = ("high", "high-", "medium")
"""What `trust` says where records must be equal."""


@dataclass(frozen=True)
class Datagram:
    """What an exporter has sent: from this address and port."""

    exporter: str
    port: int
    content: bytes


@dataclass(frozen=True)
class Capture:
    """Datagrams, the flows in them, and how many more there are once all templates are known."""

    name: str
    datagrams: list[Datagram]
    records: Counter[Any]
    later: int
    is_exact: bool


def captures(directory: Path) -> Iterator[Capture]:
    """All in a directory."""
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
    """The flows that are expected; what is not reported is 0, as in the store."""
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
    """UDP in a capture of Ethernet frames, with fragments put together."""
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
    """What fragments belong together by, the sender, where this one begins, whether it is the last, and its content."""
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
    """The datagrams of all, each with its capture's number: one of each in turn."""
    for turn in itertools.zip_longest(*(capture.datagrams for capture in all_captures)):
        yield from ((number, datagram) for number, datagram in enumerate(turn) if datagram is not None)


def read_plainly(capture: Capture) -> Counter[Row] | None:
    """The rows that the plain decoder makes of a capture; None where it does not read what is expected."""
    first = flow_oracle.Oracle(time.time_ns() // 1_000_000)
    # Options hold for all flows of a batch, also for those before: they are known when all is read once more.
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
    """What a collector stores of datagrams; each exporter of each capture sends from an address of its own."""
    with ExitStack() as ends:
        parent = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="nettop-flows")))
        parent.chmod(0o755)  # for the user that the collector becomes
        running = ends.enter_context(Running(parent / "flows"))
        senders: dict[tuple[int, str, int], socket.socket] = {}
        hosts: dict[tuple[int, str], str] = {}
        for number, datagram in numbered:
            host = hosts.setdefault((number, datagram.exporter), f"127.64.{number}.{len(hosts) % 250 + 1}")
            key = number, datagram.exporter, datagram.port
            if key not in senders:
                senders[key] = ends.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                senders[key].bind((host, 0))
            senders[key].sendto(datagram.content, ("127.0.0.1", running.port))
        until(lambda: running.state()["datagrams"]["arrived"] == len(numbered), "all have arrived")
        until(
            lambda: not sum(running.state()["flows"][name] for name in ("pending", "waiting")),
            "all is stored",
        )
        numbers = ("src_port", "dst_port", "protocol", "bytes", "packets", *MORE[:-2])
        columns = (*map(_text, ("src", "dst")), *numbers, *map(_since, MORE[-2:]))
        rows = running.rows(f"SELECT {', '.join(columns)} FROM flows_raw")
    return Counter((src, dst, *(int(other or 0) for other in others)) for src, dst, *others in rows)


def _since(column: str) -> str:
    time_ms, received_ms = (f"toUnixTimestamp64Milli({name})" for name in (column, "received"))
    since = f"{time_ms} - {received_ms}"
    return f"if(abs({since}) < {_DAY_MS}, {since}, {time_ms})"


def as_records(rows: Counter[Row]) -> Counter[Record]:
    """The records of rows, without those of the other direction of a biflow."""
    found: Counter[Record] = Counter()
    for row, count in rows.items():
        if row[_RECORD] != BACKWARD:
            found[row[:_RECORD]] += count  # type: ignore[index]
    return found


def _text(address: str) -> str:
    return f"replaceRegexpOne(IPv6NumToString({address}), '^::ffff:([0-9.]+)$', '\\\\1')"


def apart(expected: Counter[Any], have: Counter[Any]) -> tuple[Counter[Any], Counter[Any]]:
    """What is missing, and what is more: not by times alone that differ as those differ when the exporter began."""
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
    """What is not as expected; empty if all is."""
    missing, more = apart(capture.records, have)
    if not missing and more.total() == capture.later:
        return ""
    examples = [*(f"missing {record}" for record in missing), *(f"not expected {record}" for record in more)]
    return (
        f"{missing.total()} missing, {more.total()} not expected of {capture.records.total()}: {examples[:2]}"
    )


def main() -> int:
    """Compare all; returns 1 if what is sure differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--only", metavar="NAME", help="one capture")
    options = parser.parse_args()
    chosen = [each for each in captures(options.directory) if options.only in (None, each.name)]
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
            print(f"{capture.name}{'' if capture.is_exact else ' (not sure)'}: {problem}", flush=True)
            wrong += capture.is_exact
    sure = sum(capture.is_exact for capture in chosen)
    print(f"{len(chosen)} captures with {alone.total()} flows, {sure} of them sure: {wrong} differ")
    print(f"{in_full.total()} of the flows are compared with their times and directions")
    together = stored(list(mixed(chosen)))
    lost, more = apart(alone, together)
    print(f"all mixed: {together.total()} flows, {lost.total()} missing, {more.total()} more")
    return int(bool(wrong or lost or more))


if __name__ == "__main__":
    sys.exit(main())
