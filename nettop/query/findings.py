# SPDX-License-Identifier: Apache-2.0
"""Findings: the rules of tables, applied to their views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from socket import IPPROTO_UDP
from typing import Any

import numpy as np

from nettop.query.filter import Filter, combined, parse_filter, quote
from nettop.query.place import PLACES_MAX, Place, place_of
from nettop.query.query import Query, screen_query
from nettop.query.related_rows import common_process, same_rows
from nettop.query.sentences import sentence
from nettop.query.units import TIMES, UNKNOWN
from nettop.query.values import values_of
from nettop.query.view import View
from nettop.snapshots import find_table, view_name
from nettop.snapshots.arrays import Array, Index, Mask, distinct_rows
from nettop.snapshots.connections import SOCKETS, SYN_SENT
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.schema import Kind, Lens, Rule, Table
from nettop.snapshots.snapshot import Frame, known
from nettop.snapshots.thresholds import rules_of

GROUPS_MAX = 8
"""Maximum findings of a rule; beyond it, they are told apart by fewer columns."""
INTERVAL_TOLERANCE = 0.9
"""Two readings may be slightly closer than the interval."""
_EVIDENCE_KEPT = 256
"""Views and filters of findings that are kept, as most findings are found again in the next reading."""
_ANY_TIME_MS = 1 << 40
"""Longer than anything lasts."""
Identity = tuple[tuple[str, Any], ...]
"""The columns by which findings of a rule are told apart, with their values."""


@dataclass(frozen=True, eq=False, slots=True)
class ParsedRule:
    """A rule of the table shown by `view`, with its parsed filter."""

    table: Table
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
    port: int | None
    """The port that tells it from others of its rule."""
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
        rows, totals, beside = (parse_filter(table, text) for text in (rule.filter, rule.totals, rule.beside))
        names = frozenset((*rows.names, *totals.names, *beside.names))
        rules.append(ParsedRule(table, view, rule, rows, totals, beside, names))
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
        if view.elapsed_s is not None and view.elapsed_s < parsed.rule.min_interval_s * INTERVAL_TOLERANCE:
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
        if beside is not None and not (beside & same_rows(view, rule.by, group[0])).any():
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
        totals = [_totals_of(view, column_name, at, places, len(firsts)) for column_name in names]
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
        sentence(rule.says, view, at),
        sentence(rule.advice, view, at),
        len(at),
        common_process(view, at) if "process" in table.by_name else None,
        identity.get("port", identity.get("local_port", identity.get("remote_port"))),
        place_of(view, at[:PLACES_MAX]),
        table.name,
        view.raw(table.key)[at[:PLACES_MAX]],
        _lasted_ns(view, rule, at),
        _silent_ns(view, at[:PLACES_MAX]),
        *_evidence(parsed, tuple(identity.items())),
    )


def _lasted_ns(view: View, rule: Rule, at: Index) -> int:
    """Return for how long the rows have matched already, as they say; 0 if they do not."""
    if not rule.lasts or rule.lasts in view.missing:
        return 0
    longest = max((value for value in values_of(view, rule.lasts, at) if value is not None), default=0)
    return round(longest / TIMES[view.table.by_name[rule.lasts].unit] * 1e9)


def _silent_ns(view: View, at: Index) -> int:
    """Return how long ago any of these rows that waits for an answer sent data, new or again (tcpi_last_data_sent). A
    SYN or a datagram, of which that is unknown, may have been sent at any time."""
    if view.table is not SOCKETS:
        return 0
    is_untimed = (view.raw("state")[at] == SYN_SENT) | (view.raw("protocol")[at] == IPPROTO_UDP)
    waits = at[is_untimed | (view.raw("send_queue")[at] > 0)]
    silent_ms = (value for value in values_of(view, "last_sent_ms", waits) if value is not None)
    return min(silent_ms, default=_ANY_TIME_MS if is_untimed.all() else 0) * 1_000_000


@lru_cache(_EVIDENCE_KEPT)
def _evidence(parsed: ParsedRule, values: Identity) -> tuple[str, str]:
    """Return the view that shows a finding, and the filter of its rows; as a small screen cuts the end, who and where
    come first."""
    table, identity, (shown, wanted) = parsed.table, dict(values), parsed.rule.proof
    if shown not in ("", parsed.view):  # rows of other tables
        _, table = find_table(shown)
        place = (
            [equals("netns", identity["netns"])] if "netns" in identity.keys() & table.by_name.keys() else []
        )
        return shown, combined(table, [parse_filter(table, text) for text in (*place, wanted)]).text
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
