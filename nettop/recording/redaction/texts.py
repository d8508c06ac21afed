# SPDX-License-Identifier: Apache-2.0
"""Redaction of single texts, by what they are: a name, an address, the path of a control group, free text.

Free text keeps addresses in their redacted form, numbers, and the words that nettop itself uses. Every other word is
replaced, and so is every name that was seen as one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from ipaddress import ip_address, ip_network
from itertools import chain

from nettop.query.address import MAPPED, address_text
from nettop.query.address_patterns import IPV4, IPV6, MAC
from nettop.recording.redaction.pseudonyms import Pseudonyms
from nettop.snapshots import lenses
from nettop.snapshots.findings import LATE, LOCAL_PORTS_TO
from nettop.snapshots.left_rows import ENDED
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import OWN_NAMESPACE, Field, FieldRole, Lens, Table
from nettop.snapshots.snapshot import NAMESPACES_PARTLY_SEEN, PARTLY_SEEN

_INTERFACE = re.compile(
    r"lo|(?:eth|if|bond|br|tun|tap|wlan|dummy|docker)\d+|(?:en|wl)(?:o|s|p\d+s)\d+(?:f\d+)?(?:np\d+)?"
)
"""Interfaces named by their number or place: those of many hosts. `enx…` has a hardware address."""
_SLICES = frozenset(
    {"", "..", "init.scope", "system.slice", "user.slice", "machine.slice", "kubepods.slice", "kubepods"}
)
_NFT_WORDS = frozenset({
    "filter", "nat", "mangle", "raw", "security", "policy", "input", "output", "forward", "prerouting", "postrouting",
    "ingress", "egress", "INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING",
    "ip", "ip6", "inet", "arp", "bridge", "netdev",
})  # fmt: skip
_BPF_PROGRAM = re.compile(r"(bpf_prog_[0-9a-f]{16})_\w+")
"""A program in kernel stacks, with the name that its author gave it."""
_SYMBOL = re.compile(r"[A-Za-z_][\w.]*(?:\+0x[0-9a-f]+)?(?: \[\w+\])?|0x[0-9a-f]+|\[\w+\]", re.ASCII)
_PORT = re.compile(r"\*?:?\d+(?:/(?:tcp|udp|mptcp))?")
_ENDPOINT = re.compile(
    r"(?P<open>\[?)(?P<host>[0-9A-Fa-f:.]+)(?:%(?P<inner>[^\]%:]+))?\]?(?:%(?P<zone>[^:\]]+))?(?P<port>:(?:\d+|\*))"
)

_NAMES_MAX = 1 << 16
_SEPARATORS = r"\s\"'`()\[\]{}<>,;:=|"
_WORD = rf"[^{_SEPARATORS}]+"
_NUMBER = re.compile(r"[+-]?\d[\d,]{0,14}(?:\.[\d,]{1,9}){0,2}(?:%|[A-Za-z]{0,2}(?:/s)?)|0x[0-9a-f]{4}")
"""A number, a rate, a version or an ethertype: an IPv4 address has one more dot, also behind the minus sign of a
range."""
_PIECE = re.compile(r"[^\W_]+")
_CAPABILITY = re.compile(r"CAP_[A-Z_]+")
_ON_EVERY_HOST = frozenset({"nettop", "sudo", "root", "kernel"})
"""Names that say nothing about a host, and are in many remedies."""
_MORE_WORDS = """
    aarch64 able above adjust allowed armv7l attach bcc boot btf buffers built capabilities capability cgroups checked
    chosen code compile compiled compiler confidentiality consume container containers context copy create csk debian
    debugfs declares decoded def default denies describe different disabled distribution dmesg do doctor done effective
    enter entries error exist exit expected failed fentry fexit filtered forwarded found gc held hidden hit hook hooked
    hooks hosts hz i686 image import imported inet install integrity iovec iter kallsyms kernel kfree kprobe kprobes
    kretprobe kubernetes lacks length libbpf limit listing loaded lockdown locked logs loopback lsm mechanism mem
    member modified module mounted must need neighbours neither netlink new newer nf nor not numpy old option orphans
    outside overflows owners pages parse pending perf perf_event perf_event_open permission pip post ppc64le pressure
    privileges probe python readable ready refuses regular release requires restart riscv64 root rootless rtnetlink run
    s390x sandbox seccomp sendmsg set shrink sk softirq_exit some spans spool starts status storage stored struct
    subset sudo symbol sysfs tcp_info thresh3 through tp_btf trace tracefs tracepoint tracepoints true truncated tw
    types udpv6 ulimit unable unconfined unexpected uninstall unlimited unprivileged unrecorded unresolved unsent
    unshare unsupported upgrade use v4 v6 verifier verifies walked windows written x86_64 xmit you
"""
"""Words of errors that are not among those of help."""

Treatment = Callable[["Texts", str], str]
"""Returns a text in place of another."""


class Texts:
    """Redaction of texts with the same pseudonyms, and the names that it has replaced so far."""

    def __init__(self, pseudonyms: Pseudonyms) -> None:
        self._pseudonyms = pseudonyms
        self._names: dict[str, str] = {}

    def name(self, prefix: str, text: str) -> str:
        """Return a word in place of a name: the same for the same name but for the prefix, which says what it is."""
        if text in _own_names():
            return text
        replaced = f"{prefix}-{self._pseudonyms.word(text)}"
        self._names[text] = replaced
        if len(self._names) > _NAMES_MAX:
            del self._names[next(iter(self._names))]
        return replaced

    # --- addresses ----------------------------------------------------------------------------------------------

    def place(self, text: str) -> str | None:
        """Return an address, a network or an endpoint in place of another; None if the text is none."""
        address = self._address(text)
        if address is not None:
            return address
        found = _ENDPOINT.fullmatch(text)
        host = None if found is None else self._address(found["host"])
        if found is None or host is None:
            return text if _PORT.fullmatch(text) else None
        zone, inner = (
            "" if name is None else f"%{interface(self, name)}" for name in (found["zone"], found["inner"])
        )
        return (
            f"[{host}{inner}]{zone}{found['port']}"
            if found["open"]
            else f"{host}{inner}{zone}{found['port']}"
        )

    def _address(self, text: str) -> str | None:
        """Return an address or a network, with its interface, in place of another; None if the text is none."""
        bare, _, zone = text.partition("%")
        host, _, length = bare.partition("/")
        try:
            packed = ip_address(host).packed
            raw = packed if len(packed) == 16 else MAPPED + packed
            replaced = address_text(self._pseudonyms.address(raw))
            if length:
                replaced = str(ip_network(f"{replaced}/{length}", strict=False))
        except ValueError:
            return None
        return f"{replaced}%{interface(self, zone)}" if zone else replaced

    # --- free text ----------------------------------------------------------------------------------------------

    def knows_name_in(self, text: str) -> bool:
        """Return whether a text has a name that was replaced elsewhere."""
        return self._known_in(text) is not None

    def scrubbed(self, text: str) -> str:
        """Return free text without addresses, names and unknown words."""
        if text in _own_texts():
            return text
        known = self._known_in(text)
        pattern = _TOKENS if known is None else re.compile(f"(?P<known>{known})|{_TOKENS.pattern}")
        return pattern.sub(self._scrubbed_token, text)

    def _known_in(self, text: str) -> str | None:
        """Return a pattern of the names in a text, None if there are none."""
        names = (name for name in self._names if name in text and len(name) > 1)
        found = sorted((name for name in names if name not in _ON_EVERY_HOST), key=len, reverse=True)
        pattern = rf"(?<![^\W_])(?:{'|'.join(map(re.escape, found))})(?![^\W_])"
        return pattern if found and re.search(pattern, text) else None

    def _scrubbed_token(self, match: re.Match[str]) -> str:
        text = match[0]
        if match.lastgroup == "known":
            return self._names[text]
        if match.lastgroup == "mac":
            return self.name("mac", text)
        word = text.rstrip(".:!?")
        replaced = self._address(word)
        if replaced is None:
            replaced = word if _is_own(word) else self.name("word", word)
        return replaced + text[len(word) :]


_TOKENS = re.compile(rf"(?P<mac>{MAC})|(?P<address>(?:{IPV6}|{IPV4})(?:/\d{{1,3}}\b)?)|(?P<word>{_WORD})")


def _is_own(word: str) -> bool:
    """Return whether a word is a number, or made of words that nettop uses."""
    pieces = _PIECE.findall(word)
    return (
        _NUMBER.fullmatch(word) is not None
        or _CAPABILITY.fullmatch(word) is not None
        or all(piece.casefold() in _own_words() for piece in pieces)
    )


@cache
def _own_words() -> frozenset[str]:
    texts = (*_own_texts(), _MORE_WORDS, *errno.errorcode.values())
    words = (word for text in texts for word in _PIECE.findall(text))
    return frozenset(word.casefold() for word in words if not word.isdecimal())


@cache
def _own_texts() -> frozenset[str]:
    """Return what nettop declares, and what the C library says about errors."""
    texts = (text for lens in (*lenses(), SELF) for text in _texts_of(lens))
    return frozenset({PARTLY_SEEN, NAMESPACES_PARTLY_SEEN, LATE, *texts, *map(os.strerror, errno.errorcode)})


@cache
def _own_names() -> frozenset[str]:
    """Return what nettop writes in place of names, and names that it gives itself."""
    return frozenset({"", OWN_NAMESPACE, ENDED, "nettop"}.union(*(lens.names for lens in lenses())))


@cache
def _kernel_texts() -> frozenset[str]:
    """Return names and descriptions of the kernel's own. Their words are too many to be kept in free text."""
    known = (names for lens in lenses() for names in lens.vocabulary)
    return frozenset(
        {"x86_64", *(str(text) for names in known for text in chain(names, names.values()) if text != "")}
    )


def _texts_of(lens: Lens) -> Iterator[str]:
    yield from (lens.id, lens.title, lens.question, *lens.losses, *lens.losses.values())
    for hook in lens.hooks:
        yield from (hook.name, hook.help, hook.remedy)
    yield from (text for table in lens.tables for text in _texts_of_table(table))
    yield from (text for field in lens.counts for text in (field.name, field.help))


def _texts_of_table(table: Table) -> Iterator[str]:
    yield table.name
    for field in table.fields:
        yield from (field.name, field.title, field.help, *field.labels.values())
    for rule in table.rules:
        yield from (rule.name, rule.says, rule.help, rule.advice)


# --- treatments -------------------------------------------------------------------------------------------------


def declared(texts: Texts, text: str) -> str:
    """Return a text that the kernel or nettop declares, or that is made of their words; scrub any other."""
    is_own = text in _kernel_texts() or all(map(_is_own, text.split()))
    return text if is_own else texts.scrubbed(text)


def _shaped(shape: str, texts: Texts, text: str) -> str:
    return text if re.fullmatch(shape, text) else declared(texts, text)


reason: Treatment = partial(_shaped, r"(?:[A-Z0-9_]+|subsystem \d+)(?: \d+)?")
"""Returns a reason for a drop, a constant of the kernel; scrubs any other text."""
tcp_flags: Treatment = partial(_shaped, "[FSRPAUEC]*")
version: Treatment = partial(_shaped, r"\d+(?:\.\d+)+[\w.+~-]*")
"""Returns the version of a kernel or of nettop, with what its builder added; scrubs any other text."""


scrubbed: Treatment = Texts.scrubbed
"""Returns free text in place of another."""


def _named(prefix: str, texts: Texts, text: str) -> str:
    return texts.name(prefix, text)


name: Treatment = partial(_named, "name")
process: Treatment = partial(_named, "proc")
container: Treatment = partial(_named, "ctr")
host: Treatment = partial(_named, "host")
service: Treatment = partial(_named, "svc")


def namespace(texts: Texts, text: str) -> str:
    """Return a namespace's name in place of another; keep its number."""
    return text if text.isdecimal() else texts.name("ns", text)


def interface(texts: Texts, text: str) -> str:
    """Return an interface's name in place of another; keep those that only say its number or place."""
    return text if text.isdecimal() or _INTERFACE.fullmatch(text) else texts.name("if", text)


def cgroup(texts: Texts, text: str) -> str:
    """Return the path of a control group in place of another."""
    return "/".join(part if part in _SLICES else texts.name("cg", part) for part in text.split("/"))


def place(texts: Texts, text: str) -> str:
    """Return an address, a network, an endpoint or a name in place of another; keep ports."""
    replaced = texts.place(text)
    return texts.name("name", text) if replaced is None else replaced


def resource(texts: Texts, text: str) -> str:
    """Return a limited resource, with another destination if it has one."""
    if not text.startswith(LOCAL_PORTS_TO):
        return declared(texts, text)
    destination = text.removeprefix(LOCAL_PORTS_TO)
    return LOCAL_PORTS_TO + (destination and place(texts, destination))


def nft(texts: Texts, text: str) -> str:
    """Return the name of a table or chain, or a comment, in place of another; keep the usual names."""
    return text if text in _NFT_WORDS else texts.name("nft", text)


def symbols(texts: Texts, text: str) -> str:
    """Return functions of the kernel and their modules, without the names of BPF programs; scrub what is neither."""
    return ";".join(
        _BPF_PROGRAM.sub(r"\1", part) if _SYMBOL.fullmatch(part) else texts.scrubbed(part)
        for part in text.split(";")
    )


# --- texts of tables ------------------------------------------------------------------------------------------

_TREATMENTS: dict[FieldRole | None, Treatment] = {
    FieldRole.PROCESS: process,
    FieldRole.CONTAINER: container,
    FieldRole.CGROUP: cgroup,
    FieldRole.NAMESPACE: namespace,
    FieldRole.INTERFACE: interface,
    FieldRole.SERVICE: service,
    FieldRole.PLACE: place,
    FieldRole.RULESET: nft,
    FieldRole.RESOURCE: resource,
    FieldRole.SYMBOLS: symbols,
    FieldRole.REASON: reason,
    FieldRole.TCP_FLAGS: tcp_flags,
    FieldRole.DECLARED: declared,
    FieldRole.PROSE: scrubbed,
}


def treatment_of(field: Field) -> Treatment:
    """Return what is done with a text."""
    return _TREATMENTS.get(field.role, name)
