# SPDX-License-Identifier: Apache-2.0
"""What collecting flows costs, beside nfcapd, sfcapd and nfacctd: `sudo .venv/bin/python bench/flows.py [--quick]`.

Each collector gets the same datagrams at the same rate, one after the other, on all CPUs, and so does the program that
sends them. `paced`: the rate that nettop should store, for a minute. `overload`: as fast as the sender can. Of nettop
everything is measured from the datagram to the rows in its tables; the others write files of their own.
"""

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import NETTOP, Figure, built, report

from nettop.flows.reader import STATE_PATH, Collector
from nettop.snapshots.snapshot import Array

RATE = 200_000
"""Flows a second."""
OVERLOAD_S = 3.0
"""For how long to send as fast as possible: what comes then, nettop has to store afterwards."""
RSS_MOST_MB, ROW_BYTES_MOST, LATER_S = 1200, 30, 10.0
DATAGRAMS = 20_000
"""Different ones, which are sent over and over: more flows than one block of a compressed column has."""
PORT = 22055
HOSTS, SERVERS, DURATION_MS = 20_000, 500, 60_000
UPTIME_MS = 1_000_000
ASES = (64_500, 64_501)


@dataclass(frozen=True)
class Traffic:
    """Datagrams of a protocol, how many flows each has, where their sequence number is, and by how much it rises."""

    name: str
    datagrams: list[bytes]
    flows: int
    place: int
    step: int


# --- datagrams --------------------------------------------------------------------------------------------------


def traffic() -> list[Traffic]:
    """Flows of clients and servers, as four protocols report them."""
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
    """DATAGRAMS parts of so many records."""
    return (records[begin : begin + count] for begin in range(0, DATAGRAMS * count, count))


_ELEMENTS = {
    "src": (8, ">u4"),
    "dst": (12, ">u4"),
    "src_port": (7, ">u2"),
    "dst_port": (11, ">u2"),
    "protocol": (4, "u1"),
    "tcp_flags": (6, "u1"),
    "tos": (5, "u1"),
    "packets": (2, ">u4"),
    "bytes": (1, ">u4"),
    "in_if": (10, ">u4"),
    "out_if": (14, ">u4"),
    "first": (22, ">u4"),
    "last": (21, ">u4"),
    "src_as": (16, ">u4"),
    "dst_as": (17, ">u4"),
}
"""A template: elements with their types, by names of fields."""


def _flows(random: np.random.Generator, count: int) -> Array:
    """Records of that template; half of them are of a server's side."""
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
    """A template and a data set."""
    fields = b"".join(
        struct.pack("!HH", element, np.dtype(kind).itemsize) for element, kind in _ELEMENTS.values()
    )
    template = struct.pack("!HHHH", template_set, 8 + len(fields), 300, len(_ELEMENTS)) + fields
    return template + struct.pack("!HH", 300, 4 + flows.nbytes) + flows.tobytes()


def _netflow5(flows: Array) -> Array:
    """Records of NetFlow 5."""
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
    """A flow sample of sFlow for each, with the first 64 bytes of a packet."""
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
    constants = {
        "type": 1,
        "rate": 1000,
        "pool": 1000,
        "records": 1,
        "record": 1,
        "first_header": 1,
        "stripped": 4,
    }
    for name, value in constants.items():
        samples[name] = value
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


# --- collectors -------------------------------------------------------------------------------------------------


@dataclass
class Taken:
    """What a collector made of it: flows that came and that it has, in these seconds of CPU, with so much memory.

    They came in `sending_s` seconds, and were all there so many seconds later.
    """

    sent: int
    have: int
    cpu_s: float
    rss_mb: float
    sending_s: float
    later_s: float
    row_bytes: float | None = None


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A collector."""
    nothing = subprocess.DEVNULL
    with subprocess.Popen(
        words, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def queues(port: int) -> list[int]:
    """Bytes that wait in the sockets of a UDP port."""
    lines = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return [int(line[4].partition(":")[2], 16) for line in lines if line[1].endswith(f":{port:04X}")]


def wait(condition: Callable[[], object]) -> None:
    """Until this is so; raises TimeoutError after a minute."""
    end = time.monotonic() + 60
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not so after a minute: {condition}")
        time.sleep(0.05)


def of_session(pid: int) -> tuple[float, float]:
    """CPU seconds and megabytes (PSS) of the processes of a session."""
    cpu = memory = 0.0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == pid:
                cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                pss = next(
                    line
                    for line in (path / "smaps_rollup").read_text().splitlines()
                    if line.startswith("Pss:")
                )
                memory += int(pss.split()[1]) / 1024
    return cpu, memory


def send(program: str, kind: Traffic, rate: float, seconds: float) -> int:
    """Sends for so long, from the last CPU; returns how many flows."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("!I", kind.step))
        file.writelines(struct.pack("!H", len(each)) + each for each in kind.datagrams)
        file.flush()
        words = [program, str(PORT), str(rate / kind.flows), str(seconds), str(kind.place), file.name]
        pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0))), *words]
        done = subprocess.run(pinned, capture_output=True, text=True, check=True)
    return int(done.stdout) * kind.flows


def known(folder: str) -> list[str]:
    """Options that give all that can be known of addresses and interfaces: 100,000 networks among it."""
    networks, interfaces = Path(folder, "networks.csv"), Path(folder, "interfaces.csv")
    others = (
        f"{20 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24,{n + 1},AS{n + 1},DE," for n in range(100_000)
    )
    hosts = (f"10.0.{n}.0/24,,,,office {n}" for n in range(HOSTS // 256 + 1))
    servers = (f"198.18.{n}.0/24,{64_600 + n},servers,NL," for n in range(SERVERS // 256 + 1))
    networks.write_text("\n".join(("network,asn,as_name,country,name", *hosts, *servers, *others, "")))
    names = (f"127.0.0.1,{n},xe-0/0/{n},,10000000000" for n in range(1, 50))
    interfaces.write_text("\n".join(("exporter,if_index,name,description,speed", *names, "")))
    return ["--networks", str(networks), "--interfaces", str(interfaces), "--own-network", "10.0.0.0/8"]


def nettop(program: str, kind: Traffic, rate: float, seconds: float) -> Taken:
    """nettop collect: flows have come when they are in the table."""
    with tempfile.TemporaryDirectory(prefix="nettop-flows") as folder:
        os.chmod(folder, 0o755)
        words = ("collect", "--data-dir", f"{folder}/data", "--query-listen", "none", *known(folder))
        with running(NETTOP, *words, "--listen", f"127.0.0.1:{PORT}") as process:
            collector = Collector(f"unix:{folder}/data/flows.sock")
            wait(lambda: queues(PORT) and collector.is_running())
            before, _ = of_session(process.pid)
            sent, sending_s = sent_in(lambda: send(program, kind, rate, seconds))
            end = time.monotonic()
            _, memory = of_session(process.pid)
            while not is_through(state := collector.document(STATE_PATH), sent // kind.flows):
                time.sleep(0.1)
            later_s = time.monotonic() - end
            cpu, after = of_session(process.pid)
            sql = "SELECT sum(data_compressed_bytes) / sum(rows) FROM system.parts WHERE table = 'flows_raw' AND active"
            (row_bytes,) = json.loads(collector.query(sql, "JSONCompactEachRow"))
            stored = state["flows"]["stored"]
            return Taken(sent, stored, cpu - before, max(memory, after), sending_s, later_s, row_bytes)


def sent_in(send_all: Callable[[], int]) -> tuple[int, float]:
    """How many flows were sent, and in how many seconds."""
    begin = time.monotonic()
    return send_all(), time.monotonic() - begin


def is_through(state: dict[str, Any], datagrams: int) -> bool:
    """Whether so many datagrams have come, and all flows in them are stored or dropped."""
    flows = state["flows"]
    return state["datagrams"]["arrived"] == datagrams and not (
        state["datagrams"]["queued"] + flows["pending"] + flows["waiting"]
    )


def nfcapd(program: str, kind: Traffic, rate: float, seconds: float) -> Taken:
    """nfcapd, or sfcapd: flows have come when nfdump counts them."""
    with tempfile.TemporaryDirectory() as folder:
        name = "sfcapd" if kind.name.startswith("sFlow") else "nfcapd"
        words = (name, "-w", folder, "-p", str(PORT), "-b", "127.0.0.1", "-t", "3600", "-B", str(64 << 20))
        taken = peer(words, signal.SIGTERM, lambda: send(program, kind, rate, seconds))
        done = subprocess.run(["nfdump", "-R", folder, "-I"], capture_output=True, text=True, check=True)
        taken.have = next(
            int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("Flows:")
        )
    return taken


def nfacctd(program: str, kind: Traffic, rate: float, seconds: float) -> Taken:
    """nfacctd, or sfacctd, which adds up flows that are the same: they have come when they are in its sums."""
    name = "sfacctd" if kind.name.startswith("sFlow") else "nfacctd"
    with tempfile.TemporaryDirectory() as folder:
        configuration = {
            f"{name}_ip": "127.0.0.1",
            f"{name}_port": PORT,
            f"{name}_pipe_size": 64 << 20,
            "plugins": "print",
            "aggregate": "src_host,dst_host,src_port,dst_port,proto,tos,in_iface,out_iface,src_as,dst_as,flows",
            "plugin_pipe_size": 256 << 20,
            "plugin_buffer_size": 1 << 20,
            "print_cache_entries": 262_139,
            "print_refresh_time": 3600,
            "print_output": "csv",
            "print_output_file": f"{folder}/sums",
            "print_output_file_append": "true",
        }
        file = Path(folder, "configuration")
        file.write_text("".join(f"{key}: {value}\n" for key, value in configuration.items()))
        taken = peer((name, "-f", str(file)), signal.SIGINT, lambda: send(program, kind, rate, seconds))
        # It writes no file without sums, and its header again with every part of a file.
        if (file := Path(folder, "sums")).exists():
            with file.open() as sums:
                taken.have = sum(int(row["FLOWS"]) for row in csv.DictReader(sums) if row["FLOWS"].isdigit())
    return taken


def peer(words: Sequence[str], number: signal.Signals, send_all: Callable[[], int]) -> Taken:
    """Another collector, which is ended by a signal when it has read everything."""
    with running(*words) as process:
        wait(lambda: queues(PORT))
        before, _ = of_session(process.pid)
        sent, sending_s = sent_in(send_all)
        end = time.monotonic()
        wait(lambda: not any(queues(PORT)))
        cpu, memory = before, 0.0
        while (now := of_session(process.pid))[0] != cpu:  # its other processes may have work
            cpu, memory = now
            time.sleep(1)
        process.send_signal(number)
        process.wait()
        return Taken(sent, 0, cpu - before, memory, sending_s, time.monotonic() - end)


def figures(name: str, taken: Taken, *, bounded: bool) -> list[Figure]:
    """What is worth to be printed of it."""
    lost = 100 * (1 - taken.have / taken.sent)
    result = [
        Figure(f"{name}: flows sent a second", taken.sent / taken.sending_s, ""),
        Figure(
            f"{name}: all there after the last was sent", taken.later_s, "s", LATER_S if bounded else None
        ),
        Figure(f"{name}: flows a second until then", taken.have / (taken.sending_s + taken.later_s), ""),
        Figure(f"{name}: lost", lost, "%", 0.0 if bounded else None),
        Figure(f"{name}: CPU a flow", taken.cpu_s / taken.have * 1e6 if taken.have else 0.0, "µs"),
        Figure(f"{name}: memory", taken.rss_mb, "MB", RSS_MOST_MB if bounded else None),
    ]
    if taken.row_bytes is not None:
        result.append(
            Figure(f"{name}: bytes a row", taken.row_bytes, "", ROW_BYTES_MOST if bounded else None)
        )
    return result


def main() -> None:
    """All parts, for each protocol."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="5 seconds in place of 60")
    parser.add_argument("--only", help="a protocol")
    options = parser.parse_args()
    seconds = 5.0 if options.quick else 60.0
    collectors = {"nettop": nettop, "nfcapd": nfcapd, "nfacctd": nfacctd}
    for name in ("nfcapd", "nfacctd"):
        if shutil.which(name) is None:
            print(f"{name} is not installed: nettop is not compared with it (apt install nfdump pmacct)")
            del collectors[name]
    with built("exports.c") as program:
        for kind in traffic():
            if options.only not in (None, kind.name):
                continue
            for title, rate, lasting in (
                (f"{RATE:,} flows a second", RATE, seconds),
                ("as fast as they can be sent", 0, OVERLOAD_S),
            ):
                lines = [
                    line
                    for name, collect in collectors.items()
                    for line in figures(
                        name, collect(program, kind, rate, lasting), bounded=name == "nettop" and rate > 0
                    )
                ]
                report(f"{kind.name}, {title}, {lasting:.0f} s", lines)


if __name__ == "__main__":
    sys.exit(main())
