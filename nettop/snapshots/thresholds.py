# SPDX-License-Identifier: Apache-2.0
"""The user's own thresholds of findings, in place of those that the lenses declare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nettop.snapshots.schema import Rule, Table


@dataclass(frozen=True, slots=True)
class Threshold:
    """When rows of a kind are a finding: those that match `filter`, at least so many `rows`, after so many seconds; as
    declared where it is None. With `never`, they are none."""

    filter: str | None = None
    rows: int | None = None
    after_s: float | None = None
    never: bool = False


_chosen: dict[str, Threshold] = {}


def use_thresholds(chosen: Mapping[str, Threshold]) -> None:
    """Use these thresholds, by kind, in the whole process from now on; as declared for other kinds."""
    _chosen.clear()
    _chosen.update(chosen)


def rules_of(table: Table) -> tuple[Rule, ...]:
    """Return a table's rules with the user's thresholds."""
    if not _chosen:
        return table.rules
    return tuple(
        _with(rule, _chosen[rule.name]) if rule.name in _chosen else rule
        for rule in table.rules
        if not (rule.name in _chosen and _chosen[rule.name].never)
    )


def _with(rule: Rule, chosen: Threshold) -> Rule:
    return replace(
        rule,
        filter=rule.filter if chosen.filter is None else chosen.filter,
        min_rows=rule.min_rows if chosen.rows is None else chosen.rows,
        min_growing_rows=rule.min_growing_rows if chosen.rows is None else None,
        after_s=rule.after_s if chosen.after_s is None else chosen.after_s,
    )
