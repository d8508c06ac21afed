# SPDX-License-Identifier: Apache-2.0
"""A reference decoder for NetFlow and IPFIX: one message, record and field at a time, following the RFCs.

It is slow and simple, and shares nothing with nettop's decoder but the column names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Row = dict[str, int | bytes]
Field = tuple[int, int, int]
"""Enterprise, number, length."""

VARIABLE = 65535
REVERSE = 29305
NOTHING = bytes(16)
OF_BOTH = {(0, number) for number in (1, 85, 352, 2, 86)}
"""Counters that may cover initiator and responder together."""
TIME_MIN_MS, TIME_MAX_MS = 946_684_800_000, 10_413_791_999_999
"""Start of 2000 and end of 2299."""


def address(value: bytes) -> bytes:
    """Return an address as 16 bytes."""
    return bytes(10) + b"\xff\xff" + value if len(value) == 4 else value


def ntp_ms(value: bytes) -> int:
    """Convert an NTP time to milliseconds since 1970."""
    seconds, fraction = struct.unpack("!II", value)
    return (seconds - 2_208_988_800) * 1000 + (fraction * 1000 >> 32)


@dataclass(frozen=True)
class Set:
    """A data set and its message header."""

    content: bytes
    domain: int
    export_ms: int
    boot_ms: int | None
    version: int


@dataclass
class Oracle:
    """State of all observation domains, and the rows decoded so far, for messages received at a given time."""

    received_ms: int
    templates: dict[tuple[bytes, int, int, int, int], tuple[list[Field], int]] = field(default_factory=dict)
    waiting: dict[tuple[bytes, int, int, int, int], list[Set]] = field(default_factory=dict)
    connections: dict[tuple[int | bytes, ...], list[int]] = field(default_factory=dict)
    started_ms: dict[tuple[bytes, int, int, int], int] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    reported: list[Row] = field(default_factory=list)
    """One row per record with its totals, as in collectors that do not separate directions."""

    def message(self, sender: bytes, port: int, data: bytes) -> None:
        """Decode a well-formed message."""
        (version,) = struct.unpack_from("!H", data)
        if version == 5:
            rows = [settled(with_icmp(row), self.received_ms) for row in netflow5(data, self.export_ms)]
            self.rows += rows
            self.reported += rows
            return
        if version == 9:
            _, _, uptime, seconds, _, domain = struct.unpack_from("!HHIIII", data)
            boot_ms, at = self.export_ms(seconds) - uptime, 20
        else:
            _, _, seconds, _, domain = struct.unpack_from("!HHIII", data)
            boot_ms, at = None, 16
        key = (sender, port, version, domain)
        while at < len(data):
            set_id, length = struct.unpack_from("!HH", data, at)
            if set_id == length == 0:
                break  # padding
            if not 4 <= length <= len(data) - at:
                raise ValueError("a set of an impossible length")
            of_set = Set(data[at + 4 : at + length], domain, self.export_ms(seconds), boot_ms, version)
            at += length
            if set_id < 256:
                self._templates(key, set_id in (1, 3), of_set.content)
            else:
                self.waiting.setdefault((*key, set_id), []).append(of_set)
            for place in self.templates.keys() & self.waiting.keys():
                for each in self.waiting.pop(place):
                    self._records(place[:4], each, *self.templates[place])

    def _records(
        self, key: tuple[bytes, int, int, int], of_set: Set, fields: list[Field], scopes: int
    ) -> None:
        for record in records(fields, of_set.content):
            if scopes:
                if TIME_MIN_MS <= count(record, 160) <= TIME_MAX_MS:
                    self.started_ms[key] = count(record, 160)
                continue
            boot_ms = self.started_ms.get(key) if of_set.boot_ms is None else of_set.boot_ms
            rows = list(rows_of(record, of_set.domain, of_set.export_ms, boot_ms, of_set.version))
            self.reported.append(as_one(record, rows))
            self._count_once(key[0], record, rows)
            self.rows += (settled(row, self.received_ms) for row in rows)

    def _count_once(self, sender: bytes, record: dict[tuple[int, int], bytes], rows: list[Row]) -> None:
        """Reduce an event's rows to what earlier events did not count, and drop a direction with nothing left."""
        if (0, 233) not in record or not {(0, 232), (0, 299)} & record.keys():
            return
        names = ("domain", "src", "dst", "src_port", "dst_port", "protocol")
        key = (sender, count(record, 148), *(rows[0].get(name, 0) for name in names))
        event, counters = count(record, 233), [(0, "bytes"), (0, "packets"), (1, "bytes"), (1, "packets")]
        reported = [int(rows[at].get(name, 0)) if at < len(rows) else 0 for at, name in counters]
        before = self.connections.pop(key, [0] * 4)
        if event == 5:
            self.connections[key] = [a + b for a, b in zip(before, reported, strict=True)]
        elif event == 2:
            for (at, name), a, b in zip(counters, before, reported, strict=True):
                if at < len(rows) and name in rows[at]:
                    rows[at][name] = max(0, b - a)
        rows[:] = [row for row in rows if row is rows[0] or row.get("bytes") or row.get("packets")]

    def export_ms(self, seconds: int) -> int:
        """Return when a message was sent, or received if the exporter's clock was never set."""
        return seconds * 1000 if seconds * 1000 >= TIME_MIN_MS else self.received_ms

    def _templates(self, key: tuple[bytes, int, int, int], has_scopes: bool, content: bytes) -> None:
        at = 0
        while len(content) - at >= 4:
            template_id, count = struct.unpack_from("!HH", content, at)
            at += 4
            scopes = 0
            if has_scopes:
                (scopes,) = struct.unpack_from("!H", content, at)
                at += 2
                if key[2] == 9:
                    scopes, count = count // 4, (count + scopes) // 4
            fields = []
            for _ in range(count):
                number, length = struct.unpack_from("!HH", content, at)
                at += 4
                enterprise = 0
                if key[2] == 10 and number >= 0x8000:
                    (enterprise,) = struct.unpack_from("!I", content, at)
                    number, at = number - 0x8000, at + 4
                fields.append((enterprise, number, length))
            if not fields:
                raise NotImplementedError("withdrawals")
            self.templates[*key, template_id] = fields, scopes


def netflow5(data: bytes, export_ms_of: Callable[[int], int]) -> Iterator[Row]:
    """Return the rows of a datagram."""
    _, counted, uptime, seconds, nanoseconds = struct.unpack_from("!HHIII", data)
    export_ms = export_ms_of(seconds) + nanoseconds // 10**6
    for at in range(24, 24 + 48 * counted, 48):
        src, dst, packets, size, first, last, src_port, dst_port, protocol = struct.unpack_from(
            "!4s4s8xIIIIHH2xB", data, at
        )
        row: Row = {"src": address(src), "dst": address(dst), "packets": packets, "bytes": size}
        row |= {"src_port": src_port, "dst_port": dst_port, "protocol": protocol}
        for name, uptime_ms in (("start", first), ("end", last)):
            if first or last:
                row[name] = since_boot_ms(uptime_ms, export_ms, export_ms - uptime) or 0
        yield row


def records(fields: list[Field], content: bytes) -> Iterator[dict[tuple[int, int], bytes]]:
    """Yield each record, with the first value of each element."""
    shortest = sum(1 if length == VARIABLE else length for _, _, length in fields)
    at = 0
    while shortest and len(content) - at >= shortest:
        record: dict[tuple[int, int], bytes] = {}
        for enterprise, number, stated in fields:
            length = stated
            if stated == VARIABLE:
                length, at = content[at], at + 1
                if length == 255:
                    (length,) = struct.unpack_from("!H", content, at)
                    at += 2
            record.setdefault((enterprise, number), content[at : at + length])
            at += length
        yield record


def rows_of(
    record: dict[tuple[int, int], bytes], domain: int, export_ms: int, boot_ms: int | None, version: int
) -> Iterator[Row]:
    """Yield a record's row, and that of its reverse direction."""
    if not any(number in record and any(record[number]) for number in ((0, 22), (0, 21))):
        boot_ms = None
    elif (0, 160) in record and TIME_MIN_MS <= int.from_bytes(record[0, 160]) <= TIME_MAX_MS:
        boot_ms = int.from_bytes(record[0, 160])
    row = with_icmp(columns(record, 0, export_ms, boot_ms)) | {"domain": domain}
    back = {
        EXCHANGED.get(name, name): value for name, value in row.items() if name not in ("bytes", "packets")
    }
    if any(enterprise == REVERSE for enterprise, _ in record):
        row["biflow_direction"] = 1
        back |= columns(record, REVERSE, export_ms, boot_ms)
    elif {(0, 232), (0, 299)} & record.keys() and not (
        OF_BOTH & record.keys() and {(0, 23), (0, 24)} & record.keys()
    ):
        ends = {
            name: (count(record, initiator), count(record, responder))
            for name, initiator, responder in (("bytes", 231, 232), ("packets", 298, 299))
            if {(0, initiator), (0, responder)} & record.keys()
        }
        if all(row.get(name, 0) in (0, sent, sent + came) for name, (sent, came) in ends.items()):
            row |= {name: sent for name, (sent, _) in ends.items() if name in row}
            row["biflow_direction"] = 1
            back |= {name: came for name, (_, came) in ends.items()}
    else:
        pairs = [(count(record, into), count(record, out)) for into, out in ((1, 23), (2, 24))]
        has_both = version == 9 or any(enterprise == 35632 for enterprise, _ in record)
        if has_both and any(into and out and into != out for into, out in pairs):
            row["biflow_direction"] = 1
            back |= {"bytes": pairs[0][1], "packets": pairs[1][1]}
        else:
            row |= {
                name: row[name] or out
                for name, (_, out) in zip(("bytes", "packets"), pairs, strict=True)
                if name in row
            }
    yield row
    if back.get("bytes") or back.get("packets"):
        yield back | {"biflow_direction": 2}


def as_one(record: dict[tuple[int, int], bytes], rows: list[Row]) -> Row:
    """Return a record's row, with the bytes and packets of both directions."""
    if not {(0, 232), (0, 299)} & record.keys() or OF_BOTH & record.keys():
        return rows[0]
    return rows[0] | {name: sum(int(row.get(name, 0)) for row in rows) for name in ("bytes", "packets")}


def count(record: dict[tuple[int, int], bytes], number: int) -> int:
    """Return a counter of a record, 0 if missing."""
    return int.from_bytes(record.get((0, number), b""))


def since_boot_ms(uptime_ms: int, export_ms: int, boot_ms: int | None) -> int | None:
    """Return the time of a 32-bit uptime, which may have wrapped: the candidate nearest to the export time."""
    if boot_ms is None:
        return None
    time_ms = boot_ms + uptime_ms
    periods = (export_ms - time_ms) // 2**32
    return min(
        (time_ms + (periods + more) * 2**32 for more in (0, 1)),
        key=lambda each: (abs(each - export_ms), each),
    )


def settled(row: Row, received_ms: int) -> Row:
    """Return the row with a plausible duration."""
    start, end = (int(row.get(name, 0)) for name in ("start", "end"))
    if not 0 < end < start:
        return row
    if start - end <= 1000:
        return row | {"end": start}
    return row | ({"start": 0} if abs(start - received_ms) > abs(end - received_ms) else {"end": 0})


_BOTH_ENDS = (("src", "dst"), ("src_port", "dst_port"), ("src_mac", "dst_mac"))
EXCHANGED = dict(_BOTH_ENDS) | {destination: source for source, destination in _BOTH_ENDS}
"""The column each value moves to in the reverse direction."""


def with_icmp(row: Row) -> Row:
    """Return the row with ICMP type and code from the destination port, unless it has them already."""
    if row.get("protocol") not in (1, 58) or "dst_port" not in row or "icmp_type" in row:
        return row
    icmp_type, code = type_and_code(int(row["dst_port"]) & 0xFFFF)
    return row | {"icmp_type": icmp_type, "icmp_code": code}


def type_and_code(number: int) -> tuple[int, int]:
    """Split a number into ICMP type and code; if the upper byte is 0, the lower one is the type."""
    upper, lower = divmod(number, 256)
    return (upper, lower) if upper else (lower, 0)


Convert = Callable[[bytes, int, int | None], int | bytes | None]


def whole(value: bytes, _export_ms: int, _boot_ms: int | None) -> int:
    """Convert an unsigned integer."""
    return int.from_bytes(value)


GIVEN_BY: list[tuple[str, int, Convert]] = [
    ("bytes", 1, whole),
    ("bytes", 85, whole),
    ("bytes", 352, whole),
    ("bytes", 231, whole),
    ("bytes", 23, whole),
    ("packets", 2, whole),
    ("packets", 86, whole),
    ("packets", 298, whole),
    ("packets", 24, whole),
    ("src", 8, lambda value, *_: address(value)),
    ("src", 27, lambda value, *_: address(value)),
    ("dst", 12, lambda value, *_: address(value)),
    ("dst", 28, lambda value, *_: address(value)),
    ("src_port", 7, whole),
    ("src_port", 180, whole),
    ("src_port", 182, whole),
    ("dst_port", 11, whole),
    ("dst_port", 181, whole),
    ("dst_port", 183, whole),
    ("protocol", 4, whole),
    ("src_mac", 56, whole),
    ("mpls_label_1", 70, lambda value, *_: int.from_bytes(value) >> 4),
    ("icmp_type", 176, whole),
    ("icmp_type", 178, whole),
    ("icmp_code", 177, whole),
    ("icmp_code", 179, whole),
    ("icmp_type", 139, lambda value, *_: type_and_code(int.from_bytes(value))[0]),
    ("icmp_code", 139, lambda value, *_: type_and_code(int.from_bytes(value))[1]),
    ("icmp_type", 32, lambda value, *_: type_and_code(int.from_bytes(value))[0]),
    ("icmp_code", 32, lambda value, *_: type_and_code(int.from_bytes(value))[1]),
    ("start", 152, whole),
    ("start", 154, lambda value, *_: ntp_ms(value)),
    ("start", 150, lambda value, *_: int.from_bytes(value) * 1000),
    ("start", 158, lambda value, export_ms, _: export_ms - int.from_bytes(value) // 1000),
    ("start", 22, lambda value, export_ms, boot_ms: since_boot_ms(int.from_bytes(value), export_ms, boot_ms)),
    ("start", 323, whole),
    ("end", 153, whole),
    ("end", 155, lambda value, *_: ntp_ms(value)),
    ("end", 151, lambda value, *_: int.from_bytes(value) * 1000),
    ("end", 159, lambda value, export_ms, _: export_ms - int.from_bytes(value) // 1000),
    ("end", 21, lambda value, export_ms, boot_ms: since_boot_ms(int.from_bytes(value), export_ms, boot_ms)),
    ("end", 323, whole),
    ("direction", 61, whole),
]
"""Elements by column. The first one in a record wins; for most columns, the first that is not 0."""


def columns(
    record: dict[tuple[int, int], bytes], enterprise: int, export_ms: int, boot_ms: int | None
) -> Row:
    """Return the columns filled by a record's elements of one enterprise."""
    row: Row = {}
    for name, number, convert in GIVEN_BY:
        if (enterprise, number) in record:
            value = convert(record[enterprise, number], export_ms, boot_ms)
            is_time = name in ("start", "end")
            if value is None or (is_time and not TIME_MIN_MS <= int(value) <= TIME_MAX_MS):
                continue
            is_counter = name in ("bytes", "packets")
            if name not in row or (not is_counter and row[name] in (0, NOTHING, address(bytes(4)))):
                row[name] = value
    return row
