# SPDX-License-Identifier: Apache-2.0
"""The bundle for bug reports: the report, kernel configuration and kernel messages. Addresses and names are redacted:
each is replaced by a token, always the same one."""

from __future__ import annotations

import ctypes
import gzip
import io
import json
import os
import pwd
import re
import socket
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from nettop.doctor.report import Report
from nettop.doctor.text import report_lines
from nettop.kernel.host.facts import Host, container_of
from nettop.kernel.net.namespaces import find_namespaces
from nettop.query.address_patterns import IPV4, IPV6, MAC

_FOLDER = "nettop-doctor"
_CONFIG = re.compile(
    r"^(?:# )?CONFIG_\w*(?:BPF|BTF|FTRACE|FPROBE|KPROBE|LOCKDOWN|DIAG|NET_NS|VETH|CGROUPS)\w*\b.*$",
    re.MULTILINE,
)
_MESSAGES = re.compile(r"bpf|btf|lockdown|kprobe|ftrace", re.IGNORECASE)
_MAX_MESSAGES = 200
_SYSLOG_READ_ALL, _SYSLOG_SIZE = 3, 10
"""Actions of syslog(2)."""
_MAC, _IPV6, _IPV4 = map(re.compile, (MAC, IPV6, IPV4))
_CONTAINER = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{64}(?![0-9A-Za-z])")
_PATH = re.compile(
    r"(?<![\w./-])/(?!(?:bin|boot|dev|etc|lib\w*|proc|run|sbin|sys|tmp|usr|var)(?:[/\s]|$))"
    r"(?:home/(?P<user>[^/\s\"']+))?(?P<rest>[^\s\"'(),;:]*)"
)
"""A path outside of the directories that are the same on every host."""
_KEPT_WORDS = frozenset({
    "root", "nobody", "lo", "nettop", "python", "python3", "bash", "sh", "init", "systemd", "docker", "podman",
    "containerd", "cri-o", "container", "kernel", "linux", "host", "localhost", "none", "all", "ok", "note", "bad",
    "tcp", "udp", "bpf", "bcc", "btf", "iter",
})  # fmt: skip
"""Words that do not identify a host, or that the report itself uses."""
_FIRST_OWN_UID = 1000
_PLAIN_KEYS = frozenset({"verdict", "id", "title", "hook", "mechanism", "fields", "lens", "unit", "name"})
"""Keys whose values are the report's own words, which are kept."""


def bundle_of(report: Report) -> bytes:
    """Return the bundle, a gzipped tar archive."""
    redactor = ReportRedactor(names_here())
    parts = {
        "report.json": json.dumps(redactor.values(report.as_json()), indent=2),
        "report.txt": redactor.text("\n".join(report_lines(report))),
        "kernel-config.txt": "\n".join(_CONFIG.findall(_kernel_config())),
        "kernel-messages.txt": redactor.text("\n".join(_kernel_messages())),
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in parts.items():
            content = (text or "not available").encode() + b"\n"
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _kernel_config() -> str:
    """Return the kernel's build configuration, if it or the distribution provides it."""
    with suppress(OSError):
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    with suppress(OSError):
        return Path(f"/boot/config-{os.uname().release}").read_text(errors="replace")
    return ""


def _kernel_messages() -> list[str]:
    """Return the newest kernel messages about what nettop uses; none if they may not be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SYSLOG_SIZE, None, 0)
    if size <= 0:
        return []
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(_SYSLOG_READ_ALL, buffer, size)
    lines = buffer.raw[: max(length, 0)].decode(errors="replace").splitlines()
    return [line for line in lines if _MESSAGES.search(line)][-_MAX_MESSAGES:]


# --- redaction ------------------------------------------------------------------------------------------------


class ReportRedactor:
    """A redactor that replaces addresses, and names given by kind (`host`, `user` …), by tokens such as `user-2`; with
    `replace`, by what it returns for a kind and a word."""

    def __init__(
        self, names: Mapping[str, Iterable[str]], replace: Callable[[str, str], str] | None = None
    ) -> None:
        self._replace = replace
        self._tokens: dict[tuple[str, str], str] = {}
        self._kinds = {
            name.casefold(): kind
            for kind, group in names.items()
            for name in group
            if len(name) > 1 and name.casefold() not in _KEPT_WORDS
        }
        words = sorted(map(re.escape, self._kinds), key=len, reverse=True)
        self._names = (
            re.compile(rf"(?<![^\W_])(?:{'|'.join(words)})(?![^\W_])", re.IGNORECASE) if words else None
        )

    def text(self, text: str) -> str:
        """Redact a text."""
        text = _CONTAINER.sub(lambda match: self._token("container", match[0]), text)
        text = _MAC.sub(lambda match: self._token("mac", match[0]), text)
        text = _IPV6.sub(self._address, text)
        text = _IPV4.sub(self._address, text)
        text = _PATH.sub(self._path, text)
        if self._names is not None:
            text = self._names.sub(
                lambda match: self._token(self._kinds[match[0].casefold()], match[0]), text
            )
        return text

    def values(self, value: Any) -> Any:
        """Redact JSON values. Keep keys, except those of gaps, which may contain names."""
        if isinstance(value, dict):
            return {key: self._inner(key, inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.values(inner) for inner in value]
        return self.text(value) if isinstance(value, str) else value

    def _inner(self, key: str, value: Any) -> Any:
        if key == "gaps":
            return {self.text(name): self.text(why) for name, why in value.items()}
        return value if key in _PLAIN_KEYS else self.values(value)

    def _address(self, match: re.Match[str]) -> str:
        text = match[0]
        while (address := _parsed(text)) is None and text.endswith((".", ":")):  # punctuation after it
            text = text[:-1]
        if address is None or address.is_loopback or address.is_unspecified:
            return match[0]
        return self._token(f"ipv{address.version}", str(address)) + match[0][len(text) :]

    def _path(self, match: re.Match[str]) -> str:
        home = "" if match["user"] is None else f"home/{self._token('user', match['user'])}"
        rest = match["rest"].strip("/")
        return "/" + "/".join(filter(None, (home, rest and self._token("path", rest))))

    def _token(self, kind: str, word: str) -> str:
        if self._replace is not None:
            return self._replace(kind, word)
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
    """Return the names of this host, and of its users, processes, interfaces, containers and namespaces, by kind."""
    processes, interfaces, containers = set(), set(_interfaces(root / "proc/self/net/dev")), set()
    host = Host(root)
    for entry in os.scandir(root / "proc"):
        if entry.name.isdigit() and (pid := int(entry.name)) and host.command_line(pid):
            processes.add(host.process_name(pid))
            containers.update((container_of(host.cgroup(pid) or "") or "").split(":"))
    namespaces = set()
    for paths in find_namespaces(root / "proc").values():
        in_proc = [path for path in paths if root / "proc" in path.parents]
        namespaces |= {path.name for path in paths if path not in in_proc}
        for path in in_proc[:1]:
            interfaces |= set(_interfaces(path.parents[1] / "net/dev"))
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
