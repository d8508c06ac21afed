# SPDX-License-Identifier: Apache-2.0
"""Findings: the rules of tables, applied to their views, and how long each finding has lasted."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from errno import ENETUNREACH
from functools import cache, partial
from socket import IPPROTO_UDP
from typing import Any

import numpy as np

from nettop.errors import FilterError
from nettop.query.address import address_bytes, address_text, endpoint_text
from nettop.query.filter import Filter, combined, parse_filter, quote
from nettop.query.other_end import other_end
from nettop.query.query import Query, screen_query
from nettop.query.units import RATIO, TIMES, UNKNOWN, human, unit_of
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots import find_table, view_name
from nettop.snapshots.arrays import Array, Index, Mask, as_list, distinct_rows, positions
from nettop.snapshots.connections import (
    FAILURES,
    LISTEN,
    REASONS,
    RESET_BY_US,
    SOCKETS,
    STATES,
    SYN_RECV,
    SYN_SENT,
    UNATTRIBUTED,
)
from nettop.snapshots.drops import COUNTERS, NO_ROUTE, PACKETS
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.schema import OWN_NAMESPACE, Kind, Lens, Rule, Severity, Table
from nettop.snapshots.snapshot import Frame, Rows, known, rows_from
from nettop.snapshots.thresholds import rules_of

KEPT_S = 10.0
"""Seconds that a finding is kept after it was last seen, so that it does not blink."""
GROUPS_MAX = 8
"""Maximum findings of a rule; beyond it, they are told apart by fewer columns."""

_INTERVAL_TOLERANCE = 0.9
"""Two readings may be slightly closer than the interval."""
PLACES_MAX = 64
"""Rows of a finding whose ports and processes are compared with those of others."""
_SHARES = frozenset(f"{unit}/s" for unit in TIMES)
"""Units of rates of time: shares of a CPU, or of the time of a connection."""
_ANY_TIME_MS = 1 << 40
_ANY = frozenset(("0.0.0.0", "::"))  # noqa: S104 - what a listener says that has no address of its own
_LOOPBACK = ("127.", "::1")
OTHER_ENDS_MAX = 8
"""Connections whose other end is looked for."""
GONE_AFTER_NS = 2_000_000_000
"""A finding that has not been seen for so long has gone: it ranks after the others, and explains none of those still
seen."""
BEGAN_TOGETHER_NS = 2_000_000_000
"""What a process waits for may be noticed so much later than that others wait for it: a request arrives before the one
that it causes is sent, and each is noticed at a reading."""
_OPTIONAL = re.compile(r"\[([^\]]*)\]")
_VALUE = re.compile(r"\{(\w+)\}")
_WAITING = frozenset({"receive_queue", "send_queue", "waiting"})
"""Gauges that say how much waits: several rows have more. Of other gauges the largest one counts."""
_TOTALLED = (Kind.COUNTER, Kind.SUM, Kind.RATIO, Kind.QUANTILE)


Addresses = Mapping[str, frozenset[int]]
"""Addresses of this host, with the network namespaces that have them."""
Identity = tuple[tuple[str, Any], ...]
"""The columns by which findings of a rule are told apart, with their values."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a finding is about, by which one finding explains another."""

    ports: frozenset[int] = frozenset()
    pids: frozenset[int] = frozenset()
    processes: frozenset[str] = frozenset()
    programs: frozenset[tuple[Any, ...]] = frozenset()
    """Names, control groups and namespaces of processes: those that the workers of one server have in common."""
    interfaces: frozenset[tuple[str, int | None]] = frozenset()
    """Names, with the namespaces that they are in."""
    namespaces: frozenset[int] = frozenset()
    cpus: frozenset[int] = frozenset()
    protocols: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    """Why connects fail, or would where a counter grows."""
    hooks: frozenset[str] = frozenset()
    """Where rules of the firewall are evaluated."""
    local: frozenset[str] = frozenset()
    remote: frozenset[str] = frozenset()
    is_outbound: bool = False
    is_inward: bool = False
    """True for what only sees connections to this host: a listener, a service, packets received, or a rule of the
    firewall for incoming packets."""

    def may_explain(self, other: Place, here: Callable[[], Addresses]) -> bool:
        """Return whether both share a port; without ports, a process, interface or namespace. None of what they know of
        the protocol, the error and the addresses may be different.

        A listener has one port of its connections, which have two; connections to a service have one in common, though
        each reading has others of them that are acknowledged. What an interface loses is not explained by
        something that merely is in its namespace, but by a CPU, which works for all. `here` returns the addresses of
        this host.
        """
        for ours, theirs in ((self.protocols, other.protocols), (self.errors, other.errors)):
            if ours and theirs and ours.isdisjoint(theirs):
                return False
        if self._is_walled_off(other) or self._never_sees(other) or not self._may_meet(other, here):
            return False
        pairs: list[tuple[frozenset[Any], frozenset[Any]]] = [
            (self.ports, other.ports),
            (self.pids, other.pids),
            (self.interfaces, other.interfaces),
            (self.cpus, other.cpus),
        ]
        is_of_interface = other.interfaces and not (other.ports or other.pids)
        if not is_of_interface:
            pairs.append((self.namespaces, other.namespaces))
        shared = (not ours.isdisjoint(theirs) for ours, theirs in pairs if ours and theirs)
        return next(shared, not is_of_interface or bool(self.cpus))

    def _is_walled_off(self, other: Place) -> bool:
        """Return whether both are in different namespaces, and one is about connections that never leave theirs."""
        return not self._is_in(other.namespaces) and (self._is_on_loopback() or other._is_on_loopback())

    def _never_sees(self, other: Place) -> bool:
        """Return whether these rules of the firewall never see packets of the other's connections: what a namespace
        forwards is not its own, and what it sends is of no other."""
        if not (self.namespaces and other.namespaces and other.remote):
            return False
        is_own = not self.namespaces.isdisjoint(other.namespaces)
        return self.hooks == {"forward" if is_own else "output"}

    def _is_on_loopback(self) -> bool:
        """Return whether all its addresses, as far as they are known, are of the loopback interface."""
        addresses = (self.local - _ANY) | self.remote
        return bool(addresses) and all(address.startswith(_LOOPBACK) for address in addresses)

    def _may_meet(self, other: Place, here: Callable[[], Addresses]) -> bool:
        """Return whether both may be about the same connections, by their addresses, as far as they are known."""
        if self.remote & other.remote:
            return True
        if self.remote and other.remote:
            if self.local or other.local:
                return (not self.local or bool(self.local & other.remote)) and (
                    not other.local or bool(self.remote & other.local)
                )
            if self.is_outbound and (other.is_outbound or other.is_inward):
                return other.is_inward and other._receives(self, self.remote, here)
        if other.is_inward and self.is_outbound:
            return bool(self.processes & other.processes)
        if other.is_inward and self.is_inward:
            return self._is_in(other.namespaces)
        if not (self.is_inward and other.is_outbound and other.remote):
            return True
        addresses = other.remote & self.local if self.local - _ANY else other.remote
        return self._receives(other, addresses, here)

    def _receives(self, other: Place, addresses: frozenset[str], here: Callable[[], Addresses]) -> bool:
        """Return whether what `other` sends to one of these addresses may arrive here: namespaces have their own
        loopback."""
        return any(
            self._is_in(other.namespaces)
            if address.startswith(_LOOPBACK)
            else address in self.local or (address in here() and self._is_in(here()[address]))
            for address in addresses
        )

    def _is_in(self, namespaces: frozenset[int]) -> bool:
        """Return whether it may be in one of these namespaces: they, or its own, may be unknown."""
        return not (namespaces and self.namespaces) or bool(namespaces & self.namespaces)

    def is_same_program(self, other: Place) -> bool:
        """Return whether both are about one process, or workers of one server: a service names just one of them."""
        return not (self.pids.isdisjoint(other.pids) and self.programs.isdisjoint(other.programs))

    def nearness(self, other: Place) -> tuple[bool, bool]:
        """Return whether both are about the same process, and the same namespace."""
        return bool(self.pids & other.pids), bool(self.namespaces & other.namespaces)


@dataclass(frozen=True, slots=True)
class ParsedRule:
    """A rule of the table shown by `view`, with its parsed filter."""

    view: str
    rule: Rule
    rows: Filter
    totals: Filter
    beside: Filter
    names: frozenset[str]
    """The columns that its filters need."""


@dataclass(frozen=True, slots=True)
class ParsedRules:
    """The rules of a table, the worst first, and the query of its rows in the newest snapshot."""

    query: Query
    rules: tuple[ParsedRule, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that rows of a view match in one reading. `key` is the same in every reading."""

    rule: Rule
    key: int
    sentence: str
    advice: str
    rows: int
    process: str | None
    place: Place
    table: str
    keys: Array
    """Of some of its rows."""
    lasted_ns: int
    """For how long it has lasted before this reading, as far as its rows say."""
    silent_ns: int
    """For how long its rows have sent nothing, also not again; 0 if they do not say."""
    view: str
    filter: str


def parsed_rules(lens: Lens, table: Table) -> ParsedRules:
    """Return a table's rules with their parsed filters."""
    view = view_name(lens, table)
    rules = []
    for rule in rules_of(table):
        rows, totals, beside = (parse_filter(table, each) for each in (rule.filter, rule.totals, rule.beside))
        names = frozenset((*rows.names, *totals.names, *beside.names))
        rules.append(ParsedRule(view, rule, rows, totals, beside, names))
    return ParsedRules(replace(screen_query(table), closed=False, gone=False), tuple(rules))


def threshold(rule: Rule) -> str:
    """Describe when rows that match a rule's filter become a finding."""
    parts = [f"from {rule.min_rows:,} rows on"] if rule.min_rows > 1 else []
    parts += [] if rule.min_growing_rows is None else [f"or {rule.min_growing_rows:,} and growing"]
    parts += [f"if {rule.held} has not become less"] if rule.held else []
    parts += [f"from {_amount(*least)} together on" for least in rule.together]
    parts += [f"if its totals match `{rule.totals}`"] if rule.totals else []
    parts += [f"after {rule.after_s:g} s"] if rule.after_s else []
    parts += [f"if another row of the same {rule.by[0]} matches `{rule.beside}`"] if rule.beside else []
    parts += [f"if the interval is {rule.min_interval_s:g} s or more"] if rule.min_interval_s else []
    parts += ["if it explains another finding"] if rule.only_explains else []
    return ", ".join(parts) or "at once"


def _amount(name: str, least: float) -> str:
    return f"{name}={least:.0%}" if name.endswith("_ratio") else f"{name}={least:g}"


def find(rules: ParsedRules, frame: Frame) -> Iterator[Finding]:
    """Yield the findings of a table in a frame, in the order of the rules."""
    table = rules.query.table
    if frame.now.why_unavailable(table) is not None or not len(frame.now.tables[table.name]):
        return
    view = View(frame, rules.query)
    for parsed in rules.rules:
        if not parsed.names.isdisjoint(view.missing):
            continue
        if view.elapsed_s is not None and view.elapsed_s < parsed.rule.min_interval_s * _INTERVAL_TOLERANCE:
            continue
        at = np.flatnonzero(parsed.rows.mask(view))
        if not parsed.totals.is_empty and len(at):
            at = at[parsed.totals.mask(View(frame, replace(view.query, deltas=False)))[at]]
        if parsed.rule.held and len(at):
            at = at[_is_held(view, parsed.rule.held, at)]
        if parsed.rule.together and len(at):
            at = at[_reach_together(view, parsed.rule, at)]
        if len(at):
            yield from _find_groups(view, parsed, at)


def _find_groups(view: View, parsed: ParsedRule, at: Index) -> Iterator[Finding]:
    rule = parsed.rule
    before, stayed = _rows_before(view, parsed)
    beside = None if parsed.beside.is_empty else parsed.beside.mask(view)
    for identity, group in _groups(view, rule, at).items():
        if beside is not None and not (beside & _same(view, rule.by, group[0])).any():
            continue
        least = rule.min_rows
        if rule.min_growing_rows is not None and len(group) > before.get(identity, len(group)):
            least = rule.min_growing_rows
        if np.count_nonzero(stayed[group]) >= least:
            yield _finding(view, parsed, dict(identity), group)


def _is_held(view: View, name: str, at: Index) -> Mask:
    """Return which rows have not less of a gauge than in the previous snapshot, as far as it has them."""
    held, was_there = np.ones(len(at), bool), view.before_at[at] >= 0
    if view.before is not None:
        was = view.before.array[name][view.before_at[at[was_there]]]
        held[was_there] = ~known(was) | (view.raw(name)[at[was_there]] >= was)
    return held


def _reach_together(view: View, rule: Rule, at: Index) -> Mask:
    """Return which rows are in a group whose totals reach what the rule asks for."""
    firsts, places = distinct_rows([view.raw(name)[at] for name in rule.by if name not in view.missing])
    reached = np.ones(len(firsts), bool)
    for name, least in rule.together:
        field = view.table.by_name.get(name)
        names = (name,) if field is None or field.kind is not Kind.RATIO else field.parts
        totals = [_totals_of(view, each, at, places, len(firsts)) for each in names]
        reached &= totals[0] >= least * (totals[1] if len(totals) > 1 else 1)
    return reached[places]


def _totals_of(view: View, name: str, at: Index, places: Index, count: int) -> Array:
    """Return the totals of a column by group; of a counter, in the interval."""
    column = view.column(name)
    amounts = np.where(column.known[at], column.numbers[at], 0).astype(float)
    return np.bincount(places, amounts, count)


def _groups(view: View, rule: Rule, at: Index) -> dict[Identity, Index]:
    """Divide rows by the columns that tell findings apart, dropping the last columns if there are too many groups."""
    names = [name for name in rule.by if name not in view.missing]
    while True:
        firsts, places = (
            distinct_rows([view.raw(name)[at] for name in names])
            if names
            else (np.zeros(1, np.intp), np.zeros(len(at), np.intp))
        )
        if len(firsts) <= GROUPS_MAX or not names:
            break
        names.pop()
    values = zip(*(values_of(view, name, at[firsts]) for name in names), strict=True) if names else [()]
    return {
        tuple(zip(names, value, strict=True)): at[places == number] for number, value in enumerate(values)
    }


def _same(view: View, names: Sequence[str], place: int) -> Mask:
    """Return the mask of rows with the same values in these columns as the row at `place`."""
    same = np.ones(view.size, bool)
    for name in names:
        values = view.raw(name)
        equal = values == values[place]
        same &= equal if equal.ndim == 1 else equal.all(axis=1)
    return same


def _rows_before(view: View, parsed: ParsedRule) -> tuple[dict[Identity, int], Mask]:
    """Return the number of rows of each group in the previous snapshot, and which of the rows matched there too; no
    numbers, and all rows, if the rule does not ask for it."""
    if parsed.rule.min_growing_rows is None:
        return {}, np.ones(view.size, bool)
    if view.frame.before is None:
        return {}, np.zeros(view.size, bool)
    before = View(Frame(view.frame.before), view.query)
    matched = np.flatnonzero(parsed.rows.mask(before))
    counts = {identity: len(group) for identity, group in _groups(before, parsed.rule, matched).items()}
    key = view.table.key
    return counts, np.isin(view.raw(key), before.raw(key)[matched])


def _finding(view: View, parsed: ParsedRule, identity: Mapping[str, Any], at: Index) -> Finding:
    table, rule = view.table, parsed.rule
    return Finding(
        rule,
        row_id(rule.name, *sorted(identity.items())),
        _sentence(rule.says, view, at),
        _sentence(rule.advice, view, at),
        len(at),
        _common(view, "process", at) if "process" in table.by_name else None,
        _place(view, at[:PLACES_MAX]),
        table.name,
        view.raw(table.key)[at[:PLACES_MAX]],
        _lasted_ns(view, rule, at),
        _silent_ns(view, at[:PLACES_MAX]),
        *_evidence(table, parsed, identity),
    )


def _place(view: View, at: Index) -> Place:
    """Return what rows are about."""
    known = view.table.by_name
    namespaces = values_of(view, "netns", at) if "netns" in known else [None] * len(at)
    interfaces = values_of(view, "interface", at) if "interface" in known else ()
    is_used = _distinct(view, ("side",), at) == {"used"}
    owned = _owned(view, at)
    return Place(
        ports=_distinct(view, ("local_port", "remote_port", "port"), at),
        pids=_distinct(view, ("pid",), owned),
        processes=_distinct(view, ("process",), at),
        programs=_programs(view, owned),
        interfaces=frozenset(
            each for each in zip(interfaces, namespaces, strict=False) if each[0] is not None
        ),
        namespaces=frozenset(number for number in namespaces if number is not None),
        cpus=_distinct(view, ("cpu",), at),
        protocols=_protocols(view, at),
        errors=_errors(view, at),
        hooks=_distinct(view, ("hook",), at),
        local=_distinct(view, ("local_address",) if is_used else ("local_address", "address"), at),
        remote=_distinct(view, ("remote_address", "address") if is_used else ("remote_address",), at) - _ANY,
        is_outbound=is_used or _directions(view, at) == {"outbound"},
        is_inward=_is_inward(view, at),
    )


def _owned(view: View, at: Index) -> Index:
    """Return the rows that have the processes of these. Connections that no process has accepted yet are those of their
    listener."""
    is_unowned = view.table is SOCKETS and not _distinct(view, ("pid",), at)
    return _listeners(view, at)[:PLACES_MAX] if is_unowned else at


def _programs(view: View, at: Index) -> frozenset[tuple[Any, ...]]:
    """Return the programs of rows, as far as they are known."""
    names = ("process", "cgroup", "netns")
    if not view.table.by_name.keys() >= set(names):
        return frozenset()
    values = zip(*(values_of(view, name, at) for name in names), strict=True)
    return frozenset(each for each in values if None not in each)


def _protocols(view: View, at: Index) -> frozenset[str]:
    """Return the transport protocols of rows, as far as they are known. Counters of a protocol have its name."""
    if view.table is FAILURES:
        return frozenset(("tcp",))
    names = [str(name).lower() for name in _distinct(view, ("protocol",), at)]
    if view.table is COUNTERS:
        counters = _distinct(view, ("name",), at)
        names = [name[:3].lower() for name in counters if name.startswith(("Tcp", "Udp"))]
    return frozenset("tcp" if name == "mptcp" else name for name in names)


def _errors(view: View, at: Index) -> frozenset[str]:
    """Return with what the connects of rows fail. A reset by this end is none."""
    if view.table is FAILURES:
        return _distinct(view, ("reason",), at) - {REASONS[RESET_BY_US]}
    is_no_route = view.table is COUNTERS and _distinct(view, ("name",), at) <= NO_ROUTE
    return frozenset((REASONS[ENETUNREACH],)) if is_no_route else frozenset()


def _is_inward(view: View, at: Index) -> bool:
    """Return whether rows are only about what comes to this host. Dropped packets have the process that was to receive
    them."""
    return (
        (view.table is PACKETS and None not in values_of(view, "process", at))
        or _directions(view, at) == {"inbound"}
        or any(
            _distinct(view, (name,), at) == {value}
            for name, value in (("state", STATES[LISTEN]), ("side", "served"), ("hook", "input"))
        )
    )


def _directions(view: View, at: Index) -> frozenset[str]:
    """Return who opened these connections, seen or inferred: what was open when nettop began is inferred."""
    return frozenset(each.removesuffix("?") for each in _distinct(view, ("direction",), at))


def _lasted_ns(view: View, rule: Rule, at: Index) -> int:
    """Return for how long the rows have matched already, as they say; 0 if they do not."""
    if not rule.lasts or rule.lasts in view.missing:
        return 0
    longest = max((each for each in values_of(view, rule.lasts, at) if each is not None), default=0)
    return round(longest / TIMES[view.table.by_name[rule.lasts].unit] * 1e9)


def _silent_ns(view: View, at: Index) -> int:
    """Return how long ago any of these rows that waits for an answer sent data, new or again (tcpi_last_data_sent). A
    SYN or a datagram, of which that is unknown, may have been sent at any time."""
    if view.table is not SOCKETS:
        return 0
    is_untimed = (view.raw("state")[at] == SYN_SENT) | (view.raw("protocol")[at] == IPPROTO_UDP)
    waits = at[is_untimed | (view.raw("send_queue")[at] > 0)]
    silent_ms = (each for each in values_of(view, "last_sent_ms", waits) if each is not None)
    return min(silent_ms, default=_ANY_TIME_MS if is_untimed.all() else 0) * 1_000_000


def _evidence(table: Table, parsed: ParsedRule, identity: Mapping[str, Any]) -> tuple[str, str]:
    """Return the view that shows a finding, and the filter of its rows; as a small screen cuts the end, who and where
    come first."""
    shown, wanted = parsed.rule.proof
    if shown not in ("", parsed.view):  # rows of other tables
        _, table = find_table(shown)
        place = (
            [equals("netns", identity["netns"])] if "netns" in identity.keys() & table.by_name.keys() else []
        )
        return shown, combined(table, [parse_filter(table, each) for each in (*place, wanted)]).text
    if shown:  # other rows, which may have no owner
        known, implied = parse_filter(table, wanted), {"process", "pid"}
    else:  # a PID says more than the process's name and its namespace
        known, implied = parsed.rows, {"process", "netns"} if identity.get("pid") is not None else set()
    names = sorted(identity.keys() - implied, key=lambda name: (name == "netns", parsed.rule.by.index(name)))
    terms = (parse_filter(table, equals(name, identity[name])) for name in names)
    return parsed.view, combined(table, [*terms, known]).text


def equals(name: str, value: Any) -> str:
    """Return the term of a filter that selects a value."""
    return f"{name}={UNKNOWN if value is None else quote(value) if isinstance(value, str) else value}"


def _distinct(view: View, names: Sequence[str], at: Index) -> frozenset[Any]:
    """Return the distinct values in these columns."""
    present = (values_of(view, name, at) for name in names if name in view.table.by_name)
    return frozenset(value for values in present for value in values if value is not None)


# --- sentences ----------------------------------------------------------------------------------------------------


def _sentence(template: str, view: View, at: Index) -> str:
    return filled(template, {name: _value(view, name, at) for name in _VALUE.findall(template)})


def filled(template: str, values: Mapping[str, str | None]) -> str:
    """Fill in values; leave out what is between square brackets if one of its values is unknown (None)."""

    def optional(part: re.Match[str]) -> str:
        return "" if None in (values[name] for name in _VALUE.findall(part[1])) else part[1]

    return _VALUE.sub(lambda name: values[name[1]] or _unknown(name[1]), _OPTIONAL.sub(optional, template))


def _unknown(name: str) -> str:
    return UNATTRIBUTED if name in ("process", "listener") else UNKNOWN


def _value(view: View, name: str, at: Index) -> str | None:
    """Return a value of rows as text; None if it is unknown."""
    if name == "rows":
        return f"{len(at):,}"
    if name in _FROM_ELSEWHERE:
        return _FROM_ELSEWHERE[name](view, at)
    table = view.table
    field = table.by_name.get(name)
    if field is None or field.kind in _TOTALLED:
        total = view.total(name, at)
        if total is None and len(at) == 1:  # the interval was covered only in part, by some hook
            (total,) = values_of(view, name, at)
        unit = unit_of(table, name)
        if total is not None and unit in _SHARES:  # of the time of each row
            total /= len(at)
        return None if total is None else human(total, unit_in_sentence(unit))
    if field.kind is Kind.GAUGE:
        numbers = [number for number in values_of(view, name, at) if number is not None]
        number = (sum if name in _WAITING else max)(numbers) if numbers else None
        return None if number is None else human(number, unit_of(table, name))
    unsaid = (None, OWN_NAMESPACE) if name == "namespace" else (None,)
    return _first_of(str(value) for value in values_of(view, name, at) if value not in unsaid)


def _first_of(texts: Iterable[str]) -> str | None:
    """Return the first text, and how many others there are; None without any."""
    distinct = list(dict.fromkeys(texts))
    return (
        f"{distinct[0]} and {len(distinct) - 1:,} more" if len(distinct) > 1 else next(iter(distinct), None)
    )


def _target(view: View, at: Index) -> str | None:
    """Return to which addresses and ports connections failed."""
    addresses, ports = (values_of(view, name, at) for name in ("remote_address", "port"))
    pairs = zip(addresses, ports, strict=True)
    return _first_of(endpoint_text(address, port) for address, port in pairs if address is not None)


def _reader(view: View, at: Index) -> str | None:
    """Return the process at the other end of these connections, if it is only one and has not read what came."""
    ends = _other_ends(view, at)
    has_unread = view.raw("receive_queue")[ends] > 0
    name: str | None = _common(view, "process", ends[has_unread & ~_reads(view, ends)])
    return name if has_unread.all() else None


def _reads(view: View, at: Index) -> Mask:
    """Return which of these connections were read from: more has come in the interval than waits now in addition."""
    reads, was_there = np.zeros(len(at), bool), view.before_at[at] >= 0
    if view.before is not None:
        arrived, there = view.column("bytes_received"), at[was_there]
        was = view.before.array["receive_queue"][view.before_at[there]].astype(np.int64)
        waits_more = view.raw("receive_queue")[there].astype(np.int64) - was
        reads[was_there] = arrived.known[there] & (arrived.numbers[there].astype(np.int64) > waits_more)
    return reads


def _unread(view: View, at: Index) -> str | None:
    """Return how much waits in the receive buffers of these sockets; None if they are empty."""
    return _value(view, "receive_queue", at) if view.raw("receive_queue")[at].any() else None


def _other_end(view: View, at: Index) -> str | None:
    """Return the process at the other end of these connections, if it is on this host and there is only one."""
    name: str | None = _common(view, "process", _other_ends(view, at))
    return name


def _other_ends(view: View, at: Index) -> Index:
    """Return the other ends of connections, as far as they are on this host."""
    sockets = view.now.array
    others = [other_end(sockets[place : place + 1], sockets)["id"] for place in as_list(at[:OTHER_ENDS_MAX])]
    return positions(np.concatenate(others), sockets["id"])


def _listener(view: View, at: Index) -> str | None:
    """Return the process that listens on the port of these connections."""
    name: str | None = _common(view, "process", _listeners(view, at))
    return name


def _listeners(view: View, at: Index) -> Index:
    """Return the listeners on the port of these connections."""
    is_listener = _same(view, ("local_port", "netns"), at[0]) & (view.raw("state") == LISTEN)
    return np.flatnonzero(is_listener)


def _time_wait(view: View, _: Index) -> str | None:
    """Return the number of sockets in TIME_WAIT."""
    number = view.snapshot.counts.get("time_wait")
    return None if number is None else f"{number:,}"


def _senders(view: View, at: Index) -> str | None:
    """Return how many addresses have half-open connections to this listener; None if only one has."""
    is_half_open = _same(view, ("local_port", "netns"), at[0]) & (view.raw("state") == SYN_RECV)
    firsts, _ = distinct_rows([view.raw("remote_address")[is_half_open]])
    return f"{len(firsts):,}" if len(firsts) > 1 else None


def _sender(view: View, at: Index) -> str | None:
    """Return the process on this host whose UDP sockets are connected to this one; None unless there is just one."""
    port, address, netns, protocol = (
        view.raw(name)[at[0]] for name in ("local_port", "local_address", "netns", "protocol")
    )
    is_sender = (view.raw("remote_port") == port) & (view.raw("protocol") == protocol)
    is_there = (view.raw("remote_address") == address).all(axis=1)
    has_any = values_of(view, "local_address", at[:1])[0] in _ANY
    is_sender &= view.raw("netns") == netns if has_any else is_there
    name: str | None = _common(view, "process", np.flatnonzero(is_sender))
    return name


def _client(view: View, at: Index) -> str | None:
    """Return the process on this host that uses this service, at the same address; None unless there is just one."""
    is_used = view.raw("side") != view.raw("side")[at[0]]
    is_used &= view.raw("port") == view.raw("port")[at[0]]
    is_used &= (view.raw("address") == view.raw("address")[at[0]]).all(axis=1)
    name: str | None = _common(view, "process", np.flatnonzero(is_used))
    return name


_FROM_ELSEWHERE = {
    "other_end": _other_end,
    "reader": _reader,
    "target": _target,
    "unread": _unread,
    "listener": _listener,
    "time_wait": _time_wait,
    "senders": _senders,
    "sender": _sender,
    "client": _client,
}
"""Values in sentences that are in no column of the rows."""


def unit_in_sentence(unit: str) -> str:
    """Return the unit to show: sentences name what they count, as in `12 datagrams/s`."""
    counted, _, per = unit.partition("/")
    return unit if counted in ("bytes", RATIO, *TIMES) else "packets" if per else counted


def _common(view: View, name: str, at: Index) -> Any:
    """Return the value that all rows at `at` have in a column; None if they differ, or there is no row."""
    values = set(values_of(view, name, at))
    return values.pop() if len(values) == 1 else None


# --- over time ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tracked:
    """A finding, and when it was first and last seen (CLOCK_MONOTONIC)."""

    finding: Finding
    first_ns: int
    last_ns: int
    order: int
    began_ns: int
    """When it began, by its rows."""
    since_ns: int
    """The same by the wall clock: the other one stops while the host is suspended."""
    has_rows: bool = True
    """False once all its rows have gone, and not only match no more."""
    cause: _Tracked | None = None
    explains: list[_Tracked] = field(default_factory=list)

    @property
    def seen_ns(self) -> int:
        """When it was last seen, or what it explains (CLOCK_MONOTONIC)."""
        return max((self.last_ns, *(each.last_ns for each in self.explains)))

    @property
    def severity(self) -> Severity:
        """Its own, or that of the worst finding that it explains and stands for, if it is none by itself."""
        stands_for = self.explains if self.finding.rule.only_explains else []
        severities = {each.finding.rule.severity for each in (self, *stands_for)}
        return next(severity for severity in Severity if severity in severities)

    @property
    def is_raised(self) -> bool:
        """True once its rows have matched for as long as the rule asks."""
        return self.last_ns - self.first_ns >= self.finding.rule.after_s * 1e9 * _INTERVAL_TOLERANCE


class FindingTracker:
    """The findings of successive readings: raised at once, kept for a while, and explained by each other."""

    def __init__(self) -> None:
        self._frames: dict[str, tuple[Frame, list[Finding]]] = {}
        self._rules: dict[str, list[ParsedRules]] = {}
        self._tracked: dict[int, _Tracked] = {}

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of findings, also of those that have not lasted long enough."""
        return frozenset(tracked.finding.rule.name for tracked in self._tracked.values())

    def update(self, frames: Iterable[tuple[Lens, Frame]], taken_ns: int, wall_ns: int) -> Rows:
        """Evaluate the rules of all tables in these frames, and return the rows of the table `findings`."""
        frames = list(frames)
        found = [finding for lens, frame in frames for finding in self._found(lens, frame)]
        for order, finding in enumerate(found):
            tracked = self._tracked.setdefault(
                finding.key, _Tracked(finding, taken_ns, taken_ns, order, taken_ns, wall_ns)
            )
            tracked.finding, tracked.last_ns, tracked.order = finding, taken_ns, order
            tracked.began_ns = min(tracked.began_ns, taken_ns - finding.lasted_ns)
            tracked.since_ns = min(tracked.since_ns, wall_ns - finding.lasted_ns)
        self._tracked = {
            key: tracked
            for key, tracked in self._tracked.items()
            if taken_ns - tracked.seen_ns
            <= (KEPT_S if tracked.is_raised else tracked.finding.rule.pause_s) * 1e9
        }
        raised = [tracked for tracked in self._tracked.values() if tracked.is_raised]
        for tracked in raised:
            tracked.has_rows = tracked.last_ns == taken_ns or _has_rows(tracked.finding, frames)
        _explain(raised, cache(partial(_addresses_here, frames)))
        raised = [each for each in raised if each.explains or not each.finding.rule.only_explains]
        raised.sort(key=lambda tracked: _rank(tracked, taken_ns))
        ranked = [_values(rank, each, taken_ns) for rank, each in enumerate(raised, 1)]
        return rows_from(FINDINGS, ranked, taken_ns)

    def _found(self, lens: Lens, frame: Frame) -> list[Finding]:
        """Return the findings in a frame; each frame is evaluated once."""
        last = self._frames.get(lens.id)
        if last is None or last[0] is not frame:
            present = (each for each in self._rules_of(lens) if each.query.table.name in frame.now.tables)
            found = [finding for rules in present for finding in find(rules, frame)]
            last = self._frames[lens.id] = frame, found
        return last[1]

    def _rules_of(self, lens: Lens) -> list[ParsedRules]:
        if lens.id not in self._rules:
            self._rules[lens.id] = [parsed_rules(lens, table) for table in lens.tables if table.rules]
        return self._rules[lens.id]


def _has_rows(finding: Finding, frames: Iterable[tuple[Lens, Frame]]) -> bool:
    """Return whether any row of a finding is still there, matching or not. Another namespace may get the number of one
    that has gone."""
    tables = (frame.now.tables.get(finding.table) for _, frame in frames)
    return any(
        rows is not None and bool(np.isin(finding.keys, rows.column(rows.table.key)).any()) for rows in tables
    )


def _addresses_here(frames: Iterable[tuple[Lens, Frame]]) -> Addresses:
    """Return the addresses that sockets of this host have; of those in unknown namespaces, without these."""
    having: dict[str, set[int]] = defaultdict(set)
    tables = (frame.now.tables.get(SOCKETS.name) for _, frame in frames)
    for rows in (each for each in tables if each is not None and len(each)):
        local, netns = rows.array["local_address"], rows.array["netns"]
        firsts, _ = distinct_rows([local, netns])
        numbers = netns[firsts]
        for raw, number, is_known in zip(
            address_bytes(local[firsts]), as_list(numbers), known(numbers), strict=True
        ):
            having[address_text(raw)].update([number] * bool(is_known))
    return {address: frozenset(namespaces) for address, namespaces in having.items()}


def _explain(raised: Sequence[_Tracked], here: Callable[[], Addresses]) -> None:
    """Find the cause of each finding among the others. `here` returns the addresses of this host."""
    by_kind = defaultdict(list)
    for tracked in raised:
        tracked.cause, tracked.explains = None, []
        by_kind[tracked.finding.rule.name].append(tracked)
    for tracked in raised:
        place = tracked.finding.place
        causes = [
            cause
            for kind in tracked.finding.rule.explained_by
            for cause in by_kind[kind]
            if cause.finding.place.may_explain(place, here) and _still_explains(cause, tracked)
        ]
        tracked.cause = max(causes, key=lambda cause: cause.finding.place.nearness(place), default=None)
    for tracked in raised:
        if tracked.cause is None:
            tracked.cause = _cause_in_process(tracked, by_kind)
    for tracked in raised:
        if tracked.cause is not None:
            tracked.cause = _first_cause(tracked.cause)
            tracked.cause.explains.append(tracked)


def _cause_in_process(tracked: _Tracked, by_kind: Mapping[str, Sequence[_Tracked]]) -> _Tracked | None:
    """Return what the process of a finding, or another worker of its server, waits for itself, which is none of its
    clients, unless that waits for this process in turn."""
    return next(
        (
            cause
            for kind in tracked.finding.rule.explained_in_process
            for cause in by_kind.get(kind, ())
            if cause.finding.place.is_same_program(tracked.finding.place)
            and (cause.finding.place.is_outbound or cause.finding.rule.only_explains)
            and _began_no_later(cause, tracked)
            and _still_explains(cause, tracked)
            and _first_cause(cause) is not tracked
        ),
        None,
    )


def _still_explains(cause: _Tracked, tracked: _Tracked) -> bool:
    """Return whether a cause was seen when what it causes was, or makes a pause, as between two retransmissions.

    The kernel does not count when a SYN was sent, but never waits longer to send it again than it has waited so far.
    """
    rule, pause_ns = cause.finding.rule, GONE_AFTER_NS
    if cause.has_rows:
        silent_ns = min(tracked.finding.silent_ns, tracked.last_ns - tracked.began_ns)
        pause_ns = max(round(rule.pause_s * 1e9), pause_ns + silent_ns * rule.until_sent)
    return tracked.last_ns - cause.last_ns < pause_ns


def _began_no_later(cause: _Tracked, tracked: _Tracked) -> bool:
    """Return whether a cause is as old as what it causes; where its rows do not say, as both were first seen."""
    if cause.finding.rule.lasts:
        return cause.began_ns - tracked.began_ns <= BEGAN_TOGETHER_NS
    return cause.first_ns - tracked.first_ns <= BEGAN_TOGETHER_NS


def _first_cause(tracked: _Tracked) -> _Tracked:
    """Return the finding at the beginning of the chain of causes; there is no circle."""
    while tracked.cause is not None:
        tracked = tracked.cause
    return tracked


def _rank(tracked: _Tracked, taken_ns: int) -> tuple[bool, int, int, int]:
    """Order those still seen before those that have gone; then by severity, and in the order of lenses and rules."""
    severity = list(Severity).index(tracked.severity)
    return taken_ns - tracked.seen_ns >= GONE_AFTER_NS, severity, tracked.order, tracked.first_ns


def _values(rank: int, tracked: _Tracked, taken_ns: int) -> dict[str, Any]:
    """Return the values of a finding's row."""
    finding = tracked.finding
    return {
        "id": finding.key,
        "rank": rank,
        "severity": tracked.severity.value,
        "certainty": finding.rule.certainty.value,
        "kind": finding.rule.name,
        "finding": finding.sentence,
        "since": tracked.since_ns,
        "lasted": tracked.seen_ns - tracked.began_ns,
        "unseen": taken_ns - tracked.seen_ns,
        "rows": finding.rows,
        "process": finding.process,
        "pid": _only(finding.place.pids),
        "netns": _only(finding.place.namespaces),
        "view": finding.view,
        "filter": finding.filter,
        "advice": finding.advice,
        "explains": _explained(tracked) or None,
        "cause": None if tracked.cause is None else tracked.cause.finding.key,
    }


def _only(numbers: frozenset[int]) -> int | None:
    return next(iter(numbers)) if len(numbers) == 1 else None


def _explained(tracked: _Tracked) -> str:
    """Return the sentences of what a finding explains; some rows match two rules, one of them a hint."""
    sentences = dict.fromkeys(each.finding.sentence for each in tracked.explains)
    return "; ".join(each for each in sentences if each != tracked.finding.sentence)


def causes_of(view: View, at: int, found: Frame | None) -> list[str]:
    """Return what explains the row at `at` of a view: the sentences of the findings that it belongs to, or of their
    causes."""
    rows = [] if found is None else listed(found, explained=True)
    sentences = {row["id"]: row["finding"] for row in rows}
    causes = []
    for row in rows:
        if row["unseen"] or not row["filter"] or find_table(row["view"])[1].name != view.table.name:
            continue
        with suppress(FilterError):  # of a recording by another version
            if parse_filter(view.table, row["filter"]).mask(view)[at]:
                causes.append(sentences.get(row["cause"], row["finding"]))
    return list(dict.fromkeys(causes))


def listed(frame: Frame, *, explained: bool = False) -> list[dict[str, Any]]:
    """Return the findings of a reading by rank, with all fields; `explained` adds those that others explain."""
    if FINDINGS.name not in frame.now.tables:
        return []
    view = View(Frame(frame.now), replace(screen_query(FINDINGS), all_rows=explained))
    names = [column.name for column in FINDINGS.fields]
    columns = (view.values(name, view.order) for name in names)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
