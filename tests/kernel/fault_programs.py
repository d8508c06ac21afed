# SPDX-License-Identifier: Apache-2.0
"""Programs of the processes in faults.py. Each runs in a worker until the worker is killed.

A server finds its socket in the worker's memory under "listener", a UDP server under "server".
"""

import contextlib
import errno
import os
import resource
import select
import selectors
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import NoReturn

from .traffic import Memory

Address = tuple[str, int]
CHUNK = b"n" * 65536
HELLO = b"hello"
RESET = struct.pack("=ii", 1, 0)
REQUEST = b"GET / HTTP/1.1\r\nHost: webapp\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SYN_SENT, CLOSED = 2, 7
AT_ONCE = 5000
"""Datagrams that a reader in Python can follow in a tenth of a second."""
SO_MAX_PACING_RATE, UDP_SEGMENT = 47, 103


@dataclass(frozen=True)
class Tally:
    """A file in which programs note what the kernel or a server answered: one number per line."""

    path: Path

    def add(self, number: int) -> None:
        """Note one more of this number."""
        with self.path.open("a") as file:
            file.write(f"{number}\n")

    def count(self, number: int) -> int:
        """Return how often this number was noted."""
        return self.path.read_text().split().count(str(number)) if self.path.exists() else 0


def pause(seconds: float) -> None:
    """Wait without using the CPU."""
    select.select([], [], [], max(0.0, seconds))


def every(seconds: float) -> Iterator[int]:
    """Yield 0, 1, 2 … forever at this pace; a late beat delays all later ones."""
    due = time.monotonic()
    for number in count():
        yield number
        due = max(due + seconds, time.monotonic())
        pause(due - time.monotonic())


def forever() -> NoReturn:
    """Wait until the process is killed."""
    while True:
        signal.pause()


def end_on_interrupt(memory: Memory) -> None:
    """End on SIGTERM, whatever the parent does on it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


# --- servers --------------------------------------------------------------------------------------------------


def neglect(memory: Memory) -> None:
    """Do nothing with the listener or socket."""
    forever()


def hold(memory: Memory) -> None:
    """Accept connections, and neither read nor close them."""
    held = []
    while True:
        held.append(memory["listener"].accept()[0])


def hold_until_full(memory: Memory, files: int) -> None:
    """Accept connections until that many descriptors are open, which is the limit, and keep them."""
    limit_files(memory, files)
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(memory["listener"].accept()[0])
    forever()


def chunks(memory: Memory) -> Iterator[tuple[socket.socket, bytes]]:
    """Accept connections, read from all of them, and yield what arrives; close a connection after its peer did."""
    listener: socket.socket = memory["listener"]
    with selectors.EpollSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if connection is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                elif data := received(connection):
                    yield connection, data
                else:
                    selector.unregister(connection)
                    connection.close()


def received(connection: socket.socket) -> bytes:
    """Return the data that has arrived; nothing if the peer has closed or reset the connection."""
    try:
        return connection.recv(len(CHUNK))
    except ConnectionError:
        return b""


def discard(memory: Memory) -> None:
    """Accept connections and read all that arrives."""
    for _ in chunks(memory):
        pass


def echo(memory: Memory) -> None:
    """Accept connections and send back all that arrives."""
    for connection, data in chunks(memory):
        connection.sendall(data)


def reset_each(memory: Memory) -> None:
    """Reset each connection after its first byte."""
    while True:
        with memory["listener"].accept()[0] as connection:
            received(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def close_each(memory: Memory) -> None:
    """Close each connection after its peer did."""
    while True:
        with memory["listener"].accept()[0] as connection:
            received(connection)


def answer_each(memory: Memory) -> None:
    """Answer the one request of each connection, and close it after its peer did."""
    while True:
        with memory["listener"].accept()[0] as connection:
            if received(connection):
                connection.sendall(RESPONSE)
                received(connection)


def worsen_on_interrupt(memory: Memory) -> None:
    """Have SIGUSR1 set memory["worse"]."""
    signal.signal(signal.SIGUSR1, lambda *_: memory.update(worse=True))


def serve_pages(memory: Memory, well_s: float, badly_s: float | None) -> None:
    """Answer each request after `well_s`; once it is worse, after `badly_s`, or never if that is None."""
    for connection, _ in chunks(memory):
        delay = badly_s if memory.get("worse") else well_s
        if delay is not None:
            threading.Timer(delay, connection.sendall, [RESPONSE]).start()


def limit_files(memory: Memory, files: int) -> None:
    """Set the limit of open files."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def hold_files(memory: Memory, target: Address, connections: int, files: int) -> None:
    """Hold that many connections, and open further files until that many descriptors are open."""
    held: list[object] = [socket.create_connection(target) for _ in range(connections)]
    while len(os.listdir("/proc/self/fd")) - 1 < files:  # one of them is the folder's own
        held.append(os.open("/dev/null", os.O_RDONLY))
    forever()


def open_many(memory: Memory, files: int) -> None:
    """Open that many files."""
    memory["held"] = [os.open("/dev/null", os.O_RDONLY) for _ in range(files)]


# --- clients --------------------------------------------------------------------------------------------------


def fill(memory: Memory, target: Address) -> None:
    """Send until the kernel takes no more, and stay blocked."""
    with socket.create_connection(target) as connection:
        while True:
            connection.sendall(CHUNK)


def relay(memory: Memory, target: Address) -> None:
    """Send on what arrives, and read nothing while that is not possible."""
    with socket.create_connection(target) as onward:
        for _, data in chunks(memory):
            onward.sendall(data)


def send_messages(memory: Memory, target: Address, size: int, seconds: float, burst: int = 1) -> None:
    """Send `burst` messages of this size at this pace, each as an own segment."""
    with socket.create_connection(target) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in every(seconds):
            for _ in range(burst):
                connection.sendall(b"n" * size)


def send_on_many(memory: Memory, target: Address, connections: int, size: int, seconds: float) -> None:
    """Send a message of this size at this pace on each of several connections."""
    held = [socket.create_connection(target) for _ in range(connections)]
    for number in every(seconds / connections):
        with contextlib.suppress(BlockingIOError):
            held[number % connections].send(b"n" * size, socket.MSG_DONTWAIT)


def keep_idle_alive(memory: Memory, target: Address) -> None:
    """Send nothing, but a keepalive probe per second, however many are unanswered."""
    with socket.create_connection(target) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 127)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        forever()


def upload(memory: Memory, target: Address, bytes_per_s: int) -> None:
    """Send as fast as the network allows, but not above that rate."""
    with socket.create_connection(target) as connection:
        connection.setsockopt(socket.SOL_SOCKET, SO_MAX_PACING_RATE, bytes_per_s)
        while True:
            connection.sendall(CHUNK)


def greet_and_upload(memory: Memory, target: Address, connections: int) -> None:
    """Exchange a small message on each connection, then start to send much on all but the first.

    Go on with small messages on the first one.
    """
    held = [socket.create_connection(target) for _ in range(connections)]
    for connection in held:
        connection.sendall(HELLO)
        assert connection.recv(len(HELLO)) == HELLO
    for connection in held[1:]:
        connection.setblocking(False)
        connection.send(CHUNK)
    for _ in every(0.1):
        held[0].sendall(HELLO)
        held[0].recv(len(HELLO))


@dataclass(frozen=True)
class Attempts:
    """Connections to make, one every `seconds`; one without an outcome is given up after `patience_s`."""

    target: Address
    seconds: float
    patience_s: float = 3600
    greeting: bytes = b""


def keep_connecting(memory: Memory, attempts: Attempts, tally: Tally | None = None) -> None:
    """Make connections, tally the errors, and hold the last thousand that succeed after sending the greeting."""
    tried: dict[socket.socket, float] = {}
    held: deque[socket.socket] = deque(maxlen=1000)
    for _ in every(attempts.seconds):
        try_once(attempts.target, tried, tally)
        for caller, began in list(tried.items()):
            state = state_of(caller)
            if state == SYN_SENT and time.monotonic() - began < attempts.patience_s:
                continue
            del tried[caller]
            if state in (SYN_SENT, CLOSED):
                note(tally, caller.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ETIMEDOUT)
                caller.close()
            else:
                caller.send(attempts.greeting)
                held.append(caller)
        while held and state_of(held[0]) == CLOSED:  # by a reset
            held.popleft().close()


def state_of(connection: socket.socket) -> int:
    """Return the state of a TCP socket, as the kernel numbers it."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def try_once(target: Address, tried: dict[socket.socket, float], tally: Tally | None) -> None:
    """Begin one connection; tally the error if it fails at once."""
    caller = socket.socket()
    caller.setblocking(False)
    error = caller.connect_ex(target)
    if error in (0, errno.EINPROGRESS):
        tried[caller] = time.monotonic()
    else:
        caller.close()
        note(tally, error)


def note(tally: Tally | None, error: int) -> None:
    """Tally an error."""
    if tally:
        tally.add(error)


def connect_and_close(memory: Memory, target: Address, first: int, limit: int, seconds: float) -> None:
    """Open and close `first` connections at once, then more at this pace up to the limit."""
    for _ in range(first):
        socket.create_connection(target).close()
    for number in every(seconds):
        if number < limit - first:
            socket.create_connection(target).close()


def crawl(memory: Memory, port: int, hosts: int, per_s: int) -> None:
    """Open that many connections per second, to addresses in turn, with one request each."""
    per_beat = per_s // 100
    for number in every(0.01):
        for turn in range(per_beat):
            host = (number * per_beat + turn) % hosts + 1
            with socket.create_connection((f"127.0.1.{host}", port)) as connection:
                connection.sendall(REQUEST)
                connection.recv(len(CHUNK))


def keep_in_time_wait(memory: Memory, target: Address, sockets: int) -> None:
    """Open and close connections whenever fewer sockets than that are in TIME_WAIT, or on their way there."""
    for _ in every(0.05):
        for _ in range(sockets - tcp_sockets("inuse") - tcp_sockets("tw")):
            socket.create_connection(target).close()


def keep_orphans(memory: Memory, target: Address, sockets: int) -> None:
    """Open and close connections whenever fewer sockets than that are orphaned."""
    for _ in every(0.2):  # the kernel counts them every 100 ms
        for _ in range(sockets - tcp_sockets("orphan")):
            socket.create_connection(target).close()


def tcp_sockets(name: str) -> int:
    """Return the number of TCP sockets that sockstat has under this name."""
    words = Path("/proc/self/net/sockstat").read_text().split("TCP: ")[1].split()
    return int(words[words.index(name) + 1])


def leak(memory: Memory, target: Address, at_once: int, seconds: float) -> None:
    """Open that many connections, then one more at this pace, and close none."""
    held = [socket.create_connection(target) for _ in range(at_once)]
    held.extend(socket.create_connection(target) for _ in every(seconds))


def ask(target: Address, seconds: float) -> None:
    """Ask for a page at this pace over one connection, but never before the last one has arrived."""
    with socket.create_connection(target) as connection:
        for _ in every(seconds):
            connection.sendall(REQUEST)
            assert connection.recv(len(CHUNK)) == RESPONSE


def ask_all(memory: Memory, target: Address, connections: int, per_s: float) -> None:
    """Ask for that many pages per second over that many connections."""
    for _ in range(connections):
        threading.Thread(target=ask, args=(target, connections / per_s), daemon=True).start()
        pause(1 / per_s)
    forever()


def send_and_wait(memory: Memory, target: Address) -> None:
    """Send one request, and wait for the response."""
    with socket.create_connection(target) as connection:
        connection.sendall(REQUEST)
        connection.recv(1)


# --- datagrams ------------------------------------------------------------------------------------------------


def bind_udp(memory: Memory, at: Address) -> None:
    """Open a UDP server."""
    memory["server"] = socket.socket(type=socket.SOCK_DGRAM)
    memory["server"].bind(at)


def shrink_receive_buffer(memory: Memory, size: int) -> None:
    """Set the receive buffer of the UDP server."""
    memory["server"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def read_slowly(memory: Memory, seconds: float) -> None:
    """Read one datagram at this pace."""
    for _ in every(seconds):
        memory["server"].recv(2048)


def send_datagrams(memory: Memory, target: Address, size: int, per_s: int) -> None:
    """Send datagrams to any that listens there, or to nobody."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in every(0.01):
            for _ in range(per_s // 100):
                try_to_send(sender, b"n" * size, target)


def use_cpu(memory: Memory, cpu: int) -> None:
    """Run on this CPU only."""
    os.sched_setaffinity(0, {cpu})


def send_without_end(memory: Memory, target: Address, cpu: int) -> None:
    """Send datagrams that may pass many routers as fast as one CPU can, before other processes."""
    os.sched_setaffinity(0, {cpu})
    os.nice(-20)
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
        while True:
            try_to_send(sender, b"n", target)


def send_bursts(memory: Memory, target: Address, segments: int, seconds: float) -> None:
    """Send that many datagrams at once at this pace: the kernel splits what is sent."""
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
        for _ in every(seconds):
            sender.sendto(b"n" * 100 * segments, target)


def try_to_send(sender: socket.socket, data: bytes, target: Address) -> None:
    """Send one datagram; ignore the kernel's refusal, which the fault may be about."""
    try:
        sender.sendto(data, target)
    except OSError as error:
        if error.errno not in (errno.ENOBUFS, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH):
            raise


def fill_table(memory: Memory, target: str, entries: int) -> None:
    """Send datagrams until conntrack has that many entries, and replace expired ones."""
    sends = send_each(target)
    for _ in every(0.1):
        missing = entries - int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
        for _ in islice(sends, max(0, min(missing, AT_ONCE))):
            pass


def send_each(target: str) -> Iterator[None]:
    """Send a datagram at each step, each between ports of its own."""
    for source in count(20000):
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.bind(("", source))
            for port in range(1024, 65000):
                sender.sendto(b"", (target, port))
                yield


def look_up(memory: Memory, server: Address, seconds: float, tally: Tally) -> None:
    """Ask a DNS server at this pace, each time from a new socket, connected as that of glibc's resolver; tally the
    response codes. Give up a query after 5 seconds."""
    asked: dict[socket.socket, float] = {}
    for number in every(seconds):
        query = socket.socket(type=socket.SOCK_DGRAM)
        query.setblocking(False)
        query.connect(server)
        query.send(dns_query(number & 0xFFFF))
        asked[query] = time.monotonic()
        for old, began in list(asked.items()):
            if answered(old, tally) or time.monotonic() - began > 5:
                del asked[old]
                old.close()


def ask_without_end(memory: Memory, server: Address, per_s: int) -> None:
    """Send that many queries per second, and wait for no response."""
    numbers = count()
    with socket.socket(type=socket.SOCK_DGRAM) as sender:
        for _ in every(0.01):
            for number in islice(numbers, per_s // 100):
                sender.sendto(dns_query(number & 0xFFFF), server)


def answered(query: socket.socket, tally: Tally) -> bool:
    """Tally the response code if the server has answered."""
    try:
        tally.add(query.recv(512)[3] & 15)
    except (BlockingIOError, ConnectionRefusedError):
        return False
    return True


def dns_query(number: int) -> bytes:
    """Return a query for the address of payments.example."""
    name = b"".join(bytes([len(label)]) + label for label in (b"payments", b"example", b""))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1)


def dns_answer(query: bytes, code: int) -> bytes:
    """Return a response with this code, and with an address if the code is 0."""
    responses = 0 if code else 1
    address = struct.pack("!3HIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("192.0.2.80")
    head = query[:2] + struct.pack("!5H", 0x8180 | code, 1, responses, 0, 0)
    return head + query[12:] + address * responses


def serve_names(memory: Memory, delay_s: float | None, code: int = 0) -> None:
    """Answer DNS queries after this delay; read and ignore them if it is None."""
    server: socket.socket = memory["server"]
    while True:
        query, client = server.recvfrom(512)
        if delay_s is not None:
            send = partial(server.sendto, dns_answer(query, code), client)
            threading.Timer(delay_s, send).start()
