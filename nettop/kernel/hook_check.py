# SPDX-License-Identifier: Apache-2.0
"""Checks that an attached hook fires, with traffic in a private network namespace.

A function may exist, accept a probe, and yet never be called, because the compiler has inlined it or the kernel takes
another path. Such a hook would count 0, and that would look like a measurement.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from concurrent.futures import Future, ThreadPoolExecutor, wait

from nettop.errors import limit_reached
from nettop.kernel import privileges
from nettop.kernel.capabilities import require
from nettop.kernel.namespaces import enter_new_namespace

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("=16sH22x")
_TIMEOUT_S = 5.0
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_UNREACHABLE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses for documentation (RFC 5737, RFC 3849), to which the namespace has no route."""
_ANY_PORT = 9
_RESET = struct.pack("=ii", 1, 0)


class HookCheck:
    """A private network namespace, and the one thread in it. The namespace ends when this is closed.

    Entering it takes CAP_SYS_ADMIN and CAP_NET_ADMIN; traffic in it takes no capability.
    """

    def __init__(self) -> None:
        """Begin to enter."""
        self._thread = ThreadPoolExecutor(1, "hook-check")
        try:
            self._entered: Future[int] = self._thread.submit(_enter)
        except RuntimeError as error:  # no thread can be started; hooks are then used unchecked
            self._entered = Future()
            self._entered.set_exception(limit_reached("no check", error) or error)

    def wait_until_entered(self) -> None:
        """Wait until the namespace is entered, or that has failed."""
        wait([self._entered])

    def inode(self) -> int:
        """The namespace's inode number. Raises OSError or NettopError where it could not be entered."""
        return self._entered.result()

    def make_traffic(self) -> frozenset[int]:
        """Connect, accept, send, receive and close, and fail to connect for want of a route, by TCP and UDP; wait until
        all is done.

        Returns the address families that this host supports. Raises what `inode` does.
        """
        self.inode()
        return self._thread.submit(_make_traffic).result()

    def close(self) -> None:
        """Leave the namespace, which then ends; a second call does nothing."""
        self._thread.shutdown()


def _enter() -> int:
    try:
        inode = enter_new_namespace()
    except OSError as error:
        raise OSError(error.errno, f"no network namespace can be made: {error.strerror}") from error
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:  # to bring the loopback device up
        name, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        try:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))
        except PermissionError:
            require({privileges.CAP_NET_ADMIN}, "switching its loopback device on")
            raise
    privileges.keep_only(privileges.for_reading())
    return inode


def _make_traffic() -> frozenset[int]:
    families = frozenset(filter(_is_supported, _LOOPBACK))
    _exchange_bytes(socket.AF_INET)
    if socket.AF_INET6 in families:
        with contextlib.suppress(OSError):  # a host may have disabled IPv6 on its devices
            _exchange_bytes(socket.AF_INET6)
    for family in families:
        unreachable = (_UNREACHABLE[family], _ANY_PORT)
        with _with_timeout(socket.socket(family)) as client, contextlib.suppress(OSError):
            client.connect(unreachable)
        with socket.socket(family, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
            sender.sendto(b"n", unreachable)
    return families


def _is_supported(family: int) -> bool:
    try:
        socket.socket(family).close()
    except OSError:
        return False
    return True


def _exchange_bytes(family: socket.AddressFamily) -> None:
    """Send a datagram. Then open a connection, send a byte each way, and reset it: the other end is closed as soon as
    it reads of the reset, and nothing is left that could end later."""
    with _with_timeout(socket.socket(family, socket.SOCK_DGRAM)) as own:
        own.bind((_LOOPBACK[family], 0))
        own.sendto(b"n", own.getsockname())
        own.recv(1)
    with (
        _with_timeout(socket.create_server((_LOOPBACK[family], 0), family=family)) as listener,
        _with_timeout(socket.socket(family)) as client,
    ):
        client.connect(listener.getsockname())
        with _with_timeout(listener.accept()[0]) as accepted:
            for sender, receiver in ((client, accepted), (accepted, client)):
                sender.sendall(b"n")
                receiver.recv(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            client.close()
            with contextlib.suppress(ConnectionResetError):
                accepted.recv(1)


def _with_timeout(new_socket: socket.socket) -> socket.socket:
    """The socket, which waits for nothing longer than `_TIMEOUT_S`."""
    new_socket.settimeout(_TIMEOUT_S)
    return new_socket
