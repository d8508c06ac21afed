# SPDX-License-Identifier: Apache-2.0
"""Addresses and names taken out of text, the same one always for the same word."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from nettop.kernel.facts import Host, container_of
from nettop.kernel.namespaces import find_namespaces

_MAC = re.compile(r"(?<![0-9A-Za-z:-])(?:[0-9A-Fa-f]{2}[:-]){5,}[0-9A-Fa-f]{2}(?![0-9A-Za-z])")
_IPV6 = re.compile(r"(?<![\w.:])(?=[^\s]*:[^\s]*:)[0-9A-Fa-f:.]+")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]*\w)")
_CONTAINER = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")
_HOME = re.compile(r"(?<=/home/)[^/\s\"']+")
_SPARED = frozenset({
    "root", "nobody", "lo", "nettop", "python", "python3", "bash", "sh", "init", "systemd", "docker", "podman",
    "containerd", "cri-o", "container", "kernel", "linux", "host", "localhost", "none", "all", "ok", "note", "bad",
    "tcp", "udp", "bpf", "bcc", "btf", "iter",
})  # fmt: skip
"""Words that say nothing of a host, or that the report says itself."""
_FIRST_OWN_UID = 1000
_PLAIN_KEYS = frozenset({"verdict", "id", "title", "hook", "mechanism", "fields", "lens", "unit", "name"})
"""What the report has of its own words under these keys stays as it is."""


class Redactor:
    """Replaces addresses, and the names given by kind (`host`, `user` …), by tokens such as `user-2`."""

    def __init__(self, names: Mapping[str, Iterable[str]]) -> None:
        self._tokens: dict[tuple[str, str], str] = {}
        self._kinds = {
            name.casefold(): kind
            for kind, group in names.items()
            for name in group
            if len(name) > 1 and name.casefold() not in _SPARED
        }
        words = sorted(map(re.escape, self._kinds), key=len, reverse=True)
        self._names = (
            re.compile(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])", re.IGNORECASE) if words else None
        )

    def text(self, text: str) -> str:
        """The text without them."""
        text = _CONTAINER.sub(lambda found: self._token("container", found[0]), text)
        text = _MAC.sub(lambda found: self._token("mac", found[0]), text)
        text = _IPV6.sub(self._address, text)
        text = _IPV4.sub(self._address, text)
        text = _HOME.sub(lambda found: self._token("user", found[0]), text)
        if self._names is not None:
            text = self._names.sub(
                lambda found: self._token(self._kinds[found[0].casefold()], found[0]), text
            )
        return text

    def values(self, value: Any) -> Any:
        """JSON values without them. Keys stay, but for those of gaps, which name what they are about."""
        if isinstance(value, dict):
            return {key: self._inner(key, inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value

    def _inner(self, key: str, value: Any) -> Any:
        if key == "gaps":
            return {self.text(name): self.text(why) for name, why in value.items()}
        return value if key in _PLAIN_KEYS else self.values(value)

    def _address(self, found: re.Match[str]) -> str:
        text, address = found[0], _parsed(found[0])
        while address is None and text.endswith((".", ":")):  # of the sentence
            text = text[:-1]
            address = _parsed(text)
        if address is None:
            return found[0]
        if address.is_loopback or address.is_unspecified:
            return found[0]
        return self._token(f"ipv{address.version}", str(address)) + found[0][len(text) :]

    def _token(self, kind: str, word: str) -> str:
        key = kind, word.casefold()
        if key not in self._tokens:
            number = 1 + sum(known == kind for known, _ in self._tokens)
            self._tokens[key] = f"{kind}-{number}"
        return self._tokens[key]


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


def names_here(root: Path = Path("/")) -> dict[str, set[str]]:
    """The names of this host, its users, and of what runs on it, by kind."""
    processes, interfaces, containers = set(), set(_interfaces(root / "proc/self/net/dev")), set()
    host = Host(root)
    for entry in os.scandir(root / "proc"):
        if entry.name.isdigit() and (pid := int(entry.name)) and host.command_line(pid):
            processes.add(host.process_name(pid))
            containers.update((container_of(host.cgroup(pid) or "") or "").split(":"))
    namespaces = set()
    for mechanisms in find_namespaces(root / "proc").values():
        in_proc = [way for way in mechanisms if root / "proc" in way.parents]
        namespaces |= {way.name for way in mechanisms if way not in in_proc}
        for way in in_proc[:1]:
            interfaces |= set(_interfaces(way.parents[1] / "net/dev"))
    return {
        "host": set(_host_names(root)),
        "user": set(_user_names()),
        "process": processes - {""},
        "interface": interfaces,
        "container": containers - {""},
        "netns": namespaces,
    }


def _host_names(root: Path) -> Iterator[str]:
    name = socket.gethostname()
    yield name
    yield from name.split(".")[:1]
    with suppress(OSError):
        for line in (root / "etc/resolv.conf").read_text(errors="replace").splitlines():
            words = line.split()
            if words and words[0] in ("search", "domain"):
                yield from words[1:]


def _user_names() -> Iterator[str]:
    for variable in ("SUDO_USER", "USER", "LOGNAME"):
        yield os.environ.get(variable, "")
    for user in pwd.getpwall():
        if user.pw_uid >= _FIRST_OWN_UID:
            yield user.pw_name
            yield from filter(None, user.pw_gecos.split(","))


def _interfaces(path: Path) -> Iterator[str]:
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            name, colon, _ = line.partition(":")
            if colon:
                yield name.strip()
