# SPDX-License-Identifier: Apache-2.0
"""What workers do with sockets. Each function runs in a worker; its first argument is that worker's own memory.

A worker keeps its sockets in memory under names of the test's choice, mostly the number of a connection.
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
from .lab import die_with_parent, until

Memory = dict[Any, Any]
SIOCOUTQ, SIOCINQ = termios.TIOCOUTQ, termios.FIONREAD
V4, V6 = socket.AF_INET, socket.AF_INET6
ESTABLISHED = 1
CHUNK = b"n" * 65536


@dataclass(frozen=True)
class Call:
    """One connection to make: where from, where to, and what is set before it connects."""

    target: tuple[str, int]
    source: tuple[str, int] | None = None
    mss: int = 0
    uid: int = 0
    mapped: bool = False
    options: tuple[tuple[int, int, int], ...] = field(default=())


def prime_after(number: int) -> int:
    """The smallest prime above `number`."""
    number += 1
    while number < 2 or any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Sockets made inside belong to that user."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        die_with_parent()  # the kernel forgets that when the user changes


def listen(memory: Memory, name: object, address: str = "", port: int = 0, backlog: int = 4096) -> int:
    """Opens a TCP listener (dual-stack where the address is "::") and returns its port."""
    family = V6 if ":" in address else V4
    listener = socket.create_server(
        (address, port), family=family, backlog=backlog, dualstack_ipv6=address == "::"
    )
    memory[name] = listener
    return int(listener.getsockname()[1])


def udp(memory: Memory, name: object, address: str, to: tuple[str, int] | None = None) -> int:
    """Opens a bound UDP socket, connected if told where to, and returns its port."""
    memory[name] = socket.socket(V6 if ":" in address else V4, socket.SOCK_DGRAM)
    memory[name].bind((address, 0))
    if to:
        memory[name].connect(to)
    return int(memory[name].getsockname()[1])


def connect(memory: Memory, name: object, call: Call, at_once: bool = False) -> int:
    """Makes one connection and returns its local port; `at_once` does not wait for the peer's answer."""
    host, port = call.target
    if call.mapped:
        host = f"::ffff:{host}"
    with as_user(call.uid):
        made = socket.socket(V6 if ":" in host else V4)
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
    """Makes connection number i by calls[i], all at the same time; returns their local ports, by number too."""
    by_number = calls if isinstance(calls, dict) else dict(enumerate(calls))
    ports = {number: connect(memory, number, call, at_once=True) for number, call in by_number.items()}
    for number in by_number:
        in_state(memory, number, ESTABLISHED)
    return ports if isinstance(calls, dict) else list(ports.values())


def connect_without_answer(memory: Memory, name: object, call: Call) -> None:
    """Sends a SYN and goes on."""
    connect(memory, name, call, at_once=True)


def accept(memory: Memory, listener: object, name: object, uid: int = 0) -> int:
    """Accepts one connection; returns the peer's port."""
    ready([memory[listener]])
    with as_user(uid):
        memory[name], peer = memory[listener].accept()
    return int(peer[1])


def accept_ports(memory: Memory, listener: object, numbers: dict[int, int], users: int = 1) -> None:
    """Accepts all of them; `numbers` gives each connection's number by the peer's port."""
    for turn in range(len(numbers)):
        port = accept(memory, listener, "new", 3000 + turn % users if users > 1 else 0)
        memory[numbers[port]] = memory.pop("new")


def ready(readable: list[socket.socket], deadline_s: float = 30) -> None:
    """Waits until one of them has something to read or accept."""
    assert select.select(readable, [], [], deadline_s)[0], f"nothing arrived within {deadline_s} s"


def exchange(memory: Memory, send: dict[Any, int], receive: dict[Any, int], deadline_s: float = 120) -> None:
    """Moves exactly these bytes over the named sockets, all at once, in both directions."""
    send, receive = dict(send), dict(receive)
    poll, names = select.epoll(), {}
    for name in send.keys() | receive.keys():
        memory[name].setblocking(False)
        names[memory[name].fileno()] = name
        poll.register(memory[name], interest(send.get(name, 0), receive.get(name, 0)))
    end = time.monotonic() + deadline_s
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
    """The epoll events that still matter."""
    return (select.EPOLLOUT if to_send else 0) | (select.EPOLLIN if to_receive else 0)


def send(memory: Memory, amounts: dict[Any, int]) -> dict[Any, int]:
    """Hands bytes to the kernel without waiting for the peer; returns how many it took."""
    taken = {}
    for name, amount in amounts.items():
        memory[name].setblocking(False)
        taken[name] = memory[name].send(b"n" * amount)
    return taken


def shut(memory: Memory, names: list[Any], how: int = socket.SHUT_WR) -> None:
    """Ends the sending direction of these sockets (a FIN), the descriptors stay open."""
    for name in names:
        memory[name].shutdown(how)


def close(memory: Memory, names: list[Any]) -> None:
    """Closes these sockets."""
    for name in names:
        memory.pop(name).close()


def linger(memory: Memory, names: list[Any]) -> None:
    """These sockets will be reset when they close."""
    for name in names:
        memory[name].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))


def queued(held: socket.socket, request: int) -> int:
    """SIOCOUTQ (not yet acknowledged) or SIOCINQ (not yet read), in bytes."""
    return int(struct.unpack("=i", fcntl.ioctl(held, request, b"\0\0\0\0"))[0])


def acknowledged(memory: Memory, names: list[Any]) -> None:
    """Waits until the peers acknowledged all that these sockets sent."""
    for name in names:
        until(lambda name=name: queued(memory[name], SIOCOUTQ) == 0, f"{name} is acknowledged")


def arrived(memory: Memory, amounts: dict[Any, int]) -> None:
    """Waits until that many bytes wait unread in each of these sockets."""
    for name, amount in amounts.items():
        until(
            lambda name=name, amount=amount: queued(memory[name], SIOCINQ) >= amount,
            f"{amount} bytes for {name}",
        )


def in_state(memory: Memory, name: object, number: int) -> None:
    """Waits until TCP_INFO gives that state number (1 ESTABLISHED … 11 CLOSING)."""
    until(lambda: oracle.tcp_info(memory[name])["state"] == number, f"{name} reaches state {number}")


def cookie(memory: Memory, name: object) -> int:
    """SO_COOKIE of one socket."""
    return oracle.cookie(memory[name])


def cookies(memory: Memory, names: list[Any]) -> dict[Any, int]:
    """SO_COOKIE by name."""
    return {name: oracle.cookie(memory[name]) for name in names}


def address(memory: Memory, name: object) -> tuple[str, int]:
    """The local address and port."""
    found = memory[name].getsockname()
    return str(found[0]), int(found[1])
