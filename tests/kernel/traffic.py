# SPDX-License-Identifier: Apache-2.0
"""Functions that use sockets. Each runs in a worker; its first argument is that worker's own memory.

A worker keeps its sockets in memory under names chosen by the test, mostly connection numbers.
"""

import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import oracle
from .lab import PATIENCE, End, Lab, Namespace, Worker, die_with_parent, until

Memory = dict[Any, Any]
SIOCOUTQ, SIOCINQ = termios.TIOCOUTQ, termios.FIONREAD
V4, V6 = socket.AF_INET, socket.AF_INET6
ESTABLISHED = 1
CHUNK = b"n" * 65536


@dataclass(frozen=True)
class Call:
    """A connection to make: its source, its target, and its socket options."""

    target: tuple[str, int]
    source: tuple[str, int] | None = None
    mss: int = 0
    uid: int = 0
    mapped: bool = False
    options: tuple[tuple[int, int, int], ...] = field(default=())
    protocol: int = 0


def prime_after(number: int) -> int:
    """Return the smallest prime above `number`."""
    number += 1
    while number < 2 or any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Create sockets inside as that user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        die_with_parent()  # the kernel forgets that when the user changes


def listen(memory: Memory, name: object, address: str = "", port: int = 0, backlog: int = 4096) -> int:
    """Open a TCP listener (dual-stack where the address is "::") and return its port."""
    family = V6 if ":" in address else V4
    listener = socket.create_server(
        (address, port), family=family, backlog=backlog, dualstack_ipv6=address == "::"
    )
    memory[name] = listener
    return int(listener.getsockname()[1])


def client_and_server(
    lab: Lab, near: Namespace, far: Namespace | None = None, address: str = "127.0.0.1"
) -> tuple[Worker, Worker, int]:
    """Return a client, a server that listens at an address (as "listener"), and its port."""
    client, server = lab.worker(near, "client"), lab.worker(far or near, "server")
    return client, server, server.call(listen, "listener", address)


def two_workers(lab: Lab) -> tuple[End, End, Worker, Worker]:
    """Return the ends of a veth pair, and a worker at each."""
    near, far = lab.pair()
    return near, far, lab.worker(near.namespace), lab.worker(far.namespace)


def listen_mptcp(memory: Memory, name: object, address: str) -> int:
    """Open an MPTCP listener and return its port."""
    memory[name] = socket.socket(V6 if ":" in address else V4, socket.SOCK_STREAM, socket.IPPROTO_MPTCP)
    memory[name].bind((address, 0))
    memory[name].listen()
    return int(memory[name].getsockname()[1])


def udp(memory: Memory, name: object, address: str, to: tuple[str, int] | None = None) -> int:
    """Open a bound UDP socket, connected to `to` if given, and return its port."""
    memory[name] = socket.socket(V6 if ":" in address else V4, socket.SOCK_DGRAM)
    memory[name].bind((address, 0))
    if to:
        memory[name].connect(to)
    return int(memory[name].getsockname()[1])


def send_datagrams(memory: Memory, to: tuple[str, int], count: int, size: int = 64, sockets: int = 1) -> None:
    """Send datagrams by UDP, whether or not anybody listens, from several sockets one after the other."""
    for _ in range(sockets):
        with socket.socket(V6 if ":" in to[0] else V4, socket.SOCK_DGRAM) as sender:
            for _ in range(count // sockets):
                sender.sendto(b"n" * size, to)


def connect(memory: Memory, name: object, call: Call, at_once: bool = False) -> int:
    """Make one connection and return its local port; with `at_once` do not wait for the peer's answer."""
    host, port = call.target
    if call.mapped:
        host = f"::ffff:{host}"
    with as_user(call.uid):
        made = socket.socket(V6 if ":" in host else V4, socket.SOCK_STREAM, call.protocol)
    if call.mss:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, call.mss)
    for option in call.options:
        made.setsockopt(*option)
    if call.source:
        made.bind(("::ffff:" + call.source[0], call.source[1]) if call.mapped else call.source)
    memory[name] = made
    if at_once:
        made.setblocking(False)
    error = made.connect_ex((host, port))
    assert error in (0, errno.EINPROGRESS), os.strerror(error)
    return int(made.getsockname()[1])


def connect_at_once(memory: Memory, calls: list[Call] | dict[int, Call]) -> list[int] | dict[int, int]:
    """Make connection number i by calls[i], all at the same time; return their local ports by number."""
    by_number = calls if isinstance(calls, dict) else dict(enumerate(calls))
    ports = {number: connect(memory, number, call, at_once=True) for number, call in by_number.items()}
    for number in by_number:
        in_state(memory, number, ESTABLISHED)
    return ports if isinstance(calls, dict) else list(ports.values())


def leave_in_backlog(memory: Memory) -> None:
    """Open a listener on loopback, and a connection to it that is never accepted."""
    connect_at_once(memory, [Call(("127.0.0.1", listen(memory, "listener", "127.0.0.1")))])


def connect_without_answer(memory: Memory, name: object, call: Call) -> None:
    """Send a SYN without waiting for an answer."""
    connect(memory, name, call, at_once=True)


def accept(memory: Memory, listener: object, name: object, uid: int = 0) -> int:
    """Accept one connection; return the peer's port."""
    ready([memory[listener]])
    with as_user(uid):
        memory[name], peer = memory[listener].accept()
    return int(peer[1])


def accept_ports(memory: Memory, listener: object, numbers: dict[int, int], users: int = 1) -> None:
    """Accept all; `numbers` gives each connection's number by the peer's port."""
    for turn in range(len(numbers)):
        port = accept(memory, listener, "new", 3000 + turn % users if users > 1 else 0)
        memory[numbers[port]] = memory.pop("new")


def ready(readable: list[Any], deadline_s: float = 30) -> None:
    """Wait until one of these sockets or descriptors is readable."""
    assert select.select(readable, [], [], deadline_s * PATIENCE)[0], "nothing arrived in time"


def spin(seconds: float) -> None:
    """Busy-wait for this long: a sleeping thread wakes up late."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def exchange(memory: Memory, send: dict[Any, int], receive: dict[Any, int], deadline_s: float = 120) -> None:
    """Move exactly these bytes over the named sockets, all at once, in both directions."""
    send, receive = dict(send), dict(receive)
    poll, names = select.epoll(), {}
    for name in send.keys() | receive.keys():
        memory[name].setblocking(False)
        names[memory[name].fileno()] = name
        poll.register(memory[name], interest(send.get(name, 0), receive.get(name, 0)))
    end = time.monotonic() + deadline_s * PATIENCE
    while any(send.values()) or any(receive.values()):
        assert time.monotonic() < end, (
            f"left to send {sum(send.values())}, to receive {sum(receive.values())}"
        )
        for descriptor, events in poll.poll(1):
            name = names[descriptor]
            if events & select.EPOLLOUT and send.get(name):
                send[name] -= memory[name].send(CHUNK[: min(send[name], 16384)])
            if events & select.EPOLLIN and receive.get(name):
                receive[name] -= len(memory[name].recv(min(receive[name], 65536)))
            poll.modify(descriptor, interest(send.get(name, 0), receive.get(name, 0)))
    poll.close()


def interest(to_send: int, to_receive: int) -> int:
    """Return the epoll events that still matter."""
    return (select.EPOLLOUT if to_send else 0) | (select.EPOLLIN if to_receive else 0)


def send(memory: Memory, amounts: dict[Any, int]) -> dict[Any, int]:
    """Hand bytes to the kernel without waiting for the peer; return how many it took."""
    taken = {}
    for name, amount in amounts.items():
        memory[name].setblocking(False)
        taken[name] = memory[name].send(b"n" * amount)
    return taken


def shut(memory: Memory, names: list[Any], how: int = socket.SHUT_WR) -> None:
    """Shut down the sending side of these sockets (a FIN); keep the descriptors open."""
    for name in names:
        memory[name].shutdown(how)


def close(memory: Memory, names: list[Any]) -> None:
    """Close these sockets."""
    for name in names:
        memory.pop(name).close()


def finish(held: socket.socket) -> None:
    """Close a socket, and wait until the peer's host has acknowledged it; after the last close the connection has
    ended."""
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 30))
    held.close()


def linger(memory: Memory, names: list[Any]) -> None:
    """Have these sockets reset their connections when they close."""
    for name in names:
        memory[name].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))


def queued(held: socket.socket, request: int) -> int:
    """Return SIOCOUTQ (not yet acknowledged) or SIOCINQ (not yet read), in bytes."""
    return int(struct.unpack("=i", fcntl.ioctl(held, request, b"\0\0\0\0"))[0])


def acknowledged(memory: Memory, names: list[Any]) -> None:
    """Wait until the peers have acknowledged everything sent on these sockets."""
    for name in names:
        until(lambda name=name: queued(memory[name], SIOCOUTQ) == 0, f"{name} is acknowledged")


def arrived(memory: Memory, amounts: dict[Any, int]) -> None:
    """Wait until this many bytes are unread in each of these sockets."""
    for name, amount in amounts.items():
        until(
            lambda name=name, amount=amount: queued(memory[name], SIOCINQ) >= amount,
            f"{amount} bytes for {name}",
        )


def stay_on(memory: Memory, cpu: int) -> None:
    """Pin the process to that CPU."""
    os.sched_setaffinity(0, {cpu})


def in_state(memory: Memory, name: object, number: int) -> None:
    """Wait until TCP_INFO gives that state number (1 ESTABLISHED … 11 CLOSING)."""
    until(lambda: oracle.tcp_info(memory[name])["state"] == number, f"{name} reaches state {number}")


def cookie(memory: Memory, name: object) -> int:
    """Return SO_COOKIE of one socket."""
    return oracle.cookie(memory[name])


def cookies(memory: Memory, names: list[Any]) -> dict[Any, int]:
    """Return SO_COOKIE by name."""
    return {name: oracle.cookie(memory[name]) for name in names}


def address(memory: Memory, name: object) -> tuple[str, int]:
    """Return the local address and port."""
    actual = memory[name].getsockname()
    return str(actual[0]), int(actual[1])


@dataclass(frozen=True)
class Errand:
    """A connection with one request and its answer: its target, bytes each way, and how and by whom it ends."""

    call: Call
    up: int
    down: int
    ending: int


CLIENT_CLOSES, SERVER_CLOSES, CLIENT_RESETS, SERVER_RESETS, CLIENT_LEAVES_UNREAD, SERVER_LEAVES_UNREAD = (
    range(6)
)
_HEAD, _REPORT = struct.Struct("=IIB"), struct.Struct("=HHI")
_PIPE_BYTES, _F_SETPIPE_SZ = 1 << 20, 1031
_ANSWERED = (SERVER_RESETS, SERVER_LEAVES_UNREAD)


def primes(count: int, above: int = 1) -> list[int]:
    """Return the first `count` primes above a number."""
    actual, number = [], above
    while len(actual) < count:
        number = prime_after(number)
        actual.append(number)
    return actual


def receive(held: socket.socket, amount: int) -> None:
    """Read exactly this many bytes."""
    while amount:
        read = len(held.recv(min(amount, 65536)))
        assert read, f"the peer closed, {amount} bytes early"
        amount -= read


def reset(held: socket.socket) -> None:
    """Close a socket with a reset."""
    held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    held.close()


def until_gone(held: socket.socket) -> None:
    """Read until the peer has closed or reset the connection, then close it."""
    with contextlib.suppress(ConnectionResetError):
        while held.recv(65536):
            pass
    held.close()


def run_errand(errand: Errand) -> int:
    """Perform the client's part of an errand; return its port.

    Before a reset the server gets one more byte, which confirms its answer.
    """
    memory: Memory = {}
    port = connect(memory, 0, errand.call)
    made = memory[0]
    last = errand.ending in _ANSWERED
    made.sendall(_HEAD.pack(errand.up, errand.down, errand.ending) + b"n" * (errand.up - _HEAD.size - last))
    if errand.ending == CLIENT_LEAVES_UNREAD:
        receive(made, errand.down - 1)
        arrived(memory, {0: 1})
        made.close()
        return port
    receive(made, errand.down)
    made.sendall(b"n" * last)
    if errand.ending == CLIENT_RESETS:
        reset(made)
    elif errand.ending == CLIENT_CLOSES:
        made.close()
    else:
        until_gone(made)
    return port


def run_errands(memory: Memory, errands: dict[Any, Errand]) -> dict[Any, int]:
    """Perform the client's part of these errands, one by one; return their ports."""
    return {name: run_errand(errand) for name, errand in errands.items()}


def serve_errand(accepted: socket.socket) -> None:
    """Perform the server's part of an errand."""
    up, down, ending = _HEAD.unpack(accepted.recv(_HEAD.size, socket.MSG_WAITALL))
    receive(accepted, up - _HEAD.size - (ending in _ANSWERED))
    accepted.sendall(b"n" * down)
    if ending == SERVER_CLOSES:
        accepted.close()
    elif ending == SERVER_RESETS:
        receive(accepted, 1)
        reset(accepted)
    elif ending == SERVER_LEAVES_UNREAD:
        arrived({0: accepted}, {0: 1})
        accepted.close()
    else:
        until_gone(accepted)


def accept_errand(listener: socket.socket) -> tuple[socket.socket, tuple[int, int]] | None:
    """Accept one connection; return it with the listener's and the peer's port, or None if another process
    was faster."""
    try:
        accepted, peer = listener.accept()
    except BlockingIOError:
        return None
    accepted.setblocking(True)
    return accepted, (listener.getsockname()[1], peer[1])


def begin_reports(memory: Memory, listeners: list[object]) -> list[socket.socket]:
    """Make the listeners non-blocking; return them, and a pipe for the reports of `serve_and_report`."""
    memory["reports"], memory["report"] = os.pipe()
    fcntl.fcntl(memory["report"], _F_SETPIPE_SZ, _PIPE_BYTES)
    for name in listeners:
        memory[name].setblocking(False)
    return [memory[name] for name in listeners]


def serve_and_report(accepted: socket.socket, ports: tuple[int, int], report: int) -> None:
    """Serve an errand, and report that the calling process did."""
    serve_errand(accepted)
    os.write(report, _REPORT.pack(*ports, os.getpid()))


def served(memory: Memory, count: int) -> dict[tuple[int, int], int]:
    """Map (listener's port, peer's port) to the process that served the connection, once there are `count`."""
    actual = {(port, peer): pid for port, peer, pid in reports(memory, count)}
    assert len(actual) == count
    return actual


def reports(memory: Memory, count: int) -> list[tuple[int, ...]]:
    """Return the reports of `serve_and_report`, once there are `count`: listener's port, peer's port, PID. The kernel
    may give a connection the port of an earlier one."""
    actual = []
    for _ in range(count):
        ready([memory["reports"]])
        actual.append(_REPORT.unpack(os.read(memory["reports"], _REPORT.size)))
    return actual


def swallow(memory: Memory, listener: object, count: int) -> None:
    """Accept `count` connections one by one, and read each until its peer closes."""
    for _ in range(count):
        ready([memory[listener]])
        until_gone(memory[listener].accept()[0])


def storm(memory: Memory, host: str, seconds: float) -> int:
    """Connect, accept and close in a tight loop; return the number of connections."""
    count, end = 0, time.monotonic() + seconds
    with socket.create_server((host, 0), backlog=100) as listener:
        target = listener.getsockname()
        while time.monotonic() < end:
            with socket.socket() as caller:
                caller.connect(target)
                accepted = listener.accept()[0]
                caller.send(b"n" * 13)
                accepted.recv(13)
            accepted.close()
            count += 1
    return count
