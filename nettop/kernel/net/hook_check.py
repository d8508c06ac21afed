# SPDX-License-Identifier: Apache-2.0
"""Check that attached hooks fire, with traffic in a private network namespace.

A function may exist and accept a probe yet never be called, because the compiler inlined it or the kernel takes another
path. Such a hook would count 0, which would look like a measurement.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from concurrent.futures import Future, ThreadPoolExecutor, wait

from nettop.errors import limit_reached
from nettop.kernel.host import privileges
from nettop.kernel.net import devices
from nettop.kernel.net.namespaces import enter_new_namespace

_TIMEOUT_S = 5.0
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_UNREACHABLE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Documentation addresses (RFC 5737, RFC 3849), to which the namespace has no route."""
_ANY_PORT = 9
_RESET = struct.pack("=ii", 1, 0)


class HookCheck:
    """A private network namespace with a single thread in it, destroyed on close().

    Entering it needs CAP_SYS_ADMIN and CAP_NET_ADMIN; traffic in it needs no capability.
    """

    def __init__(self) -> None:
        """Start entering the namespace."""
        self._thread = ThreadPoolExecutor(1, "hook-check")
        try:
            self._entered: Future[int] = self._thread.submit(_enter)
        except RuntimeError as error:  # no thread could be started; hooks are then used unchecked
            self._entered = Future()
            self._entered.set_exception(limit_reached("no check", error) or error)

    def wait_until_entered(self) -> None:
        """Wait until entering the namespace has succeeded or failed."""
        wait([self._entered])

    def inode(self) -> int:
        """Return the namespace's inode number. Raise OSError or NettopError if it could not be entered."""
        return self._entered.result()

    def make_traffic(self) -> frozenset[int]:
        """Connect, accept, send, receive and close over TCP and UDP, and fail to connect without a route; wait until
        all is done.

        Returns the address families that this host supports. Raise what `inode` raises.
        """
        self.inode()
        return self._thread.submit(_make_traffic).result()

    def close(self) -> None:
        """Leave the namespace, which destroys it; a second call is a no-op."""
        self._thread.shutdown()


def _enter() -> int:
    try:
        inode = enter_new_namespace()
    except OSError as error:
        raise OSError(error.errno, f"cannot create a network namespace: {error.strerror}") from error
    devices.set_up("lo")
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
    """Send a datagram. Then open a connection, send a byte each way, and reset it: the other end closes as soon as it
    reads the reset, so nothing is left to close later."""
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
    """Set the timeout `_TIMEOUT_S` on a socket and return it."""
    new_socket.settimeout(_TIMEOUT_S)
    return new_socket
