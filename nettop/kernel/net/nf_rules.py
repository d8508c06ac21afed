# SPDX-License-Identifier: Apache-2.0
"""The nf_tables rules of a network namespace that drop or reject packets, with their counters (nft(8)).

iptables-nft makes such rules too; those of iptables-legacy are elsewhere. Names and numbers are those of
include/uapi/linux/netfilter/nf_tables.h. Asking needs CAP_NET_ADMIN, reading the reply does not: so one thread keeps
the capability and sends the two constant requests, and those that parse what others wrote have none.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from nettop.errors import PermissionMissing
from nettop.kernel.host import privileges
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import read_text
from nettop.kernel.net import netlink
from nettop.snapshots.safe_text import safe_bytes

RULES_MAX = 16_384
"""Rules visited in a namespace: 5 µs each, 10 µs if they drop, and 40 µs more for a new one."""

_NETLINK_NETFILTER = 12
_NEW_CHAIN, _GET_CHAIN, _NEW_RULE, _GET_RULE = (10 << 8 | kind for kind in (3, 4, 6, 7))
_BODY = struct.Struct("=BBH")
"""struct nfgenmsg: family, version, resource."""
_KERNEL = (0, 0)

_RULE_TABLE, _RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 3, 4, 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_COUNTERS = 1, 3, 4, 5, 8
_HOOK_NUMBER = 1
_NAME, _DATA = 1, 2
"""NFTA_EXPR_…; NFTA_MATCH_NAME and NFTA_TARGET_NAME are 1 too."""
_IMMEDIATE_DATA, _DATA_VALUE, _DATA_VERDICT, _VERDICT_CODE = 2, 1, 2, 1
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_PAYLOAD_PLACE, _META_KEY, _CMP_OP, _CMP_DATA = (2, 3, 4), 2, 2, 3
_DESTINATION_PORT = (2, 2, 2)
"""Transport header, offset, length."""
_META_PROTOCOL = 16
_COMMENT = 0
"""NFTNL_UDATA_RULE_COMMENT in libnftnl; of an xt match, its name."""
_DROP_VERDICT = netlink.attribute(_DATA_VERDICT, netlink.attribute(_VERDICT_CODE, bytes(4)))
"""NF_DROP."""
_COUNTS = re.compile(rb"\x0c\0\x01\0(.{8})\x0c\0\x02\0(.{8})", re.DOTALL)
"""The attributes of a counter, bytes and packets, as little-endian kernels send them; others take longer to read."""
_NO_COUNTS = netlink.attribute(_COUNTER_BYTES, bytes(8)) + netlink.attribute(_COUNTER_PACKETS, bytes(8))
_ENDINGS = (_DROP_VERDICT, b"reject\0", b"REJECT\0")
_UNCONDITIONAL = frozenset({"counter", "log", "immediate", "reject", "target", "comment"})
"""Expressions after which a packet goes on, whatever it is; `comment` is a match of iptables."""

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
PROTOCOLS = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_OTHER_HOOKS = {"netdev": ("ingress", "egress"), "arp": ("input", "output", "forward")}
Chain = tuple[str, str, str]
"""Family, table and name."""
Ask = Callable[[socket.socket, bytes], None]
"""Function that sends a request on a socket."""


@dataclass(frozen=True, slots=True)
class DropRule:
    """A rule that drops or rejects packets, or the policy of a chain that does (without `handle`).

    `packets` and `bytes` are None if the rule has no counter behind its conditions. `port` is the destination port that
    it is for; `conditional` whether it is for some packets only.
    """

    family: str
    table: str
    chain: str
    handle: int | None = None
    is_reject: bool = False
    comment: str | None = None
    protocol: str | None = None
    port: int | None = None
    conditional: bool = False
    packets: int | None = None
    bytes: int | None = None
    hook: str | None = None
    """Where the kernel evaluates the chain; None if other chains jump to it."""


@dataclass(frozen=True, slots=True)
class DropRules:
    """The rules found; `is_whole` unless they could not be read, or were too many."""

    rules: tuple[DropRule, ...] = ()
    is_whole: bool = True


@contextmanager
def open_asker(host: Host) -> Iterator[None]:
    """Start a thread that keeps CAP_NET_ADMIN, to ask for rules inside this context; without it, note why not."""
    try:
        privileges.require({privileges.CAP_NET_ADMIN}, "reading rules of nftables")
    except PermissionMissing as error:
        host.kept.no_firewall = error
        yield
        return
    thread = ThreadPoolExecutor(1, "firewall")
    thread.submit(privileges.keep_only, frozenset({privileges.CAP_NET_ADMIN})).result()

    def ask(channel: socket.socket, request: bytes) -> None:
        # With an explicit destination, the kernel requires the capability of the sender, not of the socket's opener
        # (__netlink_ns_capable in net/netlink/af_netlink.c).
        thread.submit(channel.sendto, request, _KERNEL).result()

    host.kept.ask_firewall = ask
    try:
        yield
    finally:
        host.kept.ask_firewall = None
        thread.shutdown()


def is_loaded(host: Host) -> bool:
    """Return whether the kernel has nf_tables: asking would load its module."""
    built_in = host.root / "lib/modules" / os.uname().release / "modules.builtin"
    modules = read_text(host.proc / "modules")
    return not modules or "nf_tables " in modules or "/nf_tables.ko" in read_text(built_in)


def read_drop_rules(ask: Ask) -> DropRules:
    """Read the rules and policies that drop packets in the calling thread's namespace; resets no counter.

    Raise OSError if the kernel does not answer.
    """
    found: list[DropRule] = []
    hooks: dict[Chain, str] = {}
    is_whole = True
    for kind in (_GET_CHAIN, _GET_RULE):
        with netlink.open_channel(_NETLINK_NETFILTER) as channel:
            ask(channel, netlink.request(kind, netlink.DUMP, _BODY.pack(socket.AF_UNSPEC, 0, 0)))
            visited = 0
            for answer, _, body in netlink.dump(channel, "nf_tables"):
                if answer not in (_NEW_RULE, _NEW_CHAIN) or len(body) < _BODY.size:
                    continue
                if visited == RULES_MAX:
                    is_whole = False
                    break
                visited += 1
                rule = _parse_rule(body) if answer == _NEW_RULE else _parse_chain(body, hooks)
                found += [] if rule is None else [rule]
    placed = (replace(rule, hook=hooks.get((rule.family, rule.table, rule.chain))) for rule in found)
    return DropRules(tuple(placed), is_whole)


def _parse_chain(body: bytes, hooks: dict[Chain, str]) -> DropRule | None:
    """Return the policy of a chain if that is to drop; note where it is evaluated."""
    parts = netlink.contents(body[_BODY.size :])
    chain = FAMILIES.get(body[0], str(body[0])), _text(parts, _CHAIN_TABLE), _text(parts, _CHAIN_NAME)
    number = _number(netlink.contents(parts.get(_CHAIN_HOOK, b"")), _HOOK_NUMBER)
    names = _OTHER_HOOKS.get(chain[0], _HOOKS)
    if number is not None and number < len(names):
        hooks[chain] = names[number]
    if _CHAIN_POLICY not in parts or _number(parts, _CHAIN_POLICY) != 0:  # NF_DROP
        return None
    counters = netlink.contents(parts[_CHAIN_COUNTERS]) if _CHAIN_COUNTERS in parts else {}
    return DropRule(
        *chain, packets=_number(counters, _COUNTER_PACKETS), bytes=_number(counters, _COUNTER_BYTES)
    )


def _parse_rule(body: bytes) -> DropRule | None:
    """Return a rule if it ends with dropping or rejecting."""
    if not any(ending in body for ending in _ENDINGS):  # most rules do not, and parsing takes time
        return None
    rule = _without_counts(_COUNTS.sub(_NO_COUNTS, body))
    counts = _COUNTS.findall(body)
    if rule is None or rule.packets is None or not counts:
        return rule
    in_bytes, in_packets = counts[-1]
    return replace(rule, packets=int.from_bytes(in_packets), bytes=int.from_bytes(in_bytes))


@lru_cache(maxsize=2 * RULES_MAX)
def _without_counts(body: bytes) -> DropRule | None:
    """Parse a rule whose counters are 0: between two readings, most rules change in nothing else."""
    parts = netlink.contents(body[_BODY.size :])
    expressions = list(_expressions(parts.get(_RULE_EXPRESSIONS, b"")))
    is_reject = _is_reject(*expressions[-1]) if expressions else None
    if is_reject is None:
        return None
    counters = _counters(expressions)
    protocol, port = _destination(expressions)
    return DropRule(
        FAMILIES.get(body[0], str(body[0])),
        _text(parts, _RULE_TABLE),
        _text(parts, _RULE_CHAIN),
        _number(parts, _RULE_HANDLE),
        is_reject,
        _comment(parts.get(_RULE_USERDATA, b"")) or _match_comment(expressions),
        protocol,
        port,
        any(name not in _UNCONDITIONAL for name, _ in expressions),
        _number(counters, _COUNTER_PACKETS),
        _number(counters, _COUNTER_BYTES),
    )


def _expressions(content: bytes) -> Iterator[tuple[str, dict[int, bytes]]]:
    """Yield each expression's name and attributes; an xt match has its own name."""
    for _, begin, end in netlink.attributes(content):
        parts = netlink.contents(content[begin:end])
        name, data = _text(parts, _NAME), netlink.contents(parts.get(_DATA, b""))
        yield _text(data, _NAME) if name == "match" else name, data


def _is_reject(name: str, data: Mapping[int, bytes]) -> bool | None:
    """Return whether the last expression of a rule rejects, rather than drops; None if it does neither."""
    if name == "reject" or (name == "target" and _text(data, _NAME) == "REJECT"):
        return True
    is_drop = name == "immediate" and _DROP_VERDICT in data.get(_IMMEDIATE_DATA, b"")
    return False if is_drop else None


def _counters(expressions: list[tuple[str, dict[int, bytes]]]) -> Mapping[int, bytes]:
    """Return the attributes of the counter that counts just the packets that are dropped, not those before a further
    condition; empty without one."""
    for name, data in reversed(expressions):
        if name == "counter":
            return data
        if name not in _UNCONDITIONAL:
            break
    return {}


def _destination(expressions: list[tuple[str, dict[int, bytes]]]) -> tuple[str | None, int | None]:
    """Return the transport protocol and destination port that a rule compares packets with."""
    protocol = port = None
    for (loaded, place), (name, data) in pairwise(expressions):
        if name != "cmp" or _number(data, _CMP_OP) != 0:  # NFT_CMP_EQ
            continue
        value = netlink.contents(data.get(_CMP_DATA, b"")).get(_DATA_VALUE, b"")
        if loaded == "meta" and _number(place, _META_KEY) == _META_PROTOCOL and value:
            protocol = PROTOCOLS.get(value[0])
        elif (
            loaded == "payload" and tuple(_number(place, key) for key in _PAYLOAD_PLACE) == _DESTINATION_PORT
        ):
            port = int.from_bytes(value)
    return protocol, port


def _comment(userdata: bytes) -> str | None:
    """Return the comment in a rule's user data: records of a type, a length and a content."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _COMMENT:
            return safe_bytes(userdata[at + 2 : at + 2 + length].rstrip(b"\0"))
        at += 2 + length
    return None


def _match_comment(expressions: list[tuple[str, dict[int, bytes]]]) -> str | None:
    """Return the comment of `iptables -m comment` (struct xt_comment_info)."""
    info = next((data.get(3, b"") for name, data in expressions if name == "comment"), b"")
    return safe_bytes(info.partition(b"\0")[0]) or None


def _number(parts: Mapping[int, bytes], kind: int) -> int | None:
    return int.from_bytes(parts[kind]) if kind in parts else None


def _text(parts: Mapping[int, bytes], kind: int) -> str:
    return safe_bytes(parts.get(kind, b"").rstrip(b"\0"))
