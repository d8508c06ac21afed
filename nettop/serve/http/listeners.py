# SPDX-License-Identifier: Apache-2.0
"""Listen addresses and sockets: parsed and checked for remote access, opened while nettop has the capabilities, closed
and removed at exit."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import groupby

from nettop.errors import NettopError, PermissionMissing, UsageError
from nettop.settings.serve import ServeSettings

_MOST_PORT = 65535
_LONGEST_PATH = 107
"""Maximum bytes of a Unix socket's path: sun_path has 108, including the terminating NUL."""
_EXAMPLES = (
    "write HOST:PORT, such as 127.0.0.1:9471, [::1]:9471, or 0.0.0.0:9471 for all addresses; or unix:PATH"
)
_BACKLOG = 65535
"""Connections waiting to be accepted. The kernel caps it at net.core.somaxconn."""
_UNSENT_BYTES = 128 << 10
_UNIX_MODE = 0o660
OpeningAs = Callable[[], AbstractContextManager[object]]
"""Context in which files are opened as the user who named them."""
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of bind() for an address or an address family that this host lacks."""


# --- addresses ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A listen address: `word` as given, its `host` (empty for a path), and the socket address."""

    word: str
    host: str
    family: socket.AddressFamily
    address: str | tuple[str, int] | tuple[str, int, int, int]

    @property
    def is_local(self) -> bool:
        """Whether only this host can reach the address."""
        return isinstance(self.address, str) or ip_address(self.address[0].split("%")[0]).is_loopback


def endpoints_of(word: str, option: str = "--listen") -> tuple[Endpoint, ...]:
    """Resolve a value of the option; a name may have several addresses.

    Raise UsageError for an invalid address, NettopError for an unknown name.
    """
    if word.startswith("unix:"):
        return (_unix_endpoint(word, word.removeprefix("unix:"), option),)
    host, port = _host_and_port(word, option)
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        # UnicodeError: a label of the name is empty or too long.
        why = error.strerror if isinstance(error, OSError) else "not a valid name"
        raise NettopError(
            f"cannot listen on {word}: no address for {host!r} ({why})",
            "give an address instead of the name, as 127.0.0.1:9471",
        ) from error
    return tuple(
        # getaddrinfo() returns these types for these families.
        Endpoint(word, host, family, address)  # type: ignore[arg-type]
        for family, _, _, _, address in known
    )


def checked_listen(settings: ServeSettings, option: str = "--listen") -> tuple[Endpoint, ...]:
    """Return the distinct addresses to listen on.

    Raise UsageError for an invalid address, for a non-loopback one without a token unless the settings allow that, and
    for a certificate without a key or vice versa; NettopError for an unknown name.
    """
    if (settings.cert is None) != (settings.key is None):
        given, missing = ("--cert", "--key") if settings.key is None else ("--key", "--cert")
        raise UsageError(f"{given} without {missing}", "TLS needs both: --cert CHAIN.pem --key KEY.pem")
    endpoints: dict[object, Endpoint] = {}
    for word in settings.listen:
        for endpoint in endpoints_of(word, option):
            endpoints.setdefault((endpoint.family, endpoint.address), endpoint)
    is_guarded = settings.token_file is not None or settings.insecure_listen
    for endpoint in endpoints.values():
        if not (is_guarded or endpoint.is_local):
            raise UsageError(
                f"{endpoint.word} is reachable from other hosts without authentication",
                "require a token with --token-file FILE, or allow everybody with --insecure-listen",
            )
    return tuple(endpoints.values())


def _host_and_port(word: str, option: str) -> tuple[str, int]:
    host, _, port = word.rpartition(":")
    is_enclosed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if is_enclosed else host
    if host in {"", "*"} or (":" in host and not is_enclosed):
        raise UsageError(f"{option} {word!r} has no host", _EXAMPLES)
    if not port.isascii() or not port.isdigit() or int(port) > _MOST_PORT:
        raise UsageError(f"{option} {word!r} has no port from 0 to {_MOST_PORT}", _EXAMPLES)
    return host, int(port)


def _unix_endpoint(word: str, path: str, option: str) -> Endpoint:
    if not path or "\0" in path:
        raise UsageError(f"{option} {word!r} has no path", "give one, as unix:/run/nettop.sock")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UsageError(f"{option} {word!r} is too long", f"give a path of at most {_LONGEST_PATH} bytes")
    return Endpoint(word, "", socket.AF_UNIX, path)


# --- sockets ------------------------------------------------------------------------------------------------


@contextmanager
def open_sockets(
    endpoints: Sequence[Endpoint], opening_files: OpeningAs = nullcontext
) -> Iterator[list[socket.socket]]:
    """Open listening sockets, all or none. On exit close them and remove the files of Unix sockets.

    Create and remove Unix socket files inside `opening_files`. Skip addresses of a name that this host lacks, such as
    ::1 without IPv6. [::] accepts IPv4 too, unless an IPv4 address with the same port is given.

    Raise NettopError for an address that is in use or absent, PermissionMissing for a forbidden one.
    """
    ipv4_ports = {endpoint.address[1] for endpoint in endpoints if endpoint.family == socket.AF_INET}
    with ExitStack() as opened:
        sockets = []
        for _, group in groupby(endpoints, key=lambda endpoint: endpoint.word):
            sockets += _open_any(list(group), ipv4_ports, opened, opening_files)
        yield sockets


def url_of(listener: socket.socket, *, is_tls: bool) -> str:
    """Return the URL of the socket, or the path of a Unix one: `http://[::1]:9471/`, `unix:/run/nettop.sock`."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{address}"
    host = f"[{address[0]}]" if listener.family == socket.AF_INET6 else address[0]
    return f"http{'s' if is_tls else ''}://{host}:{address[1]}/"


def _open_any(
    endpoints: list[Endpoint], ipv4_ports: Collection[object], opened: ExitStack, opening_files: OpeningAs
) -> list[socket.socket]:
    """Open the sockets of one option value. Raise NettopError if none of its addresses exists."""
    sockets: list[socket.socket] = []
    absent: NettopError | None = None
    for endpoint in endpoints:
        try:
            sockets.append(_open(endpoint, ipv4_ports, opened, opening_files))
        except OSError as error:
            failure = _failure(endpoint, error)
            if error.errno not in _ABSENT:
                raise failure from error
            absent = failure
    if absent is not None and not sockets:
        raise absent
    return sockets


def _open(
    endpoint: Endpoint, ipv4_ports: Collection[object], opened: ExitStack, opening_files: OpeningAs
) -> socket.socket:
    listener = opened.enter_context(socket.socket(endpoint.family, socket.SOCK_STREAM))
    if isinstance(endpoint.address, str):
        with opening_files():
            try:
                _bind_path(listener, endpoint.address)
                made = os.lstat(endpoint.address)
            except OSError as error:
                raise _failure(endpoint, error) from error
        opened.callback(_remove, endpoint.address, made, opening_files)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if endpoint.family == socket.AF_INET6:
            # Do not depend on net.ipv6.bindv6only.
            is_ipv6_only = endpoint.address[1] in ipv4_ports
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_ipv6_only)
        # Connections inherit it. Otherwise the kernel buffers megabytes for each client that does not read.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_BYTES)
        listener.bind(endpoint.address)
    listener.listen(_BACKLOG)
    listener.setblocking(False)
    return listener


def _bind_path(listener: socket.socket, path: str) -> None:
    try:
        listener.bind(path)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        _remove_stale(path)
        listener.bind(path)
    # Not a race: nobody can connect before listen().
    os.chmod(path, _UNIX_MODE)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a process that has exited."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise NettopError(f"{path} exists and is not a socket", "choose another path, or remove the file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.setblocking(False)
        # Other errors mean that a process listens: its backlog is full, or the socket has another type.
        if caller.connect_ex(path) != errno.ECONNREFUSED:
            raise NettopError(
                f"another process listens on {path}", f"choose another path; lsof {path} shows the process"
            )
    os.unlink(path)


def _remove(path: str, made: os.stat_result, opening_files: OpeningAs) -> None:
    # nettop may have dropped the permission, or another nettop may have replaced the file.
    with suppress(OSError, NettopError), opening_files():
        if os.path.samestat(os.lstat(path), made):
            os.unlink(path)


def _failure(endpoint: Endpoint, error: OSError) -> NettopError:
    what = f"cannot listen on {endpoint.word}"
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if isinstance(endpoint.address, str):
        kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
        return kind(f"{what}: {reason}", "choose a path in an existing directory that you may write to")
    host, port = endpoint.address[:2]
    if isinstance(error, PermissionError):
        remedy = "choose a port of 1024 or above, or run as root; a security module may also forbid it"
        return PermissionMissing(f"{what}: port {port} needs CAP_NET_BIND_SERVICE", remedy)
    remedy = "choose another address with --listen"
    if error.errno == errno.EADDRINUSE:
        reason = f"port {port} is in use"
        remedy = f"choose another port with --listen; ss -ltnp 'sport = :{port}' shows who uses it"
    elif error.errno in _ABSENT:
        reason = f"this host has no address {host}"
        remedy = "give an address of this host (ip -br address lists them), or 0.0.0.0 or [::] for all"
    return NettopError(f"{what}: {reason}", remedy)
