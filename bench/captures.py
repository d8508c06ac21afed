# SPDX-License-Identifier: Apache-2.0
"""Captured exports, sent to nettop collect, beside what other decoders have read in them.

`.venv/bin/python bench/captures.py DIR [--only NAME]`: DIR has `INDEX.tsv`, a row for each capture with its `name`, its
`protocol`, the flows in sets whose template comes later (`unresolved_records`) and how sure the expectation is
(`trust`); `captures/PROTOCOL/NAME.pcap`; and `records/NAME.tsv`, a row with 5-tuple, bytes and packets for each flow.
Each capture is sent to a collector of its own; then all are sent to another one, mixed, which has to store the same.
"""

import argparse
import csv
import itertools
import socket
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.collecting import Running, until  # noqa: E402 - the checkout comes first

Record = tuple[str, str, int, int, int, int, int]
"""Addresses, ports, protocol, bytes and packets of a flow."""
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
    records: Counter[Record]
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


def stored(numbered: Sequence[tuple[int, Datagram]]) -> Counter[Record]:
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
        numbers = "toString(bytes), toString(packets)"
        rows = running.rows(
            f"SELECT {_text('src')}, {_text('dst')}, src_port, dst_port, protocol, {numbers} "
            "FROM flows_raw WHERE biflow_direction != 2"
        )
    return Counter((src, dst, *map(int, others)) for src, dst, *others in rows)  # type: ignore[misc]


def _text(address: str) -> str:
    return f"replaceRegexpOne(IPv6NumToString({address}), '^::ffff:([0-9.]+)$', '\\\\1')"


def difference(capture: Capture, have: Counter[Record]) -> str:
    """What is not as expected; empty if all is."""
    missing, more = capture.records - have, have - capture.records
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
    alone = Counter[Record]()
    for capture in chosen:
        have = stored([(0, datagram) for datagram in capture.datagrams])
        alone += have
        problem = difference(capture, have)
        if problem:
            print(f"{capture.name}{'' if capture.is_exact else ' (not sure)'}: {problem}", flush=True)
            wrong += capture.is_exact
    sure = sum(capture.is_exact for capture in chosen)
    print(f"{len(chosen)} captures with {alone.total()} flows, {sure} of them sure: {wrong} differ")
    together = stored(list(mixed(chosen)))
    lost, more = alone - together, together - alone
    print(f"all mixed: {together.total()} flows, {lost.total()} missing, {more.total()} more")
    return int(bool(wrong or lost or more))


if __name__ == "__main__":
    sys.exit(main())
