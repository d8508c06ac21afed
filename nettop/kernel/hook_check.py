# SPDX-License-Identifier: Apache-2.0
"""A room for results: a network namespace of nettop's own, in which it makes traffic to see whether hooks are passed.

A function can be there, and be hooked, and yet never be called, because the compiler has put its body into its
callers or the kernel takes another way. What such a hook counts would be 0, and look like a measurement.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from concurrent.futures import Future, ThreadPoolExecutor, wait

from nettop.kernel import privileges
from nettop.kernel.namespaces import enter_new_namespace

_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("=16sH22x")
_PATIENCE_S = 5.0
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
_NOWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of documentation (RFC 5737, RFC 3849), to which no route leads from the room."""
_ANY_PORT = 9
_RESET = struct.pack("=ii", 1, 0)


class HookCheck:
    """The namespace, and the one thread in it; it is there until it is closed.

    To enter it needs CAP_SYS_ADMIN and CAP_NET_ADMIN, what is done in it none.
    """

    def __init__(self) -> None:
        """Begin to enter."""
        self._thread = ThreadPoolExecutor(1, "trial")
        self._entered: Future[int] = self._thread.submit(_enter)

    def settle(self) -> None:
        """Wait until the namespace is entered, or cannot be."""
        wait([self._entered])

    def inode(self) -> int:
        """The namespace's inode number. Raises OSError where none can be had, or NettopError."""
        return self._entered.result()

    def make_traffic(self) -> frozenset[int]:
        """Connect, accept, send, receive and close, and fail to connect, for want of a route; all of it has
        happened when this returns. Gives the address families that this host has. Raises what `inode` does."""
        self.inode()
        return self._thread.submit(_make_traffic).result()

    def close(self) -> None:
        """Leave the namespace, which ends with that; a second call does nothing."""
        self._thread.shutdown()


def _enter() -> int:
    try:
        inode = enter_new_namespace()
    except OSError as error:
        raise OSError(error.errno, f"no network namespace can be made: {error.strerror}") from error
    _bring_loopback_up()
    privileges.keep_only(privileges.for_reading())
    return inode


def _bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name, flags = _IFREQ.unpack(fcntl.ioctl(any_socket, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _make_traffic() -> frozenset[int]:
    families = frozenset(family for family in _LOOPBACK if _is_here(family))
    _move_a_byte_each_way(socket.AF_INET)
    if socket.AF_INET6 in families:
        with contextlib.suppress(OSError):  # which a host may have switched off at its devices
            _move_a_byte_each_way(socket.AF_INET6)
    for family in families:
        with _patient(socket.socket(family)) as caller, contextlib.suppress(OSError):
            caller.connect((_NOWHERE[family], _ANY_PORT))
    return families


def _is_here(family: int) -> bool:
    try:
        socket.socket(family).close()
    except OSError:
        return False
    return True


def _move_a_byte_each_way(family: socket.AddressFamily) -> None:
    """A connection from its beginning to its end. It ends by a reset: what is reset at one end is closed at the
    other as soon as that reads of it, and nothing is left that could end later."""
    with (
        _patient(socket.create_server((_LOOPBACK[family], 0), family=family)) as listener,
        _patient(socket.socket(family)) as caller,
    ):
        caller.connect(listener.getsockname())
        with _patient(listener.accept()[0]) as accepted:
            for sender, receiver in ((caller, accepted), (accepted, caller)):
                sender.sendall(b"n")
                receiver.recv(1)
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            caller.close()
            with contextlib.suppress(ConnectionResetError):
                accepted.recv(1)


def _patient(made: socket.socket) -> socket.socket:
    """The socket, which waits for nothing longer than `_PATIENCE_S`."""
    made.settimeout(_PATIENCE_S)
    return made
