# SPDX-License-Identifier: Apache-2.0
"""The columns that a screen requests: counters as totals, as rates, or as both."""

from __future__ import annotations

import pytest

from nettop.screens.table_state import TableState, initial_state
from nettop.settings import ViewSettings
from nettop.snapshots.connections import EVENTS, FAILURES, GROUPS, SOCKETS
from nettop.snapshots.schema import Table

BOTH = ("process", "bytes_sent", "bytes_sent_per_s")


def state(table: Table, *columns: str, sort: str | None = None) -> TableState:
    """Return the state in which a screen opens a table, with these columns or its own."""
    return initial_state(table, ViewSettings(columns=columns or None, sort=sort))


@pytest.mark.parametrize(
    ("made", "totals", "sort"),
    [
        (state(SOCKETS), False, "-bytes_per_s"),
        (state(SOCKETS, "process", "rtt_us"), False, "-bytes_per_s"),
        (state(SOCKETS, "process", "bytes_sent"), True, "-bytes"),
        (state(SOCKETS, *BOTH), True, "-bytes"),
        (state(SOCKETS, sort="retransmits"), False, "retransmits_per_s"),
        (state(FAILURES), True, "-failed"),
        (state(FAILURES, "port", "failures", sort="-failures_per_s"), True, "-failures"),
    ],
    ids=["rates", "no counter", "totals", "both", "other sort", "declared totals", "sort of the other form"],
)
def test_columns_say_how_counters_are_shown(made: TableState, totals: bool, sort: str) -> None:
    """A table opens with the totals or rates that its columns name, and sorts by what it shows."""
    assert (made.totals, str(made.query.sort)) == (totals, sort)
    assert made.names == made.declared_names


@pytest.mark.parametrize("made", [state(SOCKETS), state(GROUPS)], ids=["sockets", "groups"])
def test_turning_twice_changes_nothing(made: TableState) -> None:
    """Totals become rates and rates totals; once more, and all is as it was."""
    turned = made.with_totals(on=not made.totals)
    assert not {*turned.names} >= {*made.names}
    again = turned.with_totals(on=made.totals)
    assert (again.names, again.query) == (made.names, made.query)


def test_there_is_nothing_to_turn_where_both_stand_or_none() -> None:
    """`t` works where a table shows one form of its counters."""
    has_forms = [a.has_forms for a in (state(SOCKETS), state(GROUPS), state(SOCKETS, *BOTH), state(EVENTS))]
    assert has_forms == [True, True, False, False]
