# SPDX-License-Identifier: Apache-2.0
"""Findings of successive readings: how long each has lasted, and which explains which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np

from nettop.query.findings import INTERVAL_TOLERANCE, Finding, ParsedRules, find, parsed_rules
from nettop.query.place import Addresses, addresses_here
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.schema import Lens, Severity
from nettop.snapshots.snapshot import Frame, Rows, rows_from

T = TypeVar("T")

KEPT_S = 10.0
"""Seconds that a finding is kept after it was last seen, so that it does not blink."""
GONE_AFTER_NS = 2_000_000_000
"""After this long unseen, a finding ranks last and no longer explains others."""
BEGAN_TOGETHER_NS = 2_000_000_000
"""What a process waits for may be noticed so much later than that others wait for it: a request arrives before the one
that it causes is sent, and each is noticed at a reading."""


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
        return max((self.last_ns, *(explained.last_ns for explained in self.explains)))

    @property
    def worst(self) -> tuple[int, int]:
        """The severity, the worst first, and the place among the rules: its own, or those of the worst that it
        explains, as it stands for it."""
        severities = list(Severity)
        return min(
            (severities.index(explained.finding.rule.severity), explained.order)
            for explained in (self, *self.explains)
        )

    @property
    def severity(self) -> Severity:
        """Its own, or that of the worst finding that it explains."""
        return list(Severity)[self.worst[0]]

    @property
    def is_raised(self) -> bool:
        """True once its rows have matched for as long as the rule asks."""
        return self.last_ns - self.first_ns >= self.finding.rule.after_s * 1e9 * INTERVAL_TOLERANCE


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
        _explain(raised, cache(partial(addresses_here, frames)))
        raised = [each for each in raised if each.explains or not each.finding.rule.only_explains]
        raised.sort(key=lambda tracked: _rank(tracked, taken_ns))
        ranked = [_values(rank, each, taken_ns) for rank, each in enumerate(raised, 1)]
        return rows_from(FINDINGS, ranked, taken_ns)

    def _found(self, lens: Lens, frame: Frame) -> list[Finding]:
        """Return the findings in a frame; each frame is evaluated once."""
        last = self._frames.get(lens.id)
        if last is None or last[0] is not frame:
            present = (rule for rule in self._rules_of(lens) if rule.query.table.name in frame.now.tables)
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


def _rank(tracked: _Tracked, taken_ns: int) -> tuple[bool, int, int, bool, int]:
    """Order those still seen before those that have gone; then by severity, and in the order of lenses and rules: a
    cause takes the place of the worst that it explains."""
    is_gone = taken_ns - tracked.seen_ns >= GONE_AFTER_NS
    return is_gone, *tracked.worst, tracked.cause is not None, tracked.first_ns


def _values(rank: int, tracked: _Tracked, taken_ns: int) -> dict[str, Any]:
    """Return the values of a finding's row. A cause is as old as the first that it explains."""
    finding, whole = tracked.finding, (tracked, *tracked.explains)
    return {
        "id": finding.key,
        "rank": rank,
        "severity": tracked.severity.value,
        "certainty": finding.rule.certainty.value,
        "kind": finding.rule.name,
        "finding": finding.sentence,
        "since": min(each.since_ns for each in whole),
        "lasted": tracked.seen_ns - min(each.began_ns for each in whole),
        "unseen": taken_ns - tracked.seen_ns,
        "rows": finding.rows,
        "process": finding.process,
        "pid": _only(finding.place.pids),
        "netns": _only(finding.place.namespaces),
        "peer": _only(finding.place.remote),
        "port": finding.port,
        "view": finding.view,
        "filter": finding.filter,
        "advice": finding.advice,
        "explains": _explained(tracked) or None,
        "cause": None if tracked.cause is None else tracked.cause.finding.key,
    }


def _only(values: frozenset[T]) -> T | None:
    return next(iter(values)) if len(values) == 1 else None


def _explained(tracked: _Tracked) -> str:
    """Return the sentences of what a finding explains; some rows match two rules, one of them a hint."""
    sentences = dict.fromkeys(explained.finding.sentence for explained in tracked.explains)
    return "; ".join(sentence for sentence in sentences if sentence != tracked.finding.sentence)
