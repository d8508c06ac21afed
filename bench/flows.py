# SPDX-License-Identifier: Apache-2.0
"""Measure the speed and memory of nettop collect: `sudo .venv/bin/python bench/flows.py [--quick]`.

It may use all CPUs; the sender runs on the last one, first at the rate that nettop should store, for a minute, then as
fast as it can. Everything is measured from the datagram to the rows in the tables.
"""

import json
import os
import struct
import sys
import tempfile
import time
from argparse import Namespace as Options
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import QUICK, Figure, Report, arguments, judge
from programs import (
    NETTOP,
    TICKS,
    built,
    readable_folder,
    run,
    running,
    session,
    stat_fields,
    until,
)

from nettop.flows.reader import STATE_PATH, Collector
from nettop.snapshots.arrays import Array

RATE = 200_000
"""Flows per second."""
OVERLOAD_S = 3.0
"""How long to send as fast as possible; nettop must store afterwards what arrived meanwhile."""
RSS_MOST_MB, ROW_BYTES_MOST, LATER_S = 1200, 30, 10.0
DATAGRAMS = 20_000
"""Distinct datagrams, sent over and over: more flows than fit in one block of a compressed column."""
PORT = 22055
HOSTS, SERVERS, DURATION_MS = 20_000, 500, 60_000
UPTIME_MS = 1_000_000
ASES = (64_500, 64_501)


@dataclass(frozen=True)
class Traffic:
    """Datagrams of a protocol, flows per datagram, offset of the sequence number, and its step."""

    name: str
    datagrams: list[bytes]
    flows: int
    place: int
    step: int


# --- datagrams --------------------------------------------------------------------------------------------------


def traffic() -> list[Traffic]:
    """Return flows between clients and servers, as four protocols report them."""
    flows = _flows(np.random.default_rng(7), DATAGRAMS * 30)
    now = int(time.time())
    netflow9 = struct.pack("!HHIIII", 9, 31, UPTIME_MS, now, 0, 7)
    ipfix = struct.pack("!HHIII", 10, 16 + len(_sets(flows[:30], 2)), now, 0, 7)
    netflow5 = struct.pack("!HHIIIIBBH", 5, 30, UPTIME_MS, now, 0, 0, 0, 7, 0)
    sflow = struct.pack("!II4sIIII", 5, 1, bytes((10, 0, 0, 1)), 0, 0, 1, 7)
    return [
        Traffic("NetFlow 9", [netflow9 + _sets(some, 0) for some in _split(flows, 30)], 30, 12, 1),
        Traffic(
            "NetFlow 5", [netflow5 + some.tobytes() for some in _split(_netflow5(flows), 30)], 30, 16, 30
        ),
        Traffic("IPFIX", [ipfix + _sets(some, 2) for some in _split(flows, 30)], 30, 8, 30),
        Traffic("sFlow 5", [sflow + some.tobytes() for some in _split(_samples(flows), 7)], 7, 16, 1),
    ]


def _split(records: Array, count: int) -> Iterator[Array]:
    """Split records into DATAGRAMS parts of `count` records."""
    return (records[begin : begin + count] for begin in range(0, DATAGRAMS * count, count))


_ELEMENTS = {
    "src": (8, ">u4"), "dst": (12, ">u4"), "src_port": (7, ">u2"), "dst_port": (11, ">u2"), "protocol": (4, "u1"),
    "tcp_flags": (6, "u1"), "tos": (5, "u1"), "packets": (2, ">u4"), "bytes": (1, ">u4"), "in_if": (10, ">u4"),
    "out_if": (14, ">u4"), "first": (22, ">u4"), "last": (21, ">u4"), "src_as": (16, ">u4"), "dst_as": (17, ">u4"),
}  # fmt: skip
"""A template: element numbers and types by field name."""


def _flows(random: np.random.Generator, count: int) -> Array:
    """Return random records of the template, half of them from servers to clients."""
    flows = np.zeros(count, [(name, kind) for name, (_, kind) in _ELEMENTS.items()])
    ends = {
        "src": (
            0x0A00_0000 + random.integers(HOSTS, size=count),
            0xC612_0000 + random.zipf(1.3, count) % SERVERS,
        ),
        "src_port": (
            random.integers(32_768, 61_000, count),
            random.choice((443, 443, 443, 80, 53, 22, 5201), count),
        ),
    }
    is_answer = random.random(count) < 0.5
    for name, (client, server) in ends.items():
        flows[name] = np.where(is_answer, server, client)
        flows[name.replace("src", "dst")] = np.where(is_answer, client, server)
    flows["protocol"], flows["tcp_flags"] = random.choice((6, 6, 17), count), 0x1B
    flows["packets"] = random.zipf(1.5, count) % 10_000 + 1
    flows["bytes"] = flows["packets"] * random.integers(60, 1400, count)
    flows["in_if"] = random.integers(1, 48, count)
    flows["out_if"] = flows["in_if"] + 1
    flows["last"] = UPTIME_MS - random.integers(1000, size=count)
    flows["first"] = flows["last"] - random.integers(DURATION_MS, size=count)
    flows["src_as"], flows["dst_as"] = ASES
    return flows


def _sets(flows: Array, template_set: int) -> bytes:
    """Return a template set and a data set."""
    fields = b"".join(
        struct.pack("!HH", element, np.dtype(kind).itemsize) for element, kind in _ELEMENTS.values()
    )
    template = struct.pack("!HHHH", template_set, 8 + len(fields), 300, len(_ELEMENTS)) + fields
    return template + struct.pack("!HH", 300, 4 + flows.nbytes) + flows.tobytes()


def _netflow5(flows: Array) -> Array:
    """Return flows as records of NetFlow 5."""
    fields = [
        *(("src", ">u4"), ("dst", ">u4"), ("next_hop", ">u4"), ("in_if", ">u2"), ("out_if", ">u2")),
        *(("packets", ">u4"), ("bytes", ">u4"), ("first", ">u4"), ("last", ">u4")),
        *(("src_port", ">u2"), ("dst_port", ">u2"), ("pad", "u1"), ("tcp_flags", "u1"), ("protocol", "u1")),
        *(("tos", "u1"), ("src_as", ">u2"), ("dst_as", ">u2"), ("masks", ">u2"), ("pad2", ">u2")),
    ]
    records = np.zeros(len(flows), fields)
    for name in _ELEMENTS:
        records[name] = flows[name]
    return records


def _samples(flows: Array) -> Array:
    """Return an sFlow sample for each flow, with the first 64 bytes of a packet."""
    header = np.dtype(
        [
            *(("macs", "V12"), ("ether_type", ">u2"), ("version", "u1"), ("tos", "u1"), ("ip_length", ">u2")),
            *(("id", ">u4"), ("ttl", "u1"), ("protocol", "u1"), ("checksum", ">u2")),
            *(("src", ">u4"), ("dst", ">u4"), ("src_port", ">u2"), ("dst_port", ">u2"), ("rest", "V26")),
        ]
    )
    words = (
        *("type", "length", "sequence", "source", "rate", "pool", "drops", "in_if", "out_if", "records"),
        *("record", "record_length", "first_header", "frame_length", "stripped", "header_length"),
    )
    samples = np.zeros(len(flows), [*((word, ">u4") for word in words), ("header", header)])
    for name in ("type", "records", "record", "first_header"):
        samples[name] = 1
    samples["rate"] = samples["pool"] = 1000
    samples["stripped"] = 4
    samples["header_length"] = header.itemsize
    samples["record_length"] = 16 + header.itemsize
    samples["length"] = samples.itemsize - 8
    samples["frame_length"] = 78 + flows["bytes"] % 1400
    for name in ("in_if", "out_if"):
        samples[name] = flows[name]
    headers = samples["header"]
    headers["ether_type"], headers["version"], headers["ttl"] = 0x0800, 0x45, 64
    headers["ip_length"] = samples["frame_length"] - 18
    for name in ("protocol", "src", "dst", "src_port", "dst_port"):
        headers[name] = flows[name]
    return samples


# --- the collector -------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """Flows sent and stored, CPU seconds, memory, and bytes per row on disk.

    Sending took `sending_s` seconds; storing everything took `later_s` seconds more.
    """

    sent: int
    have: int
    cpu_s: float
    rss_mb: float
    sending_s: float
    later_s: float
    row_bytes: float


def of_session(pid: int) -> tuple[float, float]:
    """Return CPU seconds and megabytes (PSS) of the processes in a session."""
    cpu = memory = 0
    for member in session(pid):
        with suppress(OSError):
            rollup = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            cpu += sum(int(field) for field in stat_fields(member)[11:13])
            memory += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    return cpu / TICKS, memory / 1024


def send(program: str, kind: Traffic, rate: float, seconds: float) -> int:
    """Send for `seconds`, from the last CPU; return the number of flows sent."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("!I", kind.step))
        file.writelines(struct.pack("!H", len(each)) + each for each in kind.datagrams)
        file.flush()
        words = [program, str(PORT), str(rate / kind.flows), str(seconds), str(kind.place), file.name]
        return int(run("taskset", "-c", str(max(os.sched_getaffinity(0))), *words)) * kind.flows


def known(folder: Path) -> list[str]:
    """Return options that enable every lookup of addresses and interfaces, including 100,000 networks."""
    networks, interfaces = folder / "networks.csv", folder / "interfaces.csv"
    others = (
        f"{20 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24,{n + 1},AS{n + 1},DE," for n in range(100_000)
    )
    hosts = (f"10.0.{n}.0/24,,,,office {n}" for n in range(HOSTS // 256 + 1))
    servers = (f"198.18.{n}.0/24,{64_600 + n},servers,NL," for n in range(SERVERS // 256 + 1))
    networks.write_text("\n".join(("network,asn,as_name,country,name", *hosts, *servers, *others, "")))
    names = (f"127.0.0.1,{n},xe-0/0/{n},,10000000000" for n in range(1, 50))
    interfaces.write_text("\n".join(("exporter,if_index,name,description,speed", *names, "")))
    return ["--networks", str(networks), "--interfaces", str(interfaces), "--own-network", "10.0.0.0/8"]


def collected(program: str, kind: Traffic, rate: float, seconds: float) -> Taken:
    """Measure nettop collect; a flow counts once it is in the table."""
    with readable_folder("flows") as folder:
        words = ("collect", "--data-dir", f"{folder}/data", "--query-listen", "none", *known(folder))
        with running(NETTOP, *words, "--listen", f"127.0.0.1:{PORT}") as process:
            collector = Collector(f"unix:{folder}/data/flows.sock")
            until(collector.is_running, "nettop collect")
            before, _ = of_session(process.pid)
            begin = time.monotonic()
            sent = send(program, kind, rate, seconds)
            end = time.monotonic()
            _, memory = of_session(process.pid)
            while not is_through(state := collector.document(STATE_PATH), sent // kind.flows):
                time.sleep(0.1)
            later_s = time.monotonic() - end
            cpu, after = of_session(process.pid)
            sql = "SELECT sum(data_compressed_bytes) / sum(rows) FROM system.parts WHERE table = 'flows_raw' AND active"
            (row_bytes,) = json.loads(collector.query(sql, "JSONCompactEachRow"))
            stored = state["flows"]["stored"]
            return Taken(sent, stored, cpu - before, max(memory, after), end - begin, later_s, row_bytes)


def is_through(state: dict[str, Any], datagrams: int) -> bool:
    """Return whether this many datagrams have arrived, and all their flows are stored or dropped."""
    flows = state["flows"]
    return state["datagrams"]["arrived"] == datagrams and not (
        state["datagrams"]["queued"] + flows["pending"] + flows["waiting"]
    )


def figures(taken: Taken, *, bounded: bool) -> Iterator[Figure]:
    """Yield the figures; only those at a paced rate have bounds."""
    for what, value, unit, bound in (
        ("flows sent per second", taken.sent / taken.sending_s, "", None),
        ("time from the last flow sent to all stored", taken.later_s, "s", LATER_S),
        ("flows stored per second", taken.have / (taken.sending_s + taken.later_s), "", None),
        ("lost", 100 * (1 - taken.have / taken.sent), "%", 0.0),
        ("CPU per flow", taken.cpu_s / taken.have * 1e6 if taken.have else 0.0, "µs", None),
        ("memory", taken.rss_mb, "MB", RSS_MOST_MB),
        ("bytes per row", taken.row_bytes, "", ROW_BYTES_MOST),
    ):
        yield Figure(what, value, unit, bound if bounded else None)


def reports(program: str, options: Options) -> Iterator[Report]:
    """Run both parts for each protocol."""
    parts = (
        (f"{RATE:,} flows/s", RATE, 5.0 if options.quick else 60.0),
        ("as fast as possible", 0, OVERLOAD_S),
    )
    for kind in traffic():
        for title, rate, seconds in parts if options.only in ("", kind.name) else ():
            taken = collected(program, kind, rate, seconds)
            yield f"{kind.name}, {title}, {seconds:.0f} s", figures(taken, bounded=rate > 0)


def main() -> int:
    """Run both parts for each protocol, or the chosen one."""
    options = arguments(__doc__, quick=QUICK, only=("", "run this protocol only"))
    with built("exports.c") as program:
        return judge(reports(program, options))


if __name__ == "__main__":
    sys.exit(main())
