# SPDX-License-Identifier: Apache-2.0
"""Connections in SYN_RECV that already have a socket: Fast Open, simultaneous connects, and duplicates."""

import os
import select
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import traffic
from .lab import Dropper, End, Lab, Worker, until
from .test_events import Watch, by_event, in_full, kill_sockets, part, process
from .traffic import Call

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.since("5.12", "a program at a tracepoint may not ask for a socket's cookie"),
]

WITHOUT_COOKIES = 0x207
"""net.ipv4.tcp_fastopen: as client and as server, and neither needs a cookie."""


def listen_fast_open(memory: dict[Any, Any], host: str) -> int:
    """Open a listener that accepts data in the SYN; return its port."""
    port = traffic.listen(memory, "listener", host)
    memory["listener"].setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    return port


def send_with_syn(memory: dict[Any, Any], target: tuple[str, int], size: int) -> None:
    """Connect and send `size` bytes in the SYN."""
    memory[0] = socket.socket()
    memory[0].setblocking(False)
    assert memory[0].sendto(bytes(size), socket.MSG_FASTOPEN, target) == size


def half_open(lab: Lab, size: int) -> tuple[tuple[End, End], Worker, Worker, Dropper]:
    """Return connection 0, accepted by the server; only the client's SYN, with data, and RST arrive."""
    near, far = lab.pair()
    for end in (near, far):
        end.namespace.sysctl("net.ipv4.tcp_fastopen", WITHOUT_COOKIES)
    client, server = lab.worker(near.namespace, "client"), lab.worker(far.namespace, "server")
    port = server.call(listen_fast_open, far.v4)
    dropper = lab.dropper(far)
    dropper.rule(with_flags=Dropper.ACK, without_flags=Dropper.RST)
    client.call(send_with_syn, (far.v4, port), size)
    server.call(traffic.accept, "listener", 0)
    return (near, far), client, server, dropper


@pytest.mark.parametrize(
    ("ending", "reason"),
    [("resets", "reset by peer"), ("is killed", "killed"), ("leaves data unread", "reset by us")],
)
def test_fast_open_that_never_opens(lab: Lab, ending: str, reason: str) -> None:
    """A connection with data that ends before its SYN-ACK is acknowledged has failed; the acceptor owns it."""
    with Watch() as watch:
        began = time.monotonic_ns()
        (_, far), client, server, _ = half_open(lab, 101)
        watch.read()
        if ending == "resets":
            client.call(traffic.linger, [0])
            client.call(traffic.close, [0])
        elif ending == "is killed":
            until(lambda: kill_sockets(far.namespace, "state", "syn-recv"), "the server's end is killed")
        else:
            server.call(traffic.close, [0])
        (failed,) = watch.wait(far.namespace, fail=1)
        ended = part(failed, "reason", "direction", "state", "bytes_received")
        assert ended == (reason, "inbound", "SYN_RECV", 101)
        assert part(failed, "pid", "process") == process(server.pid)
        assert 0 < failed["duration_us"] <= (time.monotonic_ns() - began) // 1000


def test_fast_open_that_closes_before_it_opens(lab: Lab) -> None:
    """If a server answers and closes before its SYN-ACK is acknowledged, the connection opens, then closes."""
    with Watch() as watch:
        (near, far), client, server, dropper = half_open(lab, 101)
        server.call(traffic.exchange, {0: 103}, {0: 101})
        server.call(traffic.close, [0])
        dropper.nothing()
        client.call(traffic.exchange, {}, {0: 103})
        client.call(traffic.close, [0])
        reported = by_event(watch.wait(far.namespace, accept=1, close=1))
        names = ("direction", "pid", "process")
        assert {part(row, *names) for row in reported.values()} == {("inbound", *process(server.pid))}
        ended = part(reported["close"], "reason", "bytes_sent", "bytes_received")
        assert ended == ("closed by us", 103, 101)
        assert reported["close"]["opened_at"] == reported["accept"]["time"]
        assert reported["close"]["duration_us"] is not None
        theirs = by_event(watch.wait(near.namespace, connect=1, close=1))["close"]
        assert part(theirs, "reason", "direction", "pid") == ("closed by peer", "outbound", client.pid)


def test_both_connect_and_neither_opens(lab: Lab) -> None:
    """Of two simultaneous connects, one that dies in SYN_RECV failed to connect."""
    with Watch() as watch:
        near, far = lab.pair()
        workers = {end: lab.worker(end.namespace, name) for end, name in ((near, "near"), (far, "far"))}
        began = time.monotonic_ns()
        droppers = {end: lab.dropper(end) for end in workers}
        for dropper in droppers.values():
            dropper.rule(every=1)
        for end, peer, port in ((near, far, 6001), (far, near, 6002)):
            call = Call((peer.v4, 12003 - port), (end.v4, port))
            workers[end].call(traffic.connect_without_answer, 0, call)
        droppers[far].nothing()  # so that the SYN arrives when it is sent again, and is never answered
        until(lambda: kill_sockets(far.namespace, "state", "syn-recv"), "the far end is killed")
        (failed,) = watch.wait(far.namespace, fail=1)
        expected = ("killed", "outbound", "SYN_RECV", *process(workers[far].pid))
        assert part(failed, "reason", "direction", "state", "pid", "process") == expected
        assert 0 < failed["duration_us"] <= (time.monotonic_ns() - began) // 1000


@pytest.fixture
def closed_in_syn_recv(tmp_path: Path) -> Iterator[Path]:
    """Yield the kernel's own trace of sockets that are closed in SYN_RECV."""
    subprocess.run(["mount", "-t", "tracefs", "tracefs", tmp_path], check=True)
    instance = tmp_path / "instances" / f"nettop{os.getpid()}"
    try:
        instance.mkdir()
        changes = instance / "events/sock/inet_sock_set_state"
        (changes / "filter").write_text("oldstate == 3 && newstate == 7")
        (changes / "enable").write_text("1")
        yield instance / "trace"
    finally:
        instance.rmdir()
        subprocess.run(["umount", tmp_path], check=True)


SOME = 20
"""Connections of one try: few, as any event that is lost has them tried again."""


def send_as_soon_as_open(memory: dict[Any, Any], target: tuple[str, int], count: int) -> None:
    """Make `count` connections; send a byte on each from another CPU than the one that acknowledges the SYN-ACK."""
    traffic.stay_on(memory, 1)
    for _ in range(count):
        with socket.socket(traffic.V6 if ":" in target[0] else traffic.V4) as client:
            client.setblocking(False)
            client.connect_ex(target)
            poll = select.poll()
            poll.register(client, select.POLLOUT)
            while not poll.poll(0):
                pass
            client.send(b"n")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
@pytest.mark.parametrize("version", [4, 6])
def test_two_sockets_of_one_handshake(lab: Lab, closed_in_syn_recv: Path, version: int) -> None:
    """Two CPUs make a socket of one handshake, the kernel closes one of them: that is no failure."""
    with Watch() as watch:
        near, far = lab.pair()
        # CPU 0 handles what arrives at the client: it acknowledges the SYN-ACK.
        near.namespace.run("sh", "-c", f"echo 1 > /sys/class/net/{near.device}/queues/rx-0/rps_cpus")
        client, server = lab.worker(near.namespace), lab.worker(far.namespace)
        host = far.v6 if version == 6 else far.v4
        port = server.call(traffic.listen, "listener", host)

        def reported() -> Counter[str]:
            watch.drain()
            return Counter(row["event"] for row in watch.events(far.namespace))

        def connect_some() -> Counter[str]:
            server.start(traffic.swallow, "listener", SOME)
            client.call(send_as_soon_as_open, (host, port), SOME)
            server.result()
            until(lambda: reported()["close"] >= SOME or watch.has_lost(), "all are closed")
            return reported()

        def has_duplicates() -> bool:
            assert in_full(connect_some, watch) == Counter(accept=SOME, close=SOME)
            return f"sport={port} " in closed_in_syn_recv.read_text()

        until(has_duplicates, "two sockets are made of a handshake")
