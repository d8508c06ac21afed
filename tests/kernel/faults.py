# SPDX-License-Identifier: Apache-2.0
"""Network faults, each made for real in network namespaces of this machine.

    python -m tests.kernel.faults --list
    python -m tests.kernel.faults accept-queue-full --for 60
    python -m tests.kernel.faults --healthy redis

The first lists the faults, the second makes one, says what was made, and removes everything after a minute, on
Ctrl-C or on SIGTERM. The third runs a load without a fault. In a test:

    with made(fault) as scene:
        scene.worsen()
        until(lambda: fault.proof(scene), str(scene))

Left out, because the kernel has only one such limit for all namespaces: TCP memory (net.ipv4.tcp_mem). The limit of
conntrack is global too, but each namespace's entries count against it separately. Some faults of the machine change a
setting of all namespaces, and set it back at their end.
"""

import argparse
import contextlib
import os
import re
import select
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from errno import EACCES, EADDRNOTAVAIL, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, ETIMEDOUT
from pathlib import Path
from typing import NoReturn

from . import fault_outside as outside
from . import fault_programs as programs
from .fault_loads import LOADS, Load
from .fault_oracles import (
    DROPPED,
    SQUEEZED,
    backlog,
    counted,
    established,
    gets_no_answer,
    grows,
    in_state,
    is_stuck,
    link_flags,
    listener,
    nstat,
    open_files,
    per_second,
    queue_drops,
    rule_counter,
    softirq_share,
    ss,
    transmit_drops,
)
from .fault_programs import REQUEST, RESPONSE, Attempts, Tally
from .lab import End, Lab, Namespace, Worker, missing, until
from .traffic import listen

Proof = Callable[[], bool]
Program = Callable[..., None]
Address = tuple[str, int]

LOOPBACK = "127.0.0.1"
NOWHERE = "203.0.113.9"
PAY, REPORT, WEB, SHOP, CLOSED, CACHE, STATS = 8443, 7000, 8080, 8081, 9099, 6379, 8125
SERVFAIL = 2
TUN = "/dev/net/tun"
CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
NEIGHBOURS_MAX = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
FILES = Path("/proc/sys/fs/file-nr")
LAST_CPU = max(os.sched_getaffinity(0))
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
HEALTHY_S = 5
"""Seconds until `worsen` if a fault is made by hand."""


class Scene:
    """The namespaces and processes of a fault, and the proof that it is there."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.namespaces: dict[str, Namespace] = {}
        self.processes: dict[str, Worker] = {}
        self.tally = Tally(folder / "tally")
        self.proof: Proof = lambda: False
        self.worsens: str | None = None
        """The process that works well until `worsen`; None if the fault begins at once."""

    def namespace(self, role: str) -> Namespace:
        """Return a new namespace with this role."""
        self.namespaces[role] = self.lab.namespace()
        return self.namespaces[role]

    def pair(self) -> tuple[End, End]:
        """Return the ends of a veth pair, whose namespaces have the roles near and far."""
        near, far = self.lab.pair()
        self.namespaces |= {"near": near.namespace, "far": far.namespace}
        return near, far

    def routed_pair(self) -> tuple[Namespace, Namespace, Namespace]:
        """Return two namespaces and the router between them: near, router, far."""
        near, router, far = self.lab.routed_pair()
        self.namespaces |= {"near": near, "router": router, "far": far}
        return near, router, far

    def process(self, namespace: Namespace, name: str) -> Worker:
        """Return a new process with this name."""
        self.processes[name] = self.lab.worker(namespace, name)
        self.processes[name].call(programs.end_on_interrupt)
        return self.processes[name]

    def start(self, namespace: Namespace, name: str, program: Program, *arguments: object) -> Worker:
        """Start a program in a new process."""
        worker = self.process(namespace, name)
        worker.start(program, *arguments)
        return worker

    def serve(
        self,
        namespace: Namespace,
        name: str,
        at: Address,
        program: Program,
        *arguments: object,
        backlog: int = 128,
    ) -> Worker:
        """Start a program that has a TCP listener."""
        worker = self.process(namespace, name)
        worker.call(listen, "listener", *at, backlog)
        worker.start(program, *arguments)
        return worker

    def serve_udp(self, namespace: Namespace, name: str, at: Address) -> Worker:
        """Return a new process with a UDP server."""
        worker = self.process(namespace, name)
        worker.call(programs.bind_udp, at)
        return worker

    def worsen(self) -> None:
        """Begin the fault if it begins with a process that works well."""
        if self.worsens:
            os.kill(self.processes[self.worsens].pid, signal.SIGUSR1)

    def is_shown(self) -> bool:
        """Return whether the kernel's numbers show the fault; raise WorkerError if a process has failed."""
        for name, worker in self.processes.items():
            assert not worker.has_answered(), f"{name} has ended: {worker.result()}"
        return self.proof()

    def __str__(self) -> str:
        namespaces = ", ".join(f"{role} {namespace.name}" for role, namespace in self.namespaces.items())
        processes = ", ".join(f"{name} {worker.pid}" for name, worker in self.processes.items())
        return f"namespaces: {namespaces}; processes: {processes}"


@dataclass(frozen=True)
class Fault:
    """A fault, the kind of finding it has to give, and a pattern for what the finding has to say."""

    name: str
    kind: str
    says: str
    make: Callable[[Scene], Proof]
    needs: tuple[str, ...] = ()
    takes_s: float = 0
    """Seconds for which it has to be watched, besides those that the rule says."""

    @property
    def help(self) -> str:
        """What the fault is, in one line."""
        return (self.make.__doc__ or "").partition("\n")[0]

    def lacks(self) -> str | None:
        """Return what this machine lacks to make the fault; None if it has everything."""
        absent = [need for need in self.needs if not (shutil.which(need) or os.path.exists(need))]
        return missing() or (f"there is no {absent[0]}" if absent else None)

    def proof(self, made: Scene) -> bool:
        """Return whether the kernel's own numbers show this fault."""
        return made.is_shown()


Maker = Callable[[Scene], Proof]
_declared: list[Fault] = []


def fault(
    name: str, kind: str, *says: object, needs: Sequence[str] = (), takes_s: float = 0
) -> Callable[[Maker], Maker]:
    """Declare a fault: the finding's kind, and the words that the finding has to say, in any order."""
    pattern = "".join(rf"(?=.*\b{re.escape(str(word))}\b)" for word in says)

    def declare(make: Maker) -> Maker:
        _declared.append(Fault(name, kind, pattern, make, tuple(needs), takes_s))
        return make

    return declare


# --- servers and their sockets --------------------------------------------------------------------------------


@fault("slow-reader", "data unread", "reportd", REPORT)
def slow_reader(made: Scene) -> Proof:
    """A program does not read its connection, until both buffers are full."""
    home, at = made.namespace("home"), (LOOPBACK, REPORT)
    made.serve(home, "reportd", at, programs.hold)
    made.start(home, "ordersvc", programs.fill, at)
    return lambda: (
        any(line.receive_queue > 50_000 for line in established(home, f"sport = {REPORT}"))
        and is_stuck(home, REPORT)
    )


@fault("slow-reader-elsewhere", "data unread", "reportd", REPORT)
def slow_reader_elsewhere(made: Scene) -> Proof:
    """A stopped program on another host does not read, and the sender's queue stays full."""
    near, far = made.pair()
    at = far.v4, REPORT
    made.serve(far.namespace, "reportd", at, programs.hold)
    made.start(near.namespace, "ordersvc", programs.fill, at)
    until(lambda: established(near.namespace, f"dport = {REPORT}"), "ordersvc is connected")
    made.processes["reportd"].stop()
    return lambda: is_stuck(near.namespace, REPORT)


@fault("slow-reader-behind", "data unread", "reportd", REPORT)
def slow_reader_behind(made: Scene) -> Proof:
    """A program behind a relay does not read, so that the relay reads nothing of its client either."""
    home, at, relay_at = made.namespace("home"), (LOOPBACK, REPORT), (LOOPBACK, SHOP)
    made.serve(home, "reportd", at, programs.hold)
    made.serve(home, "a-relay", relay_at, programs.relay, at)
    made.start(home, "ordersvc", programs.fill, relay_at)
    return lambda: all(
        # The relay has read a part of what fits.
        any(line.receive_queue > 10_000 for line in established(home, f"sport = {port}"))
        and is_stuck(home, port)
        for port in (REPORT, SHOP)
    )


def outside_network(made: Scene) -> tuple[Namespace, Worker]:
    """Return a namespace with a tun device for 10.9.0.0/24, and the process behind it, which plays the outside."""
    home = made.namespace("home")
    outsider = made.process(home, "outsider")
    outsider.call(outside.open_tunnel, "tun0")
    home.ip_batch("addr add 10.9.0.1/24 dev tun0", "link set tun0 txqueuelen 10000 up")
    return home, outsider


@fault("slow-reader-outside", "send queue stuck", "ordersvc", REPORT, needs=[TUN])
def slow_reader_outside(made: Scene) -> Proof:
    """A host outside of this machine does not read, and the sender's queue stays full."""
    home, outsider = outside_network(made)
    outsider.start(outside.play_host, outside.OutsideHost(room=60_000))
    made.start(home, "ordersvc", programs.fill, ("10.9.0.2", REPORT))
    return lambda: is_stuck(home, REPORT)


@fault("accept-queue-full", "accept queue full", "payapi", PAY)
def accept_queue_full(made: Scene) -> Proof:
    """A listener with a short queue never accepts, and clients keep connecting."""
    home, at = made.namespace("home"), (LOOPBACK, PAY)
    made.serve(home, "payapi", at, programs.neglect, backlog=8)
    made.start(home, "checkout", programs.keep_connecting, Attempts(at, 0.2, patience_s=3))
    return lambda: (
        listener(home, PAY).receive_queue > listener(home, PAY).send_queue
        and nstat(home, "TcpExtListenOverflows") >= 10
    )


def flooded(made: Scene, cookies: int) -> Namespace:
    """Have a flood of SYNs arrive at payapi from outside; return its namespace."""
    home, outsider = outside_network(made)
    home.sysctl("net.ipv4.tcp_syncookies", cookies)
    home.ip("route", "add", "198.18.0.0/24", "dev", "tun0")
    made.serve(home, "payapi", ("10.9.0.1", PAY), programs.discard)
    outsider.start(outside.flood_syns, ("10.9.0.1", PAY), 100, 300)
    return home


@fault("syn-flood", "SYN queue full", "payapi", PAY, needs=[TUN])
def syn_flood(made: Scene) -> Proof:
    """SYNs from a hundred addresses fill a listener's queue, and the kernel answers with cookies."""
    victim = flooded(made, cookies=1)
    return lambda: (
        in_state(victim, "syn-recv") >= 100
        and counted(victim, TcpExtTCPReqQFullDoCookies=100, TcpExtSyncookiesSent=100)
    )


@fault("syn-flood-no-cookies", "SYN queue full", "payapi", PAY, needs=[TUN])
def syn_flood_no_cookies(made: Scene) -> Proof:
    """SYNs from a hundred addresses fill a listener's queue, and the kernel drops further ones."""
    victim = flooded(made, cookies=0)
    return lambda: in_state(victim, "syn-recv") >= 100 and nstat(victim, "TcpExtTCPReqQFullDrop") >= 100


@fault("close-wait-leak", "CLOSE_WAIT", "ledgerd")
def close_wait_leak(made: Scene) -> Proof:
    """A server never closes the connections that its clients have closed."""
    home, at = made.namespace("home"), (LOOPBACK, 7100)
    made.serve(home, "ledgerd", at, programs.hold)
    made.start(home, "batchjob", programs.connect_and_close, at, 130, 3000, 0.2)
    return lambda: (
        in_state(home, "close-wait") >= 120 and per_second(lambda: in_state(home, "close-wait")) > 1
    )


@fault("never-accepts", "never accepts", "batchd", 7200)
def never_accepts(made: Scene) -> Proof:
    """A listener never accepts a client that has sent a request."""
    home, at = made.namespace("home"), (LOOPBACK, 7200)
    made.serve(home, "batchd", at, programs.neglect, backlog=4096)
    made.start(home, "submitter", programs.send_and_wait, at)
    return lambda: (
        listener(home, 7200).receive_queue == 1
        and any(line.number("lastsnd") > 10_000 for line in established(home, "dport = 7200"))
    )


@fault("listener-stopped", "never accepts", "payapi", PAY, takes_s=10)
def listener_stopped(made: Scene) -> Proof:
    """A stopped server leaves its clients waiting in a queue that has room."""
    home, at = made.namespace("home"), (LOOPBACK, PAY)
    server = made.serve(home, "payapi", at, programs.discard, backlog=4096)
    server.stop()
    made.start(home, "checkout", programs.keep_connecting, Attempts(at, 0.5, greeting=REQUEST))
    return lambda: (
        listener(home, PAY).receive_queue >= 10
        and any(line.receive_queue for line in established(home, f"sport = {PAY}"))
        and nstat(home, "TcpExtListenOverflows") == 0
    )


@fault("open-files", "few descriptors left", "proxyd")
def open_files_near_limit(made: Scene) -> Proof:
    """A process holds all but two of the descriptors that it may open, most of them connections."""
    home, at = made.namespace("home"), (LOOPBACK, 7300)
    made.serve(home, "backend", at, programs.hold)
    proxy = made.process(home, "proxyd")
    proxy.call(programs.limit_files, 64)
    proxy.start(programs.hold_files, at, 50, 62)
    return lambda: (
        open_files(proxy.pid)[0] == 62 and open_files(proxy.pid)[1] >= 50 and open_files(proxy.pid)[2] == 64
    )


@fault("files-exhausted", "no descriptors left", "proxyd")
def files_exhausted(made: Scene) -> Proof:
    """A server has reached its limit of open files, and clients wait in its queue."""
    home, at = made.namespace("home"), (LOOPBACK, 7310)
    proxy = made.serve(home, "proxyd", at, programs.hold_until_full, 256, backlog=16)
    made.start(home, "checkout", programs.leak, at, 300, 0.2)
    return lambda: open_files(proxy.pid)[0] == 256 and listener(home, 7310).receive_queue > 16


# --- the path -------------------------------------------------------------------------------------------------


def losing(end: End, port: int, percent: int) -> None:
    """Drop that share of the segments that arrive at this end for a port."""
    rules(end.namespace, "input", f"tcp dport {port} numgen random mod 100 < {percent} counter drop")


@fault("peer-gone", "peer gone", "ordersvc", REPORT, needs=["nft"])
def peer_gone(made: Scene) -> Proof:
    """The other host disappears, and the sender retransmits without a response."""
    near, far = made.pair()
    at = far.v4, REPORT
    made.serve(far.namespace, "reportd", at, programs.discard)
    made.start(near.namespace, "ordersvc", programs.send_messages, at, 1000, 0.1)
    until(lambda: nstat(far.namespace, "TcpInSegs") > 10, "data arrives")
    rules(far.namespace, "prerouting", "drop")
    return lambda: gets_no_answer(near.namespace, REPORT)


@fault("peer-gone-outside", "peer gone", "ordersvc", REPORT, needs=[TUN])
def peer_gone_outside(made: Scene) -> Proof:
    """A host outside of this machine disappears, and the sender retransmits without a response."""
    home, outsider = outside_network(made)
    outsider.start(outside.play_host, outside.OutsideHost(room=60_000, lives_for=5000))
    made.start(home, "ordersvc", programs.send_messages, ("10.9.0.2", REPORT), 1000, 0.1)
    return lambda: gets_no_answer(home, REPORT)


@fault("idle-peer-gone", "idle peer gone", "ordersvc", REPORT, needs=["nft"])
def idle_peer_gone(made: Scene) -> Proof:
    """The other host of an idle connection disappears, and keepalive probes are not answered."""
    near, far = made.pair()
    at = far.v4, REPORT
    made.serve(far.namespace, "reportd", at, programs.discard)
    made.start(near.namespace, "ordersvc", programs.keep_idle_alive, at)
    until(lambda: nstat(near.namespace, "TcpExtTCPKeepAlive") > 0, "a probe is sent")
    rules(far.namespace, "prerouting", "drop")
    return lambda: any(
        line.keepalive_probes >= 2 and not line.send_queue
        for line in established(near.namespace, f"dport = {REPORT}")
    )


@fault("path-loss", "retransmitting", "backupd", needs=["nft"])
def path_loss(made: Scene) -> Proof:
    """A bulk transfer loses one segment in twenty."""
    near, far = made.pair()
    losing(far, REPORT, 5)
    made.serve(far.namespace, "storaged", (far.v4, REPORT), programs.discard)
    made.start(near.namespace, "backupd", programs.upload, (far.v4, REPORT), 2_500_000)
    return lambda: (
        nstat(near.namespace, "TcpOutSegs") >= 1000
        and 0.03 < nstat(near.namespace, "TcpRetransSegs") / nstat(near.namespace, "TcpOutSegs") < 0.12
    )


@fault("path-loss-slow", "retransmitting", "sensord", needs=["nft"])
def path_loss_slow(made: Scene) -> Proof:
    """A connection with twenty segments per second loses one in five."""
    near, far = made.pair()
    losing(far, REPORT, 20)
    made.serve(far.namespace, "collectord", (far.v4, REPORT), programs.discard)
    made.start(near.namespace, "sensord", programs.send_messages, (far.v4, REPORT), 500, 0.05)
    return lambda: (
        nstat(near.namespace, "TcpRetransSegs") >= 10
        and nstat(near.namespace, "TcpRetransSegs") / nstat(near.namespace, "TcpOutSegs") > 0.08
        and per_second(lambda: nstat(near.namespace, "TcpOutSegs")) < 60
    )


@fault("path-loss-many", "losing segments", "sensord", needs=["nft"])
def path_loss_many(made: Scene) -> Proof:
    """Sixty connections with two segments per second each lose one in four."""
    near, far = made.pair()
    made.serve(far.namespace, "collectord", (far.v4, REPORT), programs.discard)
    rules(
        far.namespace,
        "input",
        f"tcp dport {REPORT} tcp flags & syn == 0 numgen random mod 4 < 1 counter drop",
    )
    made.start(near.namespace, "sensord", programs.send_on_many, (far.v4, REPORT), 60, 500, 0.5)
    return lambda: (
        nstat(near.namespace, "TcpRetransSegs") >= 20
        and nstat(near.namespace, "TcpRetransSegs") / nstat(near.namespace, "TcpOutSegs") > 0.08
    )


@fault("mtu-black-hole", "path MTU black hole", "uploader", needs=["nft"])
def mtu_black_hole(made: Scene) -> Proof:
    """A link takes smaller packets than both hosts expect, and the router's ICMP messages are dropped."""
    near, router, far = made.routed_pair()
    near.sysctl("net.ipv4.tcp_mtu_probing", 0)
    router.ip("link", "set", "to2", "mtu", "1300")
    rules(router, "output", "icmp type destination-unreachable counter drop")
    made.serve(far, "archived", ("10.76.2.1", REPORT), programs.echo)
    made.start(near, "uploader", programs.greet_and_upload, ("10.76.2.1", REPORT), 4)
    return lambda: (
        nstat(router, "IpFragFails") >= 4
        and rule_counter(router) >= 4
        and sum(
            line.number("mss") > 1300 and line.number("backoff") >= 2 and line.number("bytes_acked") > 0
            for line in established(near, f"dport = {REPORT}")
        )
        == 3
    )


@fault("interface-drops", "losing packets", "tun0", needs=[TUN])
def interface_drops(made: Scene) -> Proof:
    """A tunnel's program reads too slowly, and the device drops packets."""
    home = made.namespace("home")
    tunnel = made.process(home, "vpnd")
    tunnel.call(outside.open_tunnel, "tun0")
    home.ip_batch("addr add 10.9.0.1/24 dev tun0", "link set tun0 txqueuelen 20 up")
    tunnel.start(outside.read_tunnel_slowly, 0.01)
    made.start(home, "floodd", programs.send_datagrams, ("10.9.0.2", 5000), 200, 1000)
    return lambda: per_second(lambda: transmit_drops(home, "tun0")) > 100


@fault("queue-drops", "qdisc full", "veth1")
def queue_drops_packets(made: Scene) -> Proof:
    """A short queue in front of a slow device drops packets."""
    near, far = made.pair()
    limited = ["rate", "1mbit", "burst", "3000", "limit", "10000"]
    near.namespace.run("tc", "qdisc", "replace", "dev", near.device, "root", "tbf", *limited)
    made.serve_udp(far.namespace, "sinkd", (far.v4, 5000)).start(programs.read_slowly, 0.0)
    made.start(near.namespace, "floodd", programs.send_datagrams, (far.v4, 5000), 1000, 500)
    return lambda: per_second(lambda: queue_drops(near.namespace, near.device)) > 50


@fault("interface-down", "interface down")
def interface_down(made: Scene) -> Proof:
    """An interface with an address is up, but has no carrier."""
    near, far = made.pair()
    made.serve(near.namespace, "payapi", (near.v4, PAY), programs.discard)
    far.namespace.ip("link", "set", far.device, "down")
    return lambda: {"NO-CARRIER", "UP"} <= link_flags(near.namespace, near.device)


# --- connections that fail ------------------------------------------------------------------------------------


def fetch(made: Scene, namespace: Namespace, target: Address, seconds: float = 0.1) -> None:
    """Have fetcher try to connect at this pace."""
    made.start(namespace, "fetcher", programs.keep_connecting, Attempts(target, seconds), made.tally)


@fault("connect-refused", "connects fail", "fetcher", CLOSED)
def connect_refused(made: Scene) -> Proof:
    """A program connects to a port where nothing listens."""
    home = made.namespace("home")
    fetch(made, home, (LOOPBACK, CLOSED))
    return lambda: made.tally.count(ECONNREFUSED) >= 10 and counted(home, TcpAttemptFails=10, TcpOutRsts=10)


@fault("connect-unanswered", "firewall rule drops", CLOSED, needs=["nft"])
def connect_unanswered(made: Scene) -> Proof:
    """A firewall on the way drops the SYNs of a program silently."""
    near, router, far = made.routed_pair()
    near.sysctl("net.ipv4.tcp_syn_retries", 1)
    rules(router, "forward", f"tcp dport {CLOSED} counter drop")
    made.serve(far, "payapi", ("10.76.2.1", CLOSED), programs.discard)
    fetch(made, near, ("10.76.2.1", CLOSED), 0.25)
    return lambda: (
        made.tally.count(ETIMEDOUT) >= 4
        and nstat(near, "TcpExtTCPSynRetrans") >= 4
        and rule_counter(router) >= 8
    )


@fault("connect-silent", "connects unanswered", "fetcher", CLOSED, needs=[TUN])
def connect_silent(made: Scene) -> Proof:
    """A program connects to a host outside of this machine that does not answer."""
    home, outsider = outside_network(made)
    home.sysctl("net.ipv4.tcp_syn_retries", 1)
    outsider.start(outside.play_nobody)
    fetch(made, home, ("10.9.0.2", CLOSED), 0.25)
    return lambda: made.tally.count(ETIMEDOUT) >= 4 and nstat(home, "TcpExtTCPSynRetrans") >= 4


@fault("firewall-drop", "firewall rule drops", "payapi", CLOSED, needs=["nft"])
def firewall_drop(made: Scene) -> Proof:
    """A rule of the server's own firewall drops the SYNs of a program."""
    near, far = made.pair()
    near.namespace.sysctl("net.ipv4.tcp_syn_retries", 1)
    rules(far.namespace, "input", f'tcp dport {CLOSED} counter drop comment "no payments"')
    made.serve(far.namespace, "payapi", (far.v4, CLOSED), programs.discard)
    fetch(made, near.namespace, (far.v4, CLOSED), 0.25)
    return lambda: made.tally.count(ETIMEDOUT) >= 4 and rule_counter(far.namespace) >= 8


@fault("firewall-drops-open", "firewall rule drops", "reportd", REPORT, needs=["nft"], takes_s=4)
def firewall_drops_open(made: Scene) -> Proof:
    """A new rule of the server's own firewall drops the packets of an open connection, beside one that goes on."""
    near, far = made.pair()
    made.serve(far.namespace, "reportd", (far.v4, REPORT), programs.discard)
    made.serve(far.namespace, "shopd", (far.v4, SHOP), programs.discard)
    made.start(near.namespace, "ordersvc", programs.fill, (far.v4, REPORT))
    made.start(near.namespace, "shopper", programs.send_messages, (far.v4, SHOP), 100, 0.1)
    until(lambda: len(established(near.namespace, "dport > 0")) == len((REPORT, SHOP)), "both are connected")
    rules(far.namespace, "input", f"tcp dport {REPORT} counter drop")
    return lambda: (
        rule_counter(far.namespace) >= 4
        and any(line.send_queue > 50_000 for line in established(near.namespace, f"dport = {REPORT}"))
    )


@fault("firewall-reject", "firewall rule drops", "payapi", CLOSED, needs=["nft"])
def firewall_reject(made: Scene) -> Proof:
    """A rule of the server's own firewall rejects connections with a reset."""
    near, far = made.pair()
    rules(far.namespace, "input", f"tcp dport {CLOSED} counter reject with tcp reset")
    made.serve(far.namespace, "payapi", (far.v4, CLOSED), programs.discard)
    fetch(made, near.namespace, (far.v4, CLOSED))
    return lambda: (
        made.tally.count(ECONNREFUSED) >= 10
        and rule_counter(far.namespace) >= 10
        and nstat(near.namespace, "TcpAttemptFails") >= 10
    )


@fault("firewall-prohibited", "firewall rule drops", "payapi", CLOSED, needs=["nft"])
def firewall_prohibited(made: Scene) -> Proof:
    """A rule of the server's own firewall answers that the connection is prohibited."""
    near, far = made.pair()
    far.namespace.sysctl("net.ipv4.icmp_ratelimit", 0)
    rules(far.namespace, "input", f"tcp dport {CLOSED} counter reject with icmpx admin-prohibited")
    made.serve(far.namespace, "payapi", (far.v4, CLOSED), programs.discard)
    fetch(made, near.namespace, (far.v4, CLOSED))
    return lambda: (
        made.tally.count(EHOSTUNREACH) >= 10
        and nstat(near.namespace, "IcmpInDestUnreachs") >= 10
        and rule_counter(far.namespace) >= 10
    )


@fault("connect-no-route", "no route")
def connect_no_route(made: Scene) -> Proof:
    """A program connects to an address to which there is no route."""
    home = made.namespace("home")
    fetch(made, home, (NOWHERE, CLOSED))
    return lambda: made.tally.count(ENETUNREACH) >= 10 and nstat(home, "IpOutNoRoutes") >= 10


@fault("connect-unreachable", "next hop silent", "ARP")
def connect_unreachable(made: Scene) -> Proof:
    """A program connects to an address on its link that no host has."""
    near, far = made.pair()
    near.namespace.sysctl(f"net.ipv4.neigh.{near.device}.retrans_time_ms", 200)
    made.serve(far.namespace, "payapi", (far.v4, CLOSED), programs.discard)
    fetch(made, near.namespace, ("10.78.0.99", CLOSED))
    return lambda: (
        made.tally.count(EHOSTUNREACH) >= 10
        and not near.namespace.ip("neigh", "show", "10.78.0.99", "nud", "reachable")
    )


@fault("prohibited", "connects fail", "fetcher", CLOSED)
def prohibited(made: Scene) -> Proof:
    """A route on this host prohibits the destination."""
    home = made.namespace("home")
    home.ip("route", "add", "prohibit", "203.0.113.0/24")
    fetch(made, home, (NOWHERE, CLOSED))
    return lambda: (
        made.tally.count(EACCES) >= 10 and "Permission denied" in failure(home, "ip", "route", "get", NOWHERE)
    )


@fault("no-local-port", "no local port", "fetcher", CACHE, "TIME_WAIT")
def no_local_port(made: Scene) -> Proof:
    """A program that holds a connection from each local port tries to make more."""
    home, at = made.namespace("home"), (LOOPBACK, CACHE)
    home.sysctl("net.ipv4.ip_local_port_range", "40000 40049")
    made.serve(home, "cachesrv", at, programs.hold)
    fetch(made, home, at, 1 / 26)
    return lambda: len(established(home, f"dport = {CACHE}")) == 50 and made.tally.count(EADDRNOTAVAIL) >= 20


@fault("ports-fill-up", "filling up", CACHE, takes_s=40)
def ports_fill_up(made: Scene) -> Proof:
    """A program leaks connections, and the local ports for its destination will be used up in minutes."""
    home, at = made.namespace("home"), (LOOPBACK, CACHE)
    home.sysctl("net.ipv4.ip_local_port_range", "40000 40499")
    made.serve(home, "cachesrv", at, programs.hold)
    made.start(home, "fetcher", programs.leak, at, 255, 1.1)
    return lambda: (
        255 < len(established(home, f"dport = {CACHE}")) < 400
        and per_second(lambda: len(established(home, f"dport = {CACHE}")), 2) > 0.5
    )


@fault("time-wait", "few local ports left", CACHE)
def time_wait(made: Scene) -> Proof:
    """Most local ports for one destination are in TIME_WAIT."""
    near, far = made.pair()
    near.namespace.sysctl("net.ipv4.ip_local_port_range", "40000 40199")
    made.serve(far.namespace, "cachesrv", (far.v4, CACHE), programs.close_each)
    made.start(near.namespace, "fetcher", programs.keep_in_time_wait, (far.v4, CACHE), 188)
    return lambda: 180 <= in_state(near.namespace, "time-wait") < 200


@fault("resets", "resets connections", "payapi", PAY)
def resets(made: Scene) -> Proof:
    """A server resets each connection after the first byte."""
    home, at = made.namespace("home"), (LOOPBACK, PAY)
    made.serve(home, "payapi", at, programs.reset_each)
    made.start(home, "checkout", programs.keep_connecting, Attempts(at, 0.05, greeting=b"n"))
    return lambda: counted(home, TcpEstabResets=20, TcpOutRsts=20)


@fault("conntrack-full", "near a limit", needs=["nft", TUN, str(CONNTRACK_MAX)])
def conntrack_full(made: Scene) -> Proof:
    """Conntrack has almost as many entries as it may have."""
    home, outsider = outside_network(made)
    outsider.start(outside.swallow)
    entries = int(CONNTRACK_MAX.read_text()) * 95 // 100
    home.sysctl("net.netfilter.nf_conntrack_udp_timeout", 3600)
    rules(home, "output", "ct state new accept")
    made.start(home, "scanner", programs.fill_table, "10.9.0.2", entries)
    return lambda: int(home.run("sysctl", "-n", "net.netfilter.nf_conntrack_count")) >= entries - 100


# --- the machine ----------------------------------------------------------------------------------------------


@fault("backlog-drops", "backlog drops", "received packets/s")
def backlog_drops(made: Scene) -> Proof:
    """Datagrams arrive in bursts that are larger than the backlog of a CPU may be."""
    near, far = made.pair()
    made.lab.machine_sysctl("net.core.netdev_max_backlog", 16)
    made.serve_udp(far.namespace, "statsd", (far.v4, STATS)).start(programs.read_slowly, 0.0)
    made.start(near.namespace, "floodd", programs.send_bursts, (far.v4, STATS), 60, 0.05)
    return lambda: per_second(lambda: backlog(DROPPED)) > 200


@fault("squeezed", "squeezed", f"CPU {LAST_CPU} leaves received packets waiting")
def squeezed(made: Scene) -> Proof:
    """The softirq may process just one packet before it has to stop."""
    home, at = made.namespace("home"), (LOOPBACK, STATS)
    made.lab.machine_sysctl("net.core.netdev_budget", 1)
    made.serve_udp(home, "statsd", at).start(programs.read_slowly, 0.0)
    sender = made.process(home, "metricsd")
    sender.call(programs.use_cpu, LAST_CPU)
    sender.start(programs.send_datagrams, at, 100, 2000)
    return lambda: per_second(lambda: backlog(SQUEEZED)) > 500


@fault("routing-loop", "one CPU saturated", f"CPU {LAST_CPU}", needs=["/sys/devices/system/cpu/cpu1"])
def routing_loop(made: Scene) -> Proof:
    """Two routers send each other the packets for a network, all on one CPU."""
    near, router, far = made.routed_pair()
    far.sysctl("net.ipv4.ip_forward", 1)
    router.ip("route", "add", "203.0.113.0/24", "via", "10.76.2.1")
    made.start(near, "floodd", programs.send_without_end, (NOWHERE, STATS), LAST_CPU)
    return lambda: softirq_share(LAST_CPU) > 0.85


@fault("orphans", "near a limit", "orphaned TCP sockets", needs=[TUN])
def orphans(made: Scene) -> Proof:
    """A host disappears before a program closes its connections, so that the kernel goes on to close them alone."""
    home, outsider = outside_network(made)
    made.lab.machine_sysctl("net.ipv4.tcp_max_orphans", 2000)
    outsider.start(outside.play_host, outside.OutsideHost(room=60_000, lives_for=0))
    home.sysctl("net.ipv4.tcp_orphan_retries", 4)  # they are gone after 6 seconds
    made.start(home, "ordersvc", programs.keep_orphans, ("10.9.0.2", REPORT), 1800)
    return lambda: in_state(home, "fin-wait-1") > 1600 and programs.tcp_sockets("orphan") > 1700


def neighbours() -> int:
    """Return the number of IPv4 neighbours of all namespaces."""
    return int(Path("/proc/net/stat/arp_cache").read_text().splitlines()[1].split()[0], 16)


@fault("neighbours-full", "near a limit", "neighbours")
def neighbours_full(made: Scene) -> Proof:
    """The kernel knows almost as many neighbours as it may."""
    near, _ = made.pair()
    entries = int(NEIGHBOURS_MAX.read_text()) * 95 // 100
    near.namespace.sysctl(f"net.ipv4.neigh.{near.device}.gc_stale_time", 3600)
    near.namespace.ip_batch(
        *(
            f"neigh add 10.77.{number >> 8}.{number & 255} lladdr 02:00:00:00:00:09 dev {near.device} nud stale"
            for number in range(entries - neighbours())
        )
    )
    return lambda: neighbours() >= entries - 10


def files_in_use() -> int:
    """Return the number of open files of all processes."""
    return int(FILES.read_text().split()[0])


@fault("machine-files", "near a limit", "open files")
def machine_files(made: Scene) -> Proof:
    """All processes together have almost as many files open as they may."""
    home = made.namespace("home")
    for number in range(3):
        hoarder = made.process(home, f"hoard{number}")
        hoarder.call(programs.limit_files, 16_000)
        hoarder.call(programs.open_many, 12_000)
    most = files_in_use() * 10 // 9
    made.lab.machine_sysctl("fs.file-max", most)
    return lambda: most * 85 <= files_in_use() * 100 < most * 95


# --- datagrams and names --------------------------------------------------------------------------------------


@fault("udp-overflow", "losing datagrams", "statsd", STATS)
def udp_overflow(made: Scene) -> Proof:
    """A program reads its datagrams more slowly than they arrive."""
    home, at = made.namespace("home"), (LOOPBACK, STATS)
    server = made.serve_udp(home, "statsd", at)
    server.call(programs.shrink_receive_buffer, 4096)
    server.start(programs.read_slowly, 0.01)
    made.start(home, "floodd", programs.send_datagrams, at, 100, 2000)
    return lambda: (
        grows(home, "UdpRcvbufErrors", 500)
        and any(line.drops > 500 for line in ss(home, "-ua", f"sport = {STATS}"))
    )


@fault("udp-no-listener", "no listener", STATS)
def udp_no_listener(made: Scene) -> Proof:
    """A program sends datagrams to a port where nothing listens."""
    home = made.namespace("home")
    made.start(home, "metricsd", programs.send_datagrams, (LOOPBACK, STATS), 100, 100)
    return lambda: grows(home, "UdpNoPorts", 50)


def asking(made: Scene, delay_s: float | None, code: int = 0) -> Namespace:
    """Have workerd ask resolverd five times per second; return resolverd's namespace."""
    near, far = made.pair()
    made.serve_udp(far.namespace, "resolverd", (far.v4, 53)).start(programs.serve_names, delay_s, code)
    made.start(near.namespace, "workerd", programs.look_up, (far.v4, 53), 0.2, made.tally)
    return far.namespace


@fault("dns-silent", "DNS silent", "workerd")
def dns_silent(made: Scene) -> Proof:
    """A DNS server never answers."""
    server = asking(made, None)
    return lambda: nstat(server, "UdpInDatagrams") >= 10 and nstat(server, "UdpOutDatagrams") == 0


@fault("dns-slow", "DNS slow", "workerd")
def dns_slow(made: Scene) -> Proof:
    """A DNS server answers after two seconds."""
    server = asking(made, 2)
    return lambda: (
        made.tally.count(0) >= 5
        and nstat(server, "UdpOutDatagrams") >= 5
        and 8 <= nstat(server, "UdpInDatagrams") - nstat(server, "UdpOutDatagrams") <= 12
    )


@fault("dns-servfail", "DNS failing", "workerd")
def dns_servfail(made: Scene) -> Proof:
    """A DNS server answers each query with SERVFAIL."""
    server = asking(made, 0, SERVFAIL)
    return lambda: made.tally.count(SERVFAIL) >= 10 and nstat(server, "UdpOutDatagrams") >= 10


# --- services and how they are used ---------------------------------------------------------------------------


def serving(made: Scene, badly_s: float | None) -> Namespace:
    """Have webapp answer frontend's requests, well until `worsen`; return their namespace."""
    home, at = made.namespace("home"), (LOOPBACK, WEB)
    worker = made.process(home, "webapp")
    worker.call(listen, "listener", *at)
    worker.call(programs.worsen_on_interrupt)
    worker.start(programs.serve_pages, 0.0008, badly_s)
    made.worsens = "webapp"
    made.start(home, "frontend", programs.ask_all, at, 40, 20)
    return home


def longest_wait_ms(namespace: Namespace, port: int = WEB) -> int:
    """Return the longest time that a client has waited for the response of a port, in milliseconds."""
    waits = [
        line.number("lastsnd")
        for line in established(namespace, f"dport = {port}")
        if line.number("bytes_sent") // len(REQUEST) > line.number("bytes_received") // len(RESPONSE)
    ]
    return max(waits, default=0)


@fault("slow-service", "slow service", "webapp", WEB)
def slow_service(made: Scene) -> Proof:
    """A service that answered within a millisecond takes one and a half seconds."""
    home = serving(made, 1.5)
    return lambda: 1000 < longest_wait_ms(home) < 2000 and grows(home, "TcpOutSegs", 20)


@fault("slow-from-start", "slow from the start", "shopd", SHOP)
def slow_from_start(made: Scene) -> Proof:
    """A service has always taken one and a half seconds for a response."""
    home, at = made.namespace("home"), (LOOPBACK, SHOP)
    made.serve(home, "shopd", at, programs.serve_pages, 1.5, None)
    made.start(home, "frontend", programs.ask_all, at, 40, 20)
    return lambda: (
        1000 < longest_wait_ms(home, SHOP) < 2000
        and sum(line.number("bytes_received") for line in established(home, f"dport = {SHOP}"))
        > 40 * len(RESPONSE)
    )


@fault("stuck-service", "stuck service", "webapp", WEB)
def stuck_service(made: Scene) -> Proof:
    """A service that answered within a millisecond stops answering."""
    home = serving(made, None)
    return lambda: longest_wait_ms(home) > 3000


@fault("small-mss", "small segments", "uploader")
def small_mss(made: Scene) -> Proof:
    """A bulk transfer uses tiny segments, since the other host's route advertises a small size."""
    near, far = made.pair()
    far.namespace.ip("route", "add", f"{near.v4}/32", "dev", far.device, "advmss", "88")
    made.serve(far.namespace, "archived", (far.v4, REPORT), programs.discard)
    made.start(near.namespace, "uploader", programs.upload, (far.v4, REPORT), 200_000)
    return lambda: any(
        line.number("mss") <= 88 and line.number("data_segs_out") > 1000
        for line in established(near.namespace, f"dport = {REPORT}")
    )


@fault("tiny-sends", "tiny sends", "tickerd")
def tiny_sends(made: Scene) -> Proof:
    """A program sends thousands of segments per second with ten bytes each."""
    near, far = made.pair()
    made.serve(far.namespace, "quoted", (far.v4, REPORT), programs.discard)
    made.start(near.namespace, "tickerd", programs.send_messages, (far.v4, REPORT), 10, 0.01, 50)
    return lambda: (
        grows(near.namespace, "TcpOutSegs", 3000)
        and any(
            line.number("bytes_sent") < 12 * line.number("data_segs_out")
            for line in established(near.namespace, f"dport = {REPORT}")
        )
    )


@fault("short-connections", "short connections")
def short_connections(made: Scene) -> Proof:
    """A program opens a thousand connections per second, each for one request."""
    home = made.namespace("home")
    made.serve(home, "webapp", ("0.0.0.0", WEB), programs.answer_each, backlog=4096)
    made.start(home, "crawler", programs.crawl, WEB, 50, 1000)
    return lambda: grows(home, "TcpActiveOpens", 700) and grows(home, "TcpPassiveOpens", 700)


FAULTS: tuple[Fault, ...] = tuple(_declared)
"""All faults."""


# --- making them ----------------------------------------------------------------------------------------------


def rules(namespace: Namespace, hook: str, *lines: str) -> None:
    """Add these rules of nftables to chain HOOK of table `filter`."""
    chain = f"inet filter {hook}"
    namespace.run("nft", "add table inet filter")
    namespace.run("nft", f"add chain {chain} {{ type filter hook {hook} priority 0; }}")
    for line in lines:
        namespace.run("nft", f"add rule {chain} {line}")


def failure(namespace: Namespace, *command: str) -> str:
    """Return the message with which a command fails; nothing if it does not."""
    try:
        namespace.run(*command)
    except RuntimeError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def made(fault: Fault) -> Iterator[Scene]:
    """Yield a fault that was made, and that goes on until the block ends."""
    with tempfile.TemporaryDirectory(prefix="nettop-fault") as folder, Lab() as lab:
        scene = Scene(lab, Path(folder))
        scene.proof = fault.make(scene)
        yield scene


# --- by hand --------------------------------------------------------------------------------------------------


def options() -> argparse.ArgumentParser:
    """Return the options of the command."""
    parser = argparse.ArgumentParser("python -m tests.kernel.faults", description="Make a network fault.")
    parser.add_argument("fault", nargs="?", choices=[entry.name for entry in FAULTS], metavar="FAULT")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--healthy", choices=sorted(LOADS), help="run a load without a fault instead")
    parser.add_argument("--well", type=float, default=HEALTHY_S, metavar="SECONDS",
                        help=f"let what gets bad work well for this time first ({HEALTHY_S})")  # fmt: skip
    parser.add_argument("--for", type=float, dest="seconds", metavar="SECONDS", help="end after this time")
    return parser


def print_list() -> None:
    """Print each fault with the kind of its finding and what it is."""
    for entry in FAULTS:
        print(f"{entry.name:22} {entry.kind:22} {entry.help}{' - ' + why if (why := entry.lacks()) else ''}")
    for name, load in LOADS.items():
        print(f"--healthy {name:12} {'':22} {load.help}{' - ' + why if (why := load.lacks()) else ''}")


def hold(seconds: float | None) -> None:
    """Wait for this time, or until a signal."""
    select.select([], [], [], seconds)


def interrupt(number: int, frame: object) -> NoReturn:
    """End what is held; ignore further signals while it is removed."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def make_by_hand(fault: Fault, healthy_s: float, seconds: float | None) -> None:
    """Make a fault, say what was made, and hold it."""
    with made(fault) as scene:
        print(f"{fault.name}: {fault.help} ({scene})", flush=True)
        if scene.worsens:
            healthy_s = healthy_s if seconds is None else min(healthy_s, seconds / 2)
            hold(healthy_s)
            scene.worsen()
            print(f"{fault.name}: {scene.worsens} is bad from now on", flush=True)
            seconds = None if seconds is None else seconds - healthy_s
        hold(seconds)


def load_by_hand(load: Load, seconds: float | None) -> None:
    """Run a load, say what was made, and hold it."""
    with Lab() as lab, load.running(lab) as what:
        print(what, flush=True)
        hold(seconds)


def main(arguments: Sequence[str] | None = None) -> str | None:
    """Run the command; return the reason if it cannot."""
    parser = options()
    given = parser.parse_args(arguments)
    if given.list:
        print_list()
        return None
    chosen = (
        LOADS[given.healthy] if given.healthy else next((f for f in FAULTS if f.name == given.fault), None)
    )
    if chosen is None:
        parser.error("name a fault, --list or --healthy")
    if why := chosen.lacks():
        return f"{why}"
    for number in SIGNALS:
        signal.signal(number, interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        if isinstance(chosen, Fault):
            make_by_hand(chosen, given.well, given.seconds)
        else:
            load_by_hand(chosen, given.seconds)
    return None


if __name__ == "__main__":
    sys.exit(main())
