# SPDX-License-Identifier: Apache-2.0
"""Processes that exchange the self-test's traffic: forked before nettop has a second thread, and killed with it.

A process runs one command after the other. A command is a method of `_Commands`, sent as JSON over a socket pair.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Callable
from typing import Any, NoReturn

from nettop.errors import NettopError
from nettop.kernel.net import devices
from nettop.kernel.net.namespaces import enter_new_namespace
from nettop.process.parent import signal_at_exit_of_parent

TIMEOUT_S = 10.0
"""Seconds after which a command, which takes milliseconds, has failed."""
_MAX_MESSAGE_BYTES = 1 << 16
_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15
_SO_MEMINFO, _SO_COOKIE = 55, 57
_TOTAL_RETRANS_AT = 100
"""Offset of tcpi_total_retrans in struct tcp_info (include/uapi/linux/tcp.h)."""
_CHUNK = bytes(1 << 16)
_libc = ctypes.CDLL(None, use_errno=True)


class CommandFailed(NettopError):
    """A failed command of a process."""


class TrafficProcess:
    """A process called `name` (at most 15 characters). Create it while there is only one thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _serve(theirs, name, parent)
        theirs.close()
        self._channel.settimeout(TIMEOUT_S + 1)

    def begin(self, command: str, *arguments: object) -> None:
        """Start a command without waiting for its result."""
        with contextlib.suppress(BrokenPipeError):  # result() fails too if the process has exited
            self._channel.send(json.dumps([command, *arguments]).encode())

    def result(self) -> Any:
        """Return the result of the command that was started. Raise CommandFailed if it failed."""
        try:
            message = self._channel.recv(_MAX_MESSAGE_BYTES)
        except TimeoutError:
            message = b""
        if not message:
            raise CommandFailed(f"{self.name} does not answer")
        failed, value = json.loads(message)
        if failed:
            raise CommandFailed(value)
        return value

    def run(self, command: str, *arguments: object) -> Any:
        """Run a command and return its result. Raise CommandFailed if it failed."""
        self.begin(command, *arguments)
        return self.result()

    def close(self) -> None:
        """Kill the process, and with it everything it opened; a second call is a no-op."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._channel.close()
            self.pid = 0


def run_together(*commands: tuple[TrafficProcess, str, object, object]) -> None:
    """Run commands in several processes at once. Raise CommandFailed if one failed, after all have ended."""
    for process, command, *arguments in commands:
        process.begin(command, *arguments)
    failures = []
    for process, *_ in commands:
        try:
            process.result()
        except CommandFailed as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _serve(channel: socket.socket, name: str, parent: int) -> NoReturn:
    """Run commands until nettop exits or closes the channel."""
    try:
        signal_at_exit_of_parent(signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nettop itself reacts to Ctrl-C
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
        # Without root, nettop finds a socket's owner only in /proc, as its user. Safe: nobody gains capabilities
        # by tracing a process that has them (cap_ptrace_access_check in security/commoncap.c).
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        commands = _Commands()
        while os.getppid() == parent and (message := channel.recv(_MAX_MESSAGE_BYTES)):
            command, *arguments = json.loads(message)
            try:
                reply = False, getattr(commands, command)(*arguments)
            except OSError as error:
                reply = True, error.strerror or str(error)
            except NettopError as error:
                reply = True, error.what
            channel.send(json.dumps(reply).encode())
    finally:
        os._exit(0)  # never return into the code that the parent was running


class _Commands:
    """The commands of a traffic process; its sockets have names."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}

    new_namespace = staticmethod(enter_new_namespace)
    make_veth = staticmethod(devices.make_veth)
    set_up = staticmethod(devices.set_up)
    add_address = staticmethod(devices.add_address)

    def wait_until_running(self, device: str) -> None:
        """Wait until packets can pass a device."""
        _wait_until(lambda: devices.is_running(device), f"{device} does not come up")

    def listen(self, name: str, address: str) -> int:
        """Open a TCP listener and return its port."""
        self._sockets[name] = socket.create_server((address, 0), family=_family(address))
        return int(self._sockets[name].getsockname()[1])

    def connect(self, name: str, address: str, port: int) -> None:
        """Open a TCP connection."""
        connection = self._sockets[name] = socket.socket(_family(address))
        connection.settimeout(TIMEOUT_S)
        connection.connect((address, port))

    def accept(self, listener: str, name: str) -> None:
        """Accept a TCP connection."""
        self._sockets[listener].settimeout(TIMEOUT_S)
        self._sockets[name] = self._sockets[listener].accept()[0]
        self._sockets[name].settimeout(TIMEOUT_S)

    def send(self, name: str, amount: int) -> None:
        """Send `amount` bytes."""
        while amount:
            amount -= self._sockets[name].send(_CHUNK[:amount])

    def receive(self, name: str, amount: int) -> None:
        """Receive `amount` bytes."""
        while amount:
            received = len(self._sockets[name].recv(min(amount, len(_CHUNK))))
            if not received:
                raise ConnectionResetError(0, f"the peer closed {amount:,} bytes early")
            amount -= received

    def tcp_facts(self, name: str) -> dict[str, int]:
        """Return the kernel's data on a TCP socket, once the peer has acknowledged everything sent."""
        tcp = self._sockets[name]
        # SIOCOUTQ: bytes that the peer has not acknowledged.
        _wait_until(
            lambda: fcntl.ioctl(tcp, termios.TIOCOUTQ, bytes(4)) == bytes(4),
            "data sent was not acknowledged",
        )
        info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        return _identity(tcp) | {"retransmits": struct.unpack_from("=I", info, _TOTAL_RETRANS_AT)[0]}

    def bind_udp(self, name: str, address: str, port: int = 0) -> int:
        """Open a UDP socket and return its port, by default a free one."""
        udp = self._sockets[name] = socket.socket(_family(address), socket.SOCK_DGRAM)
        udp.settimeout(TIMEOUT_S)
        udp.bind((address, port))
        return int(udp.getsockname()[1])

    def send_datagrams(self, name: str, to: list[Any], count: int, size: int) -> None:
        """Send `count` datagrams of `size` bytes to an address and port."""
        for _ in range(count):
            self._sockets[name].sendto(_CHUNK[:size], tuple(to))

    def receive_datagram(self, name: str) -> None:
        """Receive a datagram."""
        self._sockets[name].recv(len(_CHUNK))

    def send_load(self, name: str, to: list[Any], cpu_ns: int) -> int:
        """Send datagrams of one byte until they have used `cpu_ns` of CPU time. Return this process's CPU time."""
        end_ns = time.process_time_ns() + cpu_ns
        while time.process_time_ns() < end_ns:
            self._sockets[name].sendto(b"n", tuple(to))
        return time.process_time_ns()

    def udp_facts(self, name: str) -> dict[str, int]:
        """Return the kernel's data on a UDP socket, including its receive queue (SO_MEMINFO's first number)."""
        memory = self._sockets[name].getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
        return _identity(self._sockets[name]) | {"receive_queue": struct.unpack_from("=I", memory)[0]}

    def close(self, name: str) -> None:
        """Close a socket."""
        self._sockets.pop(name).close()


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _identity(any_socket: socket.socket) -> dict[str, int]:
    cookie = any_socket.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    return {"id": struct.unpack("=Q", cookie)[0], "pid": os.getpid()}


def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition. Raise TimeoutError if it does not become true in time."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(0, otherwise)
        select.select([], [], [], 0.002)
