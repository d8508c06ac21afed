# SPDX-License-Identifier: Apache-2.0
"""The tables of a lens: switching, what each keeps, and that hidden ones do nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nettop.query.filter import parse_filter
from nettop.screens.actions import ACTIONS
from nettop.screens.dialogs import filter_help
from nettop.screens.filter_box import FilterBox
from nettop.screens.lens import LensScreen
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from nettop.snapshots.connections import FAILURES, LENS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Table
from tests.builders.driving import Running, notes, on_eventful_host, press, running, shown, text_of, tick
from tests.builders.example_events import eventful_host
from tests.builders.harness import Step

NAMES = [table.name for table in LENS.tables]


async def click_third_line(run: Running, word: str) -> None:
    """Click on a word of the line with the tables' names."""
    line = shown(run).third_line
    await run[0].click(line, offset=(line.text.index(word), 0))
    await run[0].pause()
    run[2].run_tasks()
    await run[0].pause()


@pytest.mark.parametrize("size", [(40, 10), (60, 20), (160, 45)], ids=lambda s: str(s[0]))
async def test_all_tables_are_named_everywhere(size: tuple[int, int]) -> None:
    """At every size the third line names the tables, as far as there is room, and the one in sight always."""
    async with on_eventful_host(size) as run:
        for name in [*NAMES, NAMES[0]]:
            assert shown(run).table.name == name
            words = shown(run).third_line.text.split()
            assert name in words
            assert words[: len(NAMES)] == NAMES if size[0] >= 60 else True
            await press(run, "p")


@pytest.mark.parametrize("name", NAMES)
async def test_every_key_may_be_pressed_in_every_table(name: str) -> None:
    """No key of the table of keys harms any of the lens's tables, whatever is open."""
    ends = {"quit", "interrupt", "suspend"}
    keys = [key for action in ACTIONS if action.id not in ends for key in action.keys]
    async with on_eventful_host((100, 24), view=f"connections.{name}") as run:
        for key in keys:
            await press(run, key)
            if not isinstance(run[0].app.screen, LensScreen) or run[0].app.screen.query(FilterBox):
                await press(run, "escape")
        await tick(run)
        assert run[0].app.is_running
        assert shown(run).rows.view is not None


async def test_p_goes_round_and_back() -> None:
    """`p` and `P` go round the tables, and so do clicks, but not while typing; the footer names the next table."""
    async with on_eventful_host((160, 30)) as run:
        seen, next_tables = [], []
        for key in "pppPPPPp":
            next_tables.append(shown(run).footer.text.split(" p ")[1].split()[0])
            await press(run, key)
            seen.append(shown(run).table.name)
        assert seen == ["events", "failures", "groups", "failures", "events", "sockets", "groups", "sockets"]
        assert next_tables[:4] == ["events", "failures", "groups", "sockets"]
        await click_third_line(run, "failures")
        assert shown(run).table.name == "failures"
        await press(run, "slash", "p")
        assert shown(run).query_one(FilterBox).input.value == "p"
        await click_third_line(run, "groups")
        assert shown(run).table.name == "failures"


async def test_columns_of_the_command_line_hold_for_their_table_alone() -> None:
    """`--view` opens a table, which the source gets first; its columns are its own, the filter is that of all."""
    view_settings = ViewSettings(view="connections.events", filters=("refused",), columns=("time", "reason"))
    async with on_eventful_host(settings=Settings(view=view_settings)) as run:
        assert [c.name for c in shown(run).rows.columns] == ["time", "reason"]
        assert "/ refused" in shown(run).third_line.text
        assert run[2].script.options.tables == {"events"}
        await press(run, "P")
        assert "/ refused" in shown(run).third_line.text
        assert shown(run).state.declared_names == LENS.main.screen


async def test_each_table_keeps_how_it_was_left() -> None:
    """Sort and totals are a table's own, and so is its choice where none was made elsewhere."""
    async with on_eventful_host() as run:
        sockets = shown(run)
        await press(run, "t", "S", "p")
        events = shown(run)
        await press(run, "down", "P")
        assert shown(run) is sockets
        assert (sockets.state.totals, str(sockets.state.query.sort)) == (True, "bytes")
        await press(run, "escape", "p")
        assert shown(run) is events
        assert events.rows.at == 0
        assert events.rows.key is not None


# --- what goes along ----------------------------------------------------------------------------------------


def chosen_values(run: Running, *names: str) -> list[object]:
    """Return the values of the chosen row."""
    screen = shown(run)
    assert screen.rows.at is not None
    at = screen.view.order[screen.rows.at : screen.rows.at + 1]
    return [screen.view.values(name, at)[0] for name in names]


async def test_the_choice_goes_along() -> None:
    """The next table chooses a related row: the connection, its peer or its process."""
    async with on_eventful_host() as run:
        await press(run, "p", "slash", *"fail", "enter", "down", "down")
        remote, pid = chosen_values(run, "remote", "pid")
        await press(run, "escape")
        assert chosen_values(run, "remote", "pid") == [remote, pid]
        await press(run, "p")
        assert chosen_values(run, "remote_address") == [str(remote).rpartition(":")[0]]
        await press(run, "P", "p", "P")
        assert chosen_values(run, "remote", "pid") == [remote, pid]
        await press(run, "P", "P")
        assert shown(run).table.name == "groups"
        assert chosen_values(run, "pid") == [pid]


async def test_the_choice_passes_a_table_without_such_a_row() -> None:
    """A connection is chosen again after tables without a related row."""
    async with on_eventful_host() as run:
        await press(run, "down", "down")
        remote = chosen_values(run, "remote")
        await press(run, "p")
        assert shown(run).rows.at is None
        await press(run, "p", "p")
        assert shown(run).table.name == "groups"
        assert shown(run).rows.at is not None
        await press(run, "P", "P", "P")
        assert chosen_values(run, "remote") == remote


async def test_a_table_without_such_a_row_keeps_its_own_choice() -> None:
    """No unrelated row is chosen; nor is any if none was chosen before."""
    async with on_eventful_host() as run:
        await press(run, "p", "p")
        assert shown(run).rows.at is None
        await press(run, "down", "down", "P", "P", "down", "down", "down", "escape")
        sockets = shown(run)
        assert sockets.rows.at is None
        await press(run, "down", "down")
        sockets.lens_state.chosen = {"remote_address": "192.0.2.1", "pid": None, "group": "of groups alone"}
        sockets.follow_lens()
        sockets.update_view()
        assert sockets.rows.at == 1


async def test_the_filter_goes_along() -> None:
    """The filter belongs to the lens: setting or clearing it in any table affects all."""
    async with on_eventful_host() as run:
        await press(run, "slash", *"nginx", "enter", "p")
        events = shown(run)
        assert "/ nginx" in events.third_line.text
        assert {*events.view.values("process", events.view.order)} == {"nginx"}
        await press(run, "slash", *" or curl", "enter", "P")
        assert shown(run).state.query.filter.text == "nginx or curl"
        await press(run, "escape", "p")
        assert events.state.query.filter.is_empty
        assert notes(run) == []


async def test_a_filter_that_a_table_cannot_apply() -> None:
    """A table without the filter's field shows everything and says so; a filter set there replaces it elsewhere."""
    async with on_eventful_host() as run:
        await press(run, "slash", *"rtt_us>0", "enter", "p", "p")
        failures = shown(run)
        assert failures.table.name == "failures"
        assert failures.state.query.filter.is_empty
        assert notes(run) == ["failures is not filtered: unknown field 'rtt_us'"]
        await press(run, "P")
        assert shown(run).state.query.filter.text == "rtt_us>0"
        await press(run, "P", "P", "slash", *"conns>0", "enter", "p")
        assert shown(run).state.query.filter.is_empty
        assert notes(run)[-1] == "sockets is not filtered: unknown field 'conns'"


async def test_freezing_goes_along() -> None:
    """The next table stays frozen at the same reading, even without a source; a refresh or resuming there applies to
    both."""
    async with on_eventful_host((120, 30)) as run:
        sockets = shown(run)
        await press(run, "space")
        frozen = run[2].session.bus.frame("connections")
        run[2].now += 9
        await tick(run)
        await press(run, "p")
        events = shown(run)
        assert "❄ frozen 00:09 ago" in events.first_line.text
        assert events.view.frame is frozen
        assert "resume" in events.footer.text
        before = text_of(events.rows)
        run[2].session.bus.forget("connections")
        events.show_newest()
        await tick(run)
        assert text_of(events.rows) == before
        await press(run, "enter")
        await tick(run)
        assert events.view.frame is run[2].session.bus.frame("connections")
        assert events.shown_frame.frozen is not None
        await press(run, "space")
        newest = run[2].session.bus.frame("connections")
        assert events.view.frame is newest
        await press(run, "P")
        assert sockets.view.frame is newest
        assert "frozen" not in sockets.first_line.text


async def test_unread_tables_are_not_frozen() -> None:
    """A table that the frozen reading lacks shows the newest, and says so; the first stays frozen."""
    steps, batches = eventful_host()
    bare = [without(step, FAILURES.name) for step in steps[:2]]
    async with running([*bare, *steps[2:]], batches=batches) as run:
        sockets = shown(run)
        await press(run, "space")
        frozen = run[2].session.bus.frame("connections")
        await press(run, "p", "p")
        assert notes(run) == ["failures is not frozen: it had not been read yet"]
        await tick(run)
        failures = shown(run)
        assert failures.view.frame is run[2].session.bus.frame("connections")
        assert "frozen" not in failures.first_line.text
        await press(run, "P", "P")
        assert sockets.view.frame is frozen


async def test_tables_out_of_sight_draw_nothing_and_hold_nothing() -> None:
    """Only the visible table gets new frames; others hold no rows, and show the newest when visible."""
    async with on_eventful_host() as run:
        sockets = shown(run)
        await press(run, "p")
        drawn = sockets.rows.drawn
        await tick(run)
        assert sockets.rows.drawn == drawn
        assert (sockets.view, sockets.rows.view) == (None, None)
        await press(run, "P")
        assert sockets.view.frame is run[2].session.bus.frame("connections")


async def test_a_table_is_read_when_it_is_first_looked_at() -> None:
    """On-demand rows are requested, and arrive with the next reading, without zeros before."""
    steps, batches = eventful_host()
    bare = [without(step, FAILURES.name) for step in steps[:2]]
    async with running([*bare, steps[2]], batches=batches) as run:
        await press(run, "p", "p")
        assert "failures" in run[2].script.options.tables
        assert run[2].refresh_was_requested
        assert shown(run).notice.text == "Connections: attaching …"
        assert not shown(run).rows.region
        await tick(run)
        assert "refused" in text_of(shown(run).rows)[1]
        await press(run, "P", "p")
        assert not run[2].refresh_was_requested


def without(step: Step, table: str) -> Step:
    """Return the step, in which a table is not read yet."""
    return replace(step, tables={name: rows for name, rows in step.tables.items() if name != table})


@pytest.mark.parametrize(
    "table", [t for lens in (*lenses(), SELF) for t in lens.tables], ids=lambda t: t.name
)
def test_the_filters_in_help_are_filters_of_the_table(table: Table) -> None:
    """Each example can be typed as it is, and compares or searches something."""
    examples = [example for example, _ in filter_help(table) if example]
    assert {*map(bool, examples)} == {True}
    assert not any(parse_filter(table, example).is_empty for example in examples)
    assert parse_filter(table, examples[-2]).text.count(" or ") == 1


async def test_help_lists_the_tables_and_how_they_are_read() -> None:
    """Only the help says what tables show, how filters are written, which hook gives what, and what was lost."""
    steps, batches = eventful_host(lost={"events": 1234, "connection records": 0})
    async with running(steps, batches=batches) as run:
        await press(run, "question_mark")
        dialog = run[0].app.screen
        lines = [line.split(maxsplit=1) for line in dialog.page.text.splitlines() if line.strip()]
        facts = {line[0]: line[1] for line in lines if len(line) > 1}
        assert facts["groups"].startswith("sockets by process")
        assert "tp_btf/inet_sock_set_state" in dialog.page.text
        assert "fexit/inet_csk_accept" in dialog.page.text
        assert any(line[0] == "abc" and line[1].startswith("text in any column") for line in lines)
        assert "tp_btf" not in shown(run).headline_bar.text
        assert any(line[0] == "events" and line[1].startswith("1,234 events") for line in lines)
        assert not any(line[0] == "connection records" for line in lines)
