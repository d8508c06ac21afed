# SPDX-License-Identifier: Apache-2.0
"""The processes between which the self-test moves traffic: forked before nettop has a second thread, and gone with it.

A peer obeys one order after the other, JSON over a socket pair: a function of this module's table, its sockets
kept under names.
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
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from nettop.errors import NettopError
from nettop.kernel.namespaces import enter_new_namespace
from nettop.selftest import veth

PATIENCE_S = 10.0
"""What takes longer has failed; on a machine that does anything else it takes a moment."""
_MOST_BYTES = 1 << 16
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15
_SO_MEMINFO, _SO_COOKIE = 55, 57
_TOTAL_RETRANS_AT = 100
"""tcpi_total_retrans in struct tcp_info (include/uapi/linux/tcp.h)."""
_CHUNK = bytes(1 << 16)
_libc = ctypes.CDLL(None, use_errno=True)

Sockets = dict[str, socket.socket]


class CommandFailed(NettopError):
    """A peer could not do what it was told."""


class TrafficProcess:
    """One process, called `name` (at most 15 characters). Made while there is one thread only."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            self._channel.close()
            _obey(theirs, name, parent)
        theirs.close()
        self._channel.settimeout(PATIENCE_S + 1)

    def begin(self, order: str, *words: object) -> None:
        """Have an order carried out, and do not wait."""
        with contextlib.suppress(BrokenPipeError):  # a peer that has ended gives no answer either
            self._channel.send(json.dumps([order, *words]).encode())

    def answer(self) -> Any:
        """What the order that was begun gives. Raises CommandFailed."""
        try:
            told = self._channel.recv(_MOST_BYTES)
        except TimeoutError:
            told = b""
        if not told:
            raise CommandFailed(f"{self.name} does not answer")
        failed, value = json.loads(told)
        if failed:
            raise CommandFailed(value)
        return value

    def tell(self, order: str, *words: object) -> Any:
        """What an order gives. Raises CommandFailed."""
        self.begin(order, *words)
        return self.answer()

    def close(self) -> None:
        """End the process, and with it all that it has; a second call does nothing."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._channel.close()
            self.pid = 0


def together(*orders: tuple[TrafficProcess, str, object, object]) -> None:
    """Have peers carry out orders at the same time. Raises CommandFailed when one cannot, after all have ended."""
    for peer, order, *words in orders:
        peer.begin(order, *words)
    failed = []
    for peer, *_ in orders:
        try:
            peer.answer()
        except CommandFailed as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _obey(channel: socket.socket, name: str, parent: int) -> NoReturn:
    """The life of a peer, until nettop ends or closes the channel."""
    try:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is nettop's to answer
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        _libc.prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
        sockets: Sockets = {}
        while os.getppid() == parent and (told := channel.recv(_MOST_BYTES)):
            order, *words = json.loads(told)
            channel.send(json.dumps(_carry_out(sockets, order, words)).encode())
    finally:
        os._exit(0)  # never back into what the parent was about to do


def _carry_out(sockets: Sockets, order: str, words: list[Any]) -> tuple[bool, Any]:
    try:
        return False, _ORDERS[order](sockets, *words)
    except OSError as error:
        return True, error.strerror or str(error)


# --- orders ---------------------------------------------------------------------------------------------------


def _isolate(_: Sockets) -> int:
    """Go into a new network namespace; its inode number."""
    return enter_new_namespace()


def _wire(_: Sockets, device: str, peer: str, peer_pid: int) -> None:
    veth.make_veth(device, peer, peer_pid)


def _up(_: Sockets, device: str) -> None:
    veth.set_up(device)


def _address(_: Sockets, device: str, address: str, prefix: int) -> None:
    veth.add_address(device, address, prefix)


def _running(_: Sockets, device: str) -> None:
    _until(lambda: veth.is_running(device), f"{device} does not come up")


def _listen(sockets: Sockets, name: str, address: str) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sockets[name] = socket.create_server((address, 0), family=family)
    return int(sockets[name].getsockname()[1])


def _connect(sockets: Sockets, name: str, address: str, port: int) -> dict[str, int]:
    made = sockets[name] = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.settimeout(PATIENCE_S)
    made.connect((address, port))
    return _facts(sockets, name)


def _accept(sockets: Sockets, listener: str, name: str) -> dict[str, int]:
    sockets[listener].settimeout(PATIENCE_S)
    sockets[name] = sockets[listener].accept()[0]
    sockets[name].settimeout(PATIENCE_S)
    return _facts(sockets, name)


def _send(sockets: Sockets, name: str, amount: int) -> None:
    while amount:
        amount -= sockets[name].send(_CHUNK[:amount])


def _receive(sockets: Sockets, name: str, amount: int) -> None:
    while amount:
        came = len(sockets[name].recv(min(amount, len(_CHUNK))))
        if not came:
            raise ConnectionResetError(0, f"the peer closed, {amount:,} bytes early")
        amount -= came


def _settle(sockets: Sockets, name: str) -> dict[str, int]:
    """Wait until the peer has acknowledged all; the facts then."""
    _until(lambda: _queued(sockets[name]) == 0, "what was sent is not acknowledged")
    return _facts(sockets, name)


def _udp(sockets: Sockets, name: str, address: str) -> int:
    made = sockets[name] = socket.socket(
        socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM
    )
    made.bind((address, 0))
    return int(made.getsockname()[1])


def _datagrams(sockets: Sockets, name: str, to: list[Any], count: int, size: int) -> None:
    for _ in range(count):
        sockets[name].sendto(_CHUNK[:size], tuple(to))


def _waiting(sockets: Sockets, name: str) -> dict[str, int]:
    """The facts of a UDP socket, and what its receive queue takes (SO_MEMINFO's first number)."""
    memory = sockets[name].getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 64)
    return _identity(sockets, name) | {"waiting": struct.unpack_from("=I", memory)[0]}


def _close(sockets: Sockets, name: str) -> None:
    sockets.pop(name).close()


def _facts(sockets: Sockets, name: str) -> dict[str, int]:
    """What the kernel itself says of a TCP socket."""
    info = sockets[name].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    return _identity(sockets, name) | {"retransmits": struct.unpack_from("=I", info, _TOTAL_RETRANS_AT)[0]}


def _identity(sockets: Sockets, name: str) -> dict[str, int]:
    cookie = sockets[name].getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8)
    return {"id": struct.unpack("=Q", cookie)[0], "pid": os.getpid()}


_ORDERS: Mapping[str, Callable[..., Any]] = {
    "isolate": _isolate,
    "wire": _wire,
    "up": _up,
    "address": _address,
    "running": _running,
    "listen": _listen,
    "connect": _connect,
    "accept": _accept,
    "send": _send,
    "receive": _receive,
    "settle": _settle,
    "udp": _udp,
    "datagrams": _datagrams,
    "waiting": _waiting,
    "close": _close,
}


def _queued(held: socket.socket) -> int:
    """SIOCOUTQ: bytes that the peer has not acknowledged."""
    return int(struct.unpack("=i", fcntl.ioctl(held, termios.TIOCOUTQ, bytes(4)))[0])


def _until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition. Raises TimeoutError when it does not come true in time."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(0, otherwise)
        select.select([], [], [], 0.002)
