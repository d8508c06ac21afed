# SPDX-License-Identifier: Apache-2.0
"""nettop collect beside nfcapd, sfcapd and nfacctd, and queries beside nfdump.

Collectors may use all CPUs; the sender runs on the last one. nettop counts a flow when it is in the tables.
"""

import os
import signal
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import NETTOP, built, cpu_ns, readable_folder, run, running, session, until

from nettop.collector.reader import STATE_PATH, RemoteCollector
from nettop.snapshots.arrays import Array

RATE = 200_000
"""Flows per second."""
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


@cache
def of_kind(name: str) -> Traffic:
    """Return the traffic of a protocol."""
    return next(kind for kind in traffic() if kind.name == name)


# --- collectors ----------------------------------------------------------------------------------------------------


@dataclass
class Collecting:
    """A running collector: its session, where it writes, and what waits until it has stored so many datagrams."""

    pid: int
    folder: Path
    store: Callable[[int], object]

    def cpu_ns(self) -> int:
        """Return the exact CPU time of its processes."""
        return sum(map(cpu_ns, session(self.pid)))

    def memory_mb(self) -> float:
        """Return the proportional set size of its processes."""
        kilobytes = 0
        for member in session(self.pid):
            with suppress(OSError):
                rollup = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
                kilobytes += sum(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
        return kilobytes * 1024 / 1e6

    def written(self) -> int:
        """Return the bytes in its files."""
        return int(run("du", "-sb", str(self.folder)).split()[0])


@contextmanager
def sender(kind: Traffic) -> Iterator[Callable[..., int]]:
    """Yield a function that sends flows at a rate for some seconds, from the last CPU, and returns the datagrams."""
    with built("exports.c") as program, tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack("!I", kind.step))
        file.writelines(struct.pack("!H", len(sent)) + sent for sent in kind.datagrams)
        file.flush()

        def send(rate: float, seconds: float, port: int = PORT) -> int:
            words = [program, str(port), str(rate / kind.flows), str(seconds), str(kind.place), file.name]
            return int(run("taskset", "-c", str(max(os.sched_getaffinity(0))), *words))

        yield send


@contextmanager
def nettop_collect() -> Iterator[Collecting]:
    """Run nettop collect with every lookup of addresses and interfaces."""
    with readable_folder("flows") as folder:
        words = ("collect", "--data-dir", f"{folder}/data", "--query-listen", "none", *known(folder))
        with running(NETTOP, *words, "--listen", f"127.0.0.1:{PORT}") as process:
            collector = RemoteCollector(f"unix:{folder}/data/flows.sock")
            until(collector.is_running, "nettop collect")

            def store(datagrams: int) -> None:
                until(lambda: is_through(queried(collector), datagrams), "all flows are stored", 0.1)

            yield Collecting(process.pid, folder / "data", store)


def queried(collector: RemoteCollector) -> dict[str, Any]:
    """Return a collector's state after a query, which has waiting flows stored."""
    collector.query("SELECT 1", "JSONCompactEachRow")
    return collector.document(STATE_PATH)


def is_through(state: dict[str, Any], datagrams: int) -> bool:
    """Return whether this many datagrams have arrived, and all their flows are stored or dropped."""
    flows = state["flows"]
    return state["datagrams"]["arrived"] == datagrams and not (
        state["datagrams"]["queued"] + flows["pending"] + flows["waiting"]
    )


@contextmanager
def listening(folder: Path, *words: str, port: int = PORT) -> Iterator[Collecting]:
    """Run another collector, and yield once it listens; it stores what it has when it ends."""
    with running(*words, end_by=signal.SIGINT) as process:

        def store(_: int) -> None:
            process.send_signal(signal.SIGINT)
            process.wait(20)

        until(lambda: process.poll() is not None or run("ss", "-Hlun", f"sport = :{port}"), words[0])
        if process.poll() is not None:
            raise SystemExit(f"{words[0]}: status {process.returncode}")
        yield Collecting(process.pid, folder, store)


@contextmanager
def nfdump_collector(program: str) -> Iterator[Collecting]:
    """Run nfcapd or sfcapd."""
    with readable_folder(program) as folder:
        words = f"-4 -b 127.0.0.1 -p {PORT} -t 86400 -B 67108864 -w {folder}".split()
        with listening(folder, program, *words) as collecting:
            yield collecting


@contextmanager
def nfacctd() -> Iterator[Collecting]:
    """Run nfacctd, which writes each flow to a file every ten seconds."""
    with readable_folder("nfacctd") as folder:
        settings = {
            "daemonize": "false", "nfacctd_ip": "127.0.0.1", "nfacctd_port": PORT, "plugins": "print",
            "aggregate": "src_host,dst_host,src_port,dst_port,proto,tos,tcpflags,timestamp_start,timestamp_end",
            "print_output": "csv", "print_output_file": f"{folder}/flows-%s.csv", "print_refresh_time": 10,
            "plugin_buffer_size": 10240, "plugin_pipe_size": 10240000,
        }  # fmt: skip
        (folder / "conf").write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        with listening(folder, "nfacctd", "-f", f"{folder}/conf") as collecting:
            yield collecting


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


# --- benchmarks ----------------------------------------------------------------------------------------------------

UNITS = {"CPU": "µs/flow", "memory": "MB", "written": "B/flow", "storing": "s"}
SETTLED_AFTER_S, SENDING_S = 2.0, 4.0
PROTOCOLS = ("NetFlow 5", "NetFlow 9", "IPFIX", "sFlow 5")


def collected(
    started: Callable[[], AbstractContextManager[Collecting]], kind: Traffic, rate: float, seconds: float
) -> Sample:
    """Run a collector while flows arrive; return what it takes for each, and the seconds to store the last ones."""
    with sender(kind) as send, started() as collecting:
        time.sleep(SETTLED_AFTER_S)
        before, size = collecting.cpu_ns(), collecting.written()
        sent = send(rate, seconds)
        memory, spent_ns, end = collecting.memory_mb(), collecting.cpu_ns(), time.monotonic()
        collecting.store(sent)
        storing = time.monotonic() - end
        flows = max(sent * kind.flows, 1)
        spent_ns = max(spent_ns, collecting.cpu_ns())  # that of a collector that has ended is unknown
        written = (collecting.written() - size) / flows
        return {
            "CPU": (spent_ns - before) / 1e3 / flows,
            "memory": memory,
            "written": written,
            "storing": storing,
        }


def declare(name: str, kind: str, peers: dict[str, Callable[[], AbstractContextManager[Collecting]]]) -> None:
    """Declare the benchmark of a protocol."""

    def collect(scale: Scale) -> Iterator[Turns]:
        flows = of_kind(kind)
        seconds = scale.pick(SENDING_S, 1)
        collectors = {OURS: nettop_collect} | peers
        yield {
            who: partial(collected, started, flows, scale.size, seconds)
            for who, started in collectors.items()
        }

    collect.__doc__ = f"""{kind}, {SENDING_S:g} s. nettop looks addresses up in 100,000 networks and also writes
        sums; the others do not. Memory is the proportional set size of all processes."""
    benchmark(
        name, f"Collecting flows: {kind}", UNITS, over="flows/s", sizes=(10, 1_000, 50_000), quick_size=1_000, rounds=1,
        needs=("cc",), peers={who: who for who in peers},
        targets=(Target(10, "CPU", 50_000), Target(200, "written", 1_000), Target(250, "memory")),
    )(collect)  # fmt: skip


declare("collect", "NetFlow 5", {"nfcapd": lambda: nfdump_collector("nfcapd"), "nfacctd": nfacctd})
declare("collect_sflow", "sFlow 5", {"sfcapd": lambda: nfdump_collector("sfcapd")})


@benchmark(
    "collect_most", "Collecting 200,000 flows per second", UNITS, rounds=1, needs=("cc",),
    targets=tuple(
        Target(most, metric, subject=kind)
        for metric, most in {"memory": 1200, "written": 30, "storing": 10}.items()
        for kind in PROTOCOLS
    ),
)  # fmt: skip
def collect_most(scale: Scale) -> Iterator[Turns]:
    """nettop collect, by protocol, for 3 s: the largest rate that it is meant to store for long on two CPUs."""
    rate, seconds = scale.pick((RATE, 3.0), (10_000, 1.0))
    kinds = scale.pick(PROTOCOLS, ["IPFIX"])
    yield {kind: lambda kind=kind: collected(nettop_collect, of_kind(kind), rate, seconds) for kind in kinds}


@benchmark(
    "query", "A query: the ten pairs of hosts with most bytes", "s", over="flows", sizes=(300_000,), quick_size=3_000,
    rounds=3, needs=("cc",), peers={"nfdump": "nfdump"},
)  # fmt: skip
def query(scale: Scale) -> Iterator[Turns]:
    """`nettop flows`, and `nfdump -A srcip,dstip -O bytes -n 10` over the same flows."""
    kind = of_kind("NetFlow 5")
    with sender(kind) as send, readable_folder("nfcapd") as folder, nettop_collect() as ours:
        ours.store(send(50_000, scale.size / 50_000))
        words = f"-4 -b 127.0.0.1 -p {PORT + 1} -t 86400 -w {folder}".split()
        if not query.missing("nfdump"):
            with listening(folder, "nfcapd", *words, port=PORT + 1) as theirs:
                theirs.store(send(50_000, scale.size / 50_000, PORT + 1))
        nettop = (NETTOP, "flows", "--data-dir", str(ours.folder))
        nfdump = ("nfdump", "-R", str(folder), "-A", "srcip,dstip", "-O", "bytes", "-n", "10")
        yield {OURS: lambda: seconds_of(nettop), "nfdump": lambda: seconds_of(nfdump)}


def seconds_of(words: Sequence[str]) -> float:
    """Return the seconds that a command takes."""
    begin = time.perf_counter()
    run(*words)
    return time.perf_counter() - begin
