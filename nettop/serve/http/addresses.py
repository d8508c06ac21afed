# SPDX-License-Identifier: Apache-2.0
"""Parse --listen and similar options into socket addresses, and check them for remote access."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from nettop.errors import NettopError, UsageError
from nettop.settings import ServeSettings

_MOST_PORT = 65535
_LONGEST_PATH = 107
"""Maximum bytes of a Unix socket's path: sun_path has 108, including the terminating NUL."""
_EXAMPLES = "write HOST:PORT, such as 127.0.0.1:9471 or [::1]:9471, or unix:PATH"


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
    if settings.token_file is None and not settings.insecure_listen:
        _refuse_remote(endpoints.values())
    return tuple(endpoints.values())


def _refuse_remote(endpoints: Iterable[Endpoint]) -> None:
    for endpoint in endpoints:
        if not endpoint.is_local:
            raise UsageError(
                f"{endpoint.word} is reachable from other hosts without authentication",
                "require a token with --token-file FILE, or allow everybody with --insecure-listen",
            )


def _host_and_port(word: str, option: str) -> tuple[str, int]:
    host, colon, port = word.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _MOST_PORT:
        raise UsageError(f"{option} {word!r} has no port from 0 to {_MOST_PORT}", _EXAMPLES)
    if host in {"", "*", "[]"}:
        remedy = f"give 127.0.0.1:{port} for this host only, 0.0.0.0:{port} or [::]:{port} for all"
        raise UsageError(f"{option} {word!r} has no host", remedy)
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], int(port)
    if ":" in host:
        remedy = f"write an IPv6 address in brackets: [{host}]:{port}"
        raise UsageError(f"{option} {word!r} has more than one colon", remedy)
    return host, int(port)


def _unix_endpoint(word: str, path: str, option: str) -> Endpoint:
    if not path or "\0" in path:
        raise UsageError(f"{option} {word!r} has no path", "give one, as unix:/run/nettop.sock")
    path = os.path.abspath(path)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UsageError(f"{option} {word!r} is too long", f"give a path of at most {_LONGEST_PATH} bytes")
    return Endpoint(word, "", socket.AF_UNIX, path)
