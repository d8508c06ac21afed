# SPDX-License-Identifier: Apache-2.0
"""NetFlow v9 and IPFIX decoded one message, one record and one field at a time, as the RFCs tell it.

It is slow and plain, and shares nothing with nettop's decoder but the names of columns.
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
TIME_MIN_MS, TIME_MAX_MS = 946_684_800_000, 10_413_791_999_999
"""The begin of 2000, and the end of 2299."""


def address(value: bytes) -> bytes:
    """As 16 bytes."""
    return bytes(10) + b"\xff\xff" + value if len(value) == 4 else value


def ntp_ms(value: bytes) -> int:
    """Milliseconds since 1970 of a time of NTP."""
    seconds, fraction = struct.unpack("!II", value)
    return (seconds - 2_208_988_800) * 1000 + (fraction * 1000 >> 32)


@dataclass
class Oracle:
    """What is known of all observation domains, and the rows so far, of messages that were received at this time."""

    received_ms: int
    templates: dict[tuple[bytes, int, int, int, int], tuple[list[Field], int]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def message(self, sender: bytes, port: int, data: bytes) -> None:
        """Decode a message that is well formed."""
        (version,) = struct.unpack_from("!H", data)
        if version == 9:
            _, _, uptime, seconds, _, domain = struct.unpack_from("!HHIIII", data)
            boot_ms, at = self.export_ms(seconds) - uptime, 20
        else:
            _, _, seconds, _, domain = struct.unpack_from("!HHIII", data)
            boot_ms, at = None, 16
        key = (sender, port, version, domain)
        while at < len(data):
            set_id, length = struct.unpack_from("!HH", data, at)
            content = data[at + 4 : at + length]
            at += length
            if set_id < 256:
                self._templates(key, set_id in (1, 3), content)
            else:
                fields, scopes = self.templates[*key, set_id]
                for record in records(fields, content):
                    if not scopes:
                        rows = rows_of(record, domain, self.export_ms(seconds), boot_ms, version)
                        self.rows += (settled(row, self.received_ms) for row in rows)

    def export_ms(self, seconds: int) -> int:
        """When a message was sent; an exporter whose clock was never set does not know."""
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
            self.templates[*key, template_id] = fields, scopes


def records(fields: list[Field], content: bytes) -> Iterator[dict[tuple[int, int], bytes]]:
    """Each record's first value of each element."""
    shortest = sum(1 if length == VARIABLE else length for _, _, length in fields)
    at = 0
    while len(content) - at >= shortest:
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
    """The row of a record, and that of the other direction."""
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
    elif not {(0, 1), (0, 2)} & record.keys() and {(0, 232), (0, 299)} & record.keys():
        row["biflow_direction"] = 1
        back |= {"bytes": count(record, 232), "packets": count(record, 299)}
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


def count(record: dict[tuple[int, int], bytes], number: int) -> int:
    """A counter of a record, 0 where it is missing."""
    return int.from_bytes(record.get((0, number), b""))


def since_boot_ms(uptime_ms: int, export_ms: int, boot_ms: int | None) -> int | None:
    """The time of an uptime of 32 bits, which may have begun anew: of all it may mean the nearest to the export."""
    if boot_ms is None:
        return None
    time_ms = boot_ms + uptime_ms
    periods = (export_ms - time_ms) // 2**32
    return min(
        (time_ms + (periods + more) * 2**32 for more in (0, 1)),
        key=lambda each: (abs(each - export_ms), each),
    )


def settled(row: Row, received_ms: int) -> Row:
    """The row with a duration that can be."""
    start, end = (int(row.get(name, 0)) for name in ("start", "end"))
    if not 0 < end < start:
        return row
    if start - end <= 1000:
        return row | {"end": start}
    return row | ({"start": 0} if abs(start - received_ms) > abs(end - received_ms) else {"end": 0})


_BOTH_ENDS = (("src", "dst"), ("src_port", "dst_port"), ("src_mac", "dst_mac"))
EXCHANGED = dict(_BOTH_ENDS) | {destination: source for source, destination in _BOTH_ENDS}
"""Where a column's value belongs in the other direction."""


def with_icmp(row: Row) -> Row:
    """The row with type and code of ICMP from the destination port, if it has them nowhere else."""
    if row.get("protocol") not in (1, 58) or "dst_port" not in row or "icmp_type" in row:
        return row
    upper, lower = divmod(int(row["dst_port"]) & 0xFFFF, 256)
    return row | ({"icmp_type": upper, "icmp_code": lower} if upper else {"icmp_type": lower, "icmp_code": 0})


Convert = Callable[[bytes, int, int | None], int | bytes | None]


def whole(value: bytes, _export_ms: int, _boot_ms: int | None) -> int:
    """A number."""
    return int.from_bytes(value)


GIVEN_BY: list[tuple[str, int, Convert]] = [
    ("bytes", 1, whole),
    ("bytes", 85, whole),
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
    ("dst_port", 11, whole),
    ("protocol", 4, whole),
    ("src_mac", 56, whole),
    ("mpls_label_1", 70, lambda value, *_: int.from_bytes(value) >> 4),
    ("icmp_type", 32, lambda value, *_: value[0]),
    ("icmp_code", 32, lambda value, *_: value[1]),
    ("start", 152, whole),
    ("start", 154, lambda value, *_: ntp_ms(value)),
    ("start", 150, lambda value, *_: int.from_bytes(value) * 1000),
    ("start", 158, lambda value, export_ms, _: export_ms - int.from_bytes(value) // 1000),
    ("start", 22, lambda value, export_ms, boot_ms: since_boot_ms(int.from_bytes(value), export_ms, boot_ms)),
    ("end", 153, whole),
    ("end", 151, lambda value, *_: int.from_bytes(value) * 1000),
    ("end", 21, lambda value, export_ms, boot_ms: since_boot_ms(int.from_bytes(value), export_ms, boot_ms)),
    ("direction", 61, whole),
]
"""Elements by column; the first that a record has counts, of most columns the first that is not 0."""


def columns(
    record: dict[tuple[int, int], bytes], enterprise: int, export_ms: int, boot_ms: int | None
) -> Row:
    """What a record's elements of one enterprise say."""
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
