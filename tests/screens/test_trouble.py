# SPDX-License-Identifier: Apache-2.0
"""Warnings in the sockets' headline, and the key that leads to the rows of each."""

from __future__ import annotations

from textual.widgets import Input

from nettop.screens.dialogs import HelpDialog
from nettop.screens.filter_box import FilterBox
from nettop.screens.lens import LensScreen
from nettop.screens.nettop_app import NettopApp
from nettop.snapshots.connections import SOCKETS
from nettop.widgets.themes import Role
from tests.screens.driving import Running, press, running, shown, text_of
from tests.screens.harness import Step, steps_of
from tests.unit.build import Row, make_frame

ACCEPT_QUEUE, _, CLOSE_WAIT, STUCK, _, _, RETRANSMITTING = SOCKETS.troubles
LEAKING = {"state": "CLOSE_WAIT", "process": "leaker"}
LISTENER = {"id": 20_001, "process": "slow", "state": "LISTEN", "accept_queue": 128, "backlog": 128}
STUCK_BEFORE = {"id": 20_002, "process": "stuck", "send_queue": 900, "bytes_acked": 5, "busy_us": 0}
LOSSY_BEFORE = {"id": 20_003, "process": "lossy", "retransmits": 0, "data_packets_sent": 0}
WELL = {"id": 20_004, "process": "fine", "bytes_sent": 100, "bytes_received": 0}
STUCK_NOW = STUCK_BEFORE | {"busy_us": 1_000_000}
LOSSY_NOW = LOSSY_BEFORE | {"retransmits": 40, "data_packets_sent": 1000}


def readings(before: list[Row], now: list[Row]) -> list[Step]:
    """Return a second between them."""
    return steps_of(make_frame(now, before))


LEAK = readings(
    [*({"id": n + 1, **LEAKING} for n in range(9_880)), WELL],
    [*({"id": n + 1, **LEAKING} for n in range(10_000)), WELL],
)
ALL_BUT_LEAK = readings(
    [LISTENER, STUCK_BEFORE, LOSSY_BEFORE, WELL],
    [LISTENER, STUCK_NOW, LOSSY_NOW, WELL],
)
CALM = readings([WELL], [WELL | {"bytes_sent": 200}])


def headline(run: Running) -> str:
    """Return the second line."""
    return shown(run).headline_bar.text


def processes(screen: LensScreen) -> set[str]:
    """Return the owners of the rows in sight, above the line of totals."""
    return {line.split()[0] for line in text_of(screen.rows)[1:] if line.strip()} - {"─"}


def filter_text(run: Running) -> str:
    """Return the filter of the screen in sight."""
    return shown(run).state.query.filter.text


async def test_ten_thousand_sockets_in_close_wait_are_named_and_shown() -> None:
    """Their number and growth are shown in the warning colour, with a sign; the key filters by them, then
    by nothing.
    """
    async with running(LEAK, (160, 30)) as run:
        assert "! ▲ CLOSE_WAIT 10,000 (+120/s)   " in headline(run)
        spans = [span for part in shown(run).headline_bar._items[0] for span in part.spans]
        assert next(span.role for span in spans if "▲ CLOSE_WAIT" in span.text) is Role.WARN
        assert "fine" in processes(shown(run))
        await press(run, "exclamation_mark")
        assert f"/ {CLOSE_WAIT.filter}   10,000 of 10,001   Esc clears" in shown(run).third_line.text
        assert processes(shown(run)) == {"leaker"}
        await press(run, "exclamation_mark")
        assert filter_text(run) == ""
        assert "▲ CLOSE_WAIT 10,000" in headline(run)


async def test_the_key_goes_from_trouble_to_trouble() -> None:
    """The worst first, a listener too, though listeners are not shown otherwise; after the last, all rows."""
    async with running(ALL_BUT_LEAK, (160, 30)) as run:
        line = "! ▲ accept queue full 1   ▲ send queue stuck 1   ▲ retransmitting 1   "
        assert line in headline(run)
        for trouble, process in ((ACCEPT_QUEUE, "slow"), (STUCK, "stuck"), (RETRANSMITTING, "lossy")):
            await press(run, "exclamation_mark")
            assert filter_text(run) == trouble.filter
            assert processes(shown(run)) == {process}
            assert line in headline(run)
        await press(run, "exclamation_mark")
        assert filter_text(run) == ""
        assert processes(shown(run)) == {"slow", "stuck", "lossy", "fine"}


async def test_without_trouble_nothing_is_said() -> None:
    """The headline has no sign, and the key says that there is none and leaves the filter as it is."""
    async with running(CALM, (160, 30)) as run:
        assert "▲" not in headline(run)
        assert "!" not in headline(run)
        await press(run, "slash", *"fine", "enter", "exclamation_mark")
        assert filter_text(run) == "fine"
        assert [note.message for note in run[0].app._notifications] == [
            "no trouble; ? lists what counts as trouble"
        ]


async def test_trouble_that_has_gone_leads_on() -> None:
    """If the filtered trouble has vanished, the key goes to the next one."""
    async with running([*ALL_BUT_LEAK, make_frame([LISTENER, STUCK_NOW, LOSSY_NOW], None, 2.0).now]) as run:
        await press(run, "exclamation_mark", "exclamation_mark")
        assert filter_text(run) == STUCK.filter
        run[2].tick()
        await run[0].pause()
        assert "stuck" not in headline(run)
        await press(run, "exclamation_mark")
        assert filter_text(run) == ""


async def test_the_key_leads_from_other_tables() -> None:
    """The key goes from events to sockets; its filter is in the box as if typed, and Esc removes it."""
    async with running(ALL_BUT_LEAK, (160, 30)) as run:
        await press(run, "p")
        assert shown(run).table.name == "events"
        await press(run, "exclamation_mark")
        assert (shown(run).table.name, filter_text(run)) == ("sockets", ACCEPT_QUEUE.filter)
        assert processes(shown(run)) == {"slow"}
        await press(run, "slash")
        assert shown(run).query_one(FilterBox).query_one(Input).value == ACCEPT_QUEUE.filter
        await press(run, "escape", "escape")
        assert filter_text(run) == ""


async def test_a_click_on_trouble_is_the_key() -> None:
    """On its name in the headline."""
    async with running(LEAK, (160, 30)) as run:
        await run[0].click("#headline", offset=(headline(run).index("▲ CLOSE_WAIT") + 3, 0))
        assert filter_text(run) == CLOSE_WAIT.filter


async def test_trouble_stays_where_room_is_short() -> None:
    """The trouble's name is kept longer than churn and states, its growth is not."""
    async with running(LEAK, (64, 20)) as run:
        assert "▲ CLOSE_WAIT 10,000" in headline(run)
        assert "(+120/s)" not in headline(run)
        assert "opened" not in headline(run)


async def test_the_help_says_what_trouble_is() -> None:
    """The help has each trouble's meaning, threshold and filter."""
    async with running(CALM, (200, 50)) as run:
        await press(run, "question_mark")
        app = run[0].app
        assert isinstance(app, NettopApp)
        assert isinstance(app.screen, HelpDialog)
        text = " ".join(app.screen.page.text.split())
        assert "CLOSE_WAIT connections that the peer has closed" in text
        assert f"from 100 rows on, or 10 and growing: {CLOSE_WAIT.filter}" in text
        assert all(trouble.filter in text for trouble in SOCKETS.troubles)
