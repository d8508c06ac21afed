# SPDX-License-Identifier: Apache-2.0
"""Compare nettop collect with nfdump on live exporters: `sudo .venv/bin/python bench/exporters.py [--only TEXT]`.

Each exporter sees TCP, UDP and ICMP over IPv4 and IPv6 between two network namespaces. Its datagrams are relayed to
nettop collect and to nfcapd (sfcapd for sFlow). Both must then have the same flows, in total and for each 5-tuple. An
exporter that is not installed is skipped.

The comparison uses packets and bytes multiplied by the sampling rate. nfdump stores the products, if it knows the rate;
nettop stores the rate next to the reported values. ICMP ports are ignored: nfdump stores the type there for some
protocols, and 0 for others. Both directions of a biflow are compared: nfdump has the reverse one in the same record, as
outgoing.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

from collecting import Senders, all_stored, arrived
from measure import Figure, Report, arguments, at_least, judge
from programs import Process, free_udp_port, readable_folder, run, running

from tests.collecting import Running, until
from tests.kernel.lab import End, Lab, Namespace, enter

CONNECTIONS, PINGS = 150, 5
"""TCP connections (also UDP sockets) and echo requests, each for IPv4 and IPv6."""
BIG_BYTES = 8_000_000
"""Bytes that the first connection of each IP version sends."""
TCP_PORT, UDP_PORT = 8080, 5353
ICMP, ICMPV6 = 1, 58
ECHO_REQUEST, ECHO_REQUEST_V6 = 8, 128
PORT = 9995
"""Port that exporters send to, in their own namespace."""
NETFLOW5, NETFLOW9, IPFIX, SFLOW = 5, 9, 10, 105
"""Protocols, as in the column `protocol_version`."""
SAMPLING = 4
SETTLING_S = 4.0
"""Time from the end of traffic to that of an exporter, which reports every second."""
AT_ONCE = 30
"""Datagrams that nfdump's collector must be able to buffer."""
FLOWS_LEAST = 200
SO_RCVBUFFORCE = 33
UDP_TABLE = Path("/proc/thread-self/net/udp")
"""Not /proc/net/udp, which shows the main thread's namespace."""
FiveTuple = tuple[str, str, int, int, int]
"""Addresses, ports and protocol."""


class Sum(NamedTuple):
    """Flows with their packets and bytes."""

    flows: int
    packets: int
    bytes: int


NOTHING = Sum(0, 0, 0)


class Sums(dict[FiveTuple, Sum]):
    """Sums by 5-tuple."""

    def add(self, five_tuple: FiveTuple, more: Sum) -> None:
        """Add one or more flows."""
        source, target, _, _, protocol = five_tuple
        if protocol in (ICMP, ICMPV6):
            five_tuple = source, target, 0, 0, protocol
        self[five_tuple] = Sum(*map(sum, zip(self.get(five_tuple, NOTHING), more, strict=True)))

    def total(self) -> Sum:
        """Return the sum over all 5-tuples."""
        return Sum(*(sum(column) for column in zip(*self.values(), strict=True))) if self else NOTHING


# --- namespaces and programs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Two hosts, of which the first has the exporter, and a directory."""

    hosts: tuple[End, End]
    folder: Path

    @property
    def exporting(self) -> Namespace:
        """The exporter's namespace."""
        return self.hosts[0].namespace


@contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Open this thread's sockets in a namespace inside the `with` block."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(namespace.name)
        yield
    finally:
        if ctypes.CDLL(None, use_errno=True).setns(home, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(home)


@contextmanager
def program(log: Path, *words: str, end_by: int = signal.SIGTERM) -> Iterator[Process]:
    """Run a program inside the `with` block, with its output in `log`."""
    with log.open("wb") as output, running(*words, out=output, end_by=end_by) as process:
        yield process
        assert process.poll() is None, f"{words} has exited: {log.read_text()[-2000:]}"


def within(namespace: Namespace, *words: str) -> tuple[str, ...]:
    """Return the command that runs a program in a namespace."""
    return "ip", "netns", "exec", namespace.name, *words


# --- traffic ----------------------------------------------------------------------------------------------------


def make_traffic(site: Site) -> None:
    """Send traffic from the first host to the second and back."""
    client, server = site.hosts
    for family, target in ((socket.AF_INET, server.v4), (socket.AF_INET6, server.v6)):
        # Ping first: softflowd misses the last packets, which libpcap still buffers.
        _ping(client, family, target)
        with inside(server.namespace):
            listener = socket.create_server((target, TCP_PORT), family=family)
            echoing = socket.socket(family, socket.SOCK_DGRAM)
            echoing.bind((target, UDP_PORT))
        with listener, echoing:
            threading.Thread(target=_serve, args=(listener,), daemon=True).start()
            for number in range(CONNECTIONS):
                size = 100 * number if number else BIG_BYTES
                _connect(_opened(client, family, socket.SOCK_STREAM), (target, TCP_PORT), size)
                _ask(_opened(client, family, socket.SOCK_DGRAM), echoing, bytes(number))


def _opened(host: End, family: int, kind: int, protocol: int = 0) -> socket.socket:
    with inside(host.namespace):
        opened = socket.socket(family, kind, protocol)
    opened.settimeout(10)
    return opened


def _serve(listener: socket.socket) -> None:
    for _ in range(CONNECTIONS):
        connection, _ = listener.accept()
        with connection:
            while connection.recv(1 << 16):
                pass
            connection.sendall(bytes(700))


def _connect(connection: socket.socket, target: tuple[str, int], size: int) -> None:
    with connection:
        connection.connect(target)
        connection.sendall(bytes(size))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def _ask(client: socket.socket, server: socket.socket, content: bytes) -> None:
    with client:
        client.sendto(content, server.getsockname())
        received, sender = server.recvfrom(1 << 16)
        server.sendto(received * 2, sender)
        client.recv(1 << 16)


def _ping(host: End, family: int, target: str) -> None:
    """Send echo requests; the kernel fills in the identifier and the checksum."""
    is_v4 = family == socket.AF_INET
    host.namespace.sysctl("net.ipv4.ping_group_range", "0 0")
    with _opened(host, family, socket.SOCK_DGRAM, ICMP if is_v4 else ICMPV6) as sender:
        for number in range(PINGS):
            kind = ECHO_REQUEST if is_v4 else ECHO_REQUEST_V6
            sender.sendto(struct.pack("!BBHHH56x", kind, 0, 0, 0, number), (target, 0))
            time.sleep(0.02)


# --- exporters --------------------------------------------------------------------------------------------------

Exporting = Callable[[Site], AbstractContextManager[object]]
"""Runs an exporter meanwhile; on exit it has sent everything."""


def softflowd(version: int, *options: str) -> Exporting:
    """Return softflowd on the first host's device, with a large packet buffer."""

    @contextmanager
    def exporting(site: Site) -> Iterator[None]:
        control = str(site.folder / "softflowd.ctl")
        words = f"softflowd -d -6 -B 33554432 -i {site.hosts[0].device} -n 127.0.0.1:{PORT} -v {version}"
        files = ("-c", control, "-p", str(site.folder / "softflowd.pid"))
        log = site.folder / "softflowd.log"
        with program(log, *within(site.exporting, *words.split(), *files, *options)):
            until(lambda: os.path.exists(control), "softflowd listens")
            yield
            time.sleep(1)
            run("softflowctl", "-c", control, "expire-all")
            time.sleep(1)

    return exporting


def pmacctd(*settings: str) -> Exporting:
    """Return pmacctd with an exporting plugin, on the first host's device."""

    @contextmanager
    def exporting(site: Site) -> Iterator[None]:
        configuration, log = site.folder / "pmacctd.conf", site.folder / "pmacctd.log"
        lines = (
            "daemonize: false",
            f"pcap_interface: {site.hosts[0].device}",
            "aggregate: src_host, dst_host, src_port, dst_port, proto, tos",
            *settings,
        )
        configuration.write_text("\n".join(lines) + "\n")
        words = within(site.exporting, "pmacctd", "-f", str(configuration))
        with program(log, *words, end_by=signal.SIGINT):
            until(lambda: "Exporting flows to" in log.read_text(), "pmacctd exports")
            yield
            time.sleep(SETTLING_S)

    return exporting


@dataclass(frozen=True)
class Case:
    """An exporter's configuration, the programs that it needs, and its protocol and sampling."""

    name: str
    exporting: Exporting
    programs: tuple[str, ...]
    protocol: int
    sampling: int = 1
    """One packet in this many is sampled."""
    is_rate_in_options: bool = False
    """Whether options records tell the rate. nfdump 1.7.1 ignores softflowd's, which have the scope of an interface
    (NetFlow 9) or of a metering process with interval and space (IPFIX), and does not multiply then."""

    @property
    def collector(self) -> str:
        """Name of nfdump's collector."""
        return "sfcapd" if self.protocol == SFLOW else "nfcapd"


def of_softflowd(name: str, protocol: int, *options: str, sampling: int = 1) -> Case:
    """Return a case of softflowd with these options."""
    if sampling > 1:
        name, options = f"{name}, one packet in {sampling}", (*options, "-s", f"{sampling}")
    exporting, programs = softflowd(protocol, *options), ("softflowd", "softflowctl")
    return Case(f"softflowd {name}", exporting, programs, protocol, sampling, protocol != NETFLOW5)


def of_pmacctd(name: str, protocol: int, *settings: str, sampling: int = 1) -> Case:
    """Return a case of one of pmacctd's exporting plugins."""
    return Case(f"pmacctd {name}", pmacctd(*settings), ("pmacctd",), protocol, sampling)


def of_nfprobe(name: str, protocol: int) -> Case:
    """Return a case of pmacctd's plugin for NetFlow and IPFIX."""
    receiver = f"nfprobe_receiver: 127.0.0.1:{PORT}"
    return of_pmacctd(
        f"nfprobe {name}", protocol, "plugins: nfprobe", receiver, f"nfprobe_version: {protocol}"
    )


def of_sfprobe(sampling: int) -> Case:
    """Return a case of pmacctd's plugin for sFlow."""
    settings = ("plugins: sfprobe", f"sfprobe_receiver: 127.0.0.1:{PORT}", f"sampling_rate: {sampling}")
    return of_pmacctd(f"sfprobe, one packet in {sampling}", SFLOW, *settings, sampling=sampling)


CASES = (
    of_softflowd("NetFlow 5", NETFLOW5, sampling=SAMPLING),
    of_softflowd("NetFlow 9", NETFLOW9, sampling=SAMPLING),
    of_softflowd("IPFIX", IPFIX, sampling=SAMPLING),
    of_softflowd("IPFIX biflows", IPFIX, "-b"),
    of_nfprobe("NetFlow 5", NETFLOW5),
    of_nfprobe("NetFlow 9", NETFLOW9),
    of_nfprobe("IPFIX", IPFIX),
    of_sfprobe(1),
    of_sfprobe(SAMPLING),
)


# --- collectors -------------------------------------------------------------------------------------------------


class Relay(threading.Thread):
    """A relay of an exporter's datagrams to both collectors; each exporter socket gets its own source address."""

    def __init__(self, site: Site, nettop: int, nfdump: "Nfdump") -> None:
        super().__init__(daemon=True)
        self.count = 0
        """Datagrams relayed."""
        self._nfdump = nfdump
        self._senders = Senders(nettop, nfdump.port)
        self._numbers: dict[Any, int] = {}
        self._ending = threading.Event()
        with inside(site.exporting):
            self._receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        self._receiver.settimeout(0.1)
        self._receiver.bind(("127.0.0.1", PORT))

    def run(self) -> None:
        """Relay until closed; wait for nfdump's collector when its small buffer is full."""
        with self._receiver, closing(self._senders):
            while not self._ending.is_set():
                try:
                    content, source = self._receiver.recvfrom(1 << 16)
                except TimeoutError:
                    continue
                number = self._numbers.setdefault(source, len(self._numbers) + 1)
                self._senders.send(f"127.65.0.{number}", content)
                self.count += 1
                if not self.count % AT_ONCE:
                    until(self._nfdump.has_read_all, "nfdump's collector has read all")

    def end(self) -> None:
        """Close once no datagram has come for a second."""
        count = -1
        while count != self.count:
            assert self.is_alive(), "the relay has failed"
            count = self.count
            time.sleep(1)
        self.close()

    def close(self) -> None:
        """Close at once."""
        self._ending.set()
        self.join()


class Nfdump:
    """nfcapd or sfcapd, and nfdump to read its files."""

    def __init__(self, collector: str, folder: Path) -> None:
        self._collector = collector
        self.folder = folder / collector
        self.folder.mkdir()
        self.port = free_udp_port()
        self.dropped = 0
        """Datagrams dropped because its buffer was full."""

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Run the collector inside the `with` block; before leaving, wait until it has read all datagrams."""
        words = f"-4 -b 127.0.0.1 -p {self.port} -t 86400 -w {self.folder}".split()
        with program(self.folder.with_suffix(".log"), self._collector, *words):
            until(lambda: bool(self._socket()), "nfdump's collector listens")
            yield
            until(self.has_read_all, "nfdump's collector has read all")
            self.dropped = int(self._socket()[12])

    def has_read_all(self) -> bool:
        """Return whether the collector's receive queue is empty."""
        return self._socket()[4].endswith(":00000000")

    def _socket(self) -> list[str]:
        """Return the columns of the collector's line in /proc/net/udp: 4 has the queues, 12 the drops."""
        lines = (line.split() for line in UDP_TABLE.read_text().splitlines()[1:])
        return next((words for words in lines if words[1].endswith(f":{self.port:04X}")), [])

    def sums(self) -> Sums:
        """Return the sums of all records."""
        sums = Sums()
        for record in json.loads(run("nfdump", "-R", str(self.folder), "-o", "json")):
            source, target = (
                record.get(f"{side}4_addr") or record[f"{side}6_addr"] for side in ("src", "dst")
            )
            ports = record.get("src_port", 0), record.get("dst_port", 0)
            protocol = record["proto"]
            sums.add((source, target, *ports, protocol), Sum(1, record["in_packets"], record["in_bytes"]))
            if record.get("out_packets"):
                reverse = Sum(1, record["out_packets"], record["out_bytes"])
                sums.add((target, source, *reversed(ports), protocol), reverse)
        return sums


def nettop_sums(running: Running, case: Case) -> Sums:
    """Return the sums that nettop stored."""
    rate = "1" if case.is_rate_in_options else "greatest(sampling_rate, 1)"
    rows = running.rows(
        "SELECT src, dst, src_port, dst_port, protocol, toUInt32(count()), "
        f"toString(sum(packets * {rate})), toString(sum(bytes * {rate})) FROM flows_raw GROUP BY ALL"
    )
    sums = Sums()
    for source, target, source_port, target_port, number, *counts in rows:
        sums.add(
            (_text(source), _text(target), source_port, target_port, number),
            Sum(*(int(counted) for counted in counts)),
        )
    return sums


def _text(address: str) -> str:
    return str(IPv6Address(address).ipv4_mapped or address)


# --- comparison -------------------------------------------------------------------------------------------------


def differences(have: Sums, expected: Sums) -> list[Figure]:
    """Return the differences from nfdump in total and by 5-tuple."""
    differing = [key for key in have.keys() | expected.keys() if have.get(key) != expected.get(key)]
    for key in differing[:3]:
        print(f"{key}: {have.get(key)}, nfdump: {expected.get(key)}", flush=True)
    totals = zip(Sum._fields, have.total(), expected.total(), strict=True)
    return [
        *(
            Figure(f"{name}, difference from nfdump", abs(ours - theirs), "", 0)
            for name, ours, theirs in totals
        ),
        Figure("5-tuples that differ from nfdump", len(differing), "", 0),
    ]


def compare(case: Case, running: Running, nfdump: Nfdump, count: int) -> list[Figure]:
    """Compare nettop's stored flows with those that nfdump read from as many datagrams."""
    have, theirs = nettop_sums(running, case), nfdump.sums()
    total = have.total()
    is_wrong = f"greatest(sampling_rate, 1) != {case.sampling} OR protocol_version != {case.protocol}"
    ((wrong,),) = running.rows(f"SELECT toUInt32(countIf({is_wrong})) FROM flows_raw")
    counts = running.state()["datagrams"]
    lost = counts["arrived"] - counts["decoded"]
    return [
        Figure("datagrams", count),
        at_least("flows", total.flows, "", FLOWS_LEAST),
        Figure("packets", total.packets),
        Figure("bytes", total.bytes),
        Figure("datagrams dropped before nettop, or malformed", lost, "", 0),
        Figure("flows without the exporter's protocol and sampling rate", wrong, "", 0),
        Figure("datagrams dropped before nfdump", nfdump.dropped, "", 0),
        *differences(have, theirs),
    ]


def tried(case: Case) -> Report:
    """Run a case; return its title and figures."""
    with ExitStack() as ends:
        folder = ends.enter_context(readable_folder("exporters"))
        site = Site(ends.enter_context(Lab()).pair(), folder)
        running = ends.enter_context(Running(folder / "flows"))
        nfdump = Nfdump(case.collector, folder)
        with nfdump.receiving():
            relay = Relay(site, running.port, nfdump)
            relay.start()
            ends.callback(relay.close)
            with case.exporting(site):
                make_traffic(site)
            relay.end()
        arrived(running, relay.count)
        all_stored(running)
        return case.name, compare(case, running, nfdump, relay.count)


def lacking(case: Case) -> list[str]:
    """Return the required programs that are not installed."""
    needed = (*case.programs, case.collector, "nfdump", "setpriv")
    return [name for name in needed if shutil.which(name) is None]


def reports(only: str) -> Iterator[Report]:
    """Run the cases that have all their programs installed."""
    for case in (case for case in CASES if only.lower() in case.name.lower()):
        if missing := lacking(case):
            print(f"\n{case.name}: skipped, not installed: {', '.join(missing)}", flush=True)
        else:
            yield tried(case)


def main() -> int:
    """Run all cases; return 1 if a bound is missed."""
    options = arguments(__doc__, only=("", "run only exporters whose name contains this text"))
    if os.geteuid():
        raise SystemExit("network namespaces need root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return judge(reports(options.only))


if __name__ == "__main__":
    sys.exit(main())
