# SPDX-License-Identifier: Apache-2.0
"""Every key in the table of keys has its documented effect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
from textual.widgets import Input

from nettop.screens.actions import ACTIONS, GRAPH, RECORDING, Action
from nettop.screens.connections.sockets import ConnectionsScreen
from nettop.screens.cpu.cpus import CpuScreen
from nettop.screens.dialogs import ColumnsDialog, ExportDialog, HelpDialog, PaletteDialog
from nettop.screens.filter_box import FilterBox
from nettop.screens.nettop_app import NettopApp
from nettop.screens.playback import Playback
from nettop.snapshots import lenses
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.schema import Lens
from tests.builders.driving import press as press_keys
from tests.builders.driving import running
from tests.builders.harness import Harness, busy_host, harness_of

Prepare = tuple[str, ...]
"""Keys pressed before the one that is tested."""

Check = Callable[[NettopApp, Harness], bool]
Press = Callable[..., Awaitable[None]]


def other_lens() -> Lens:
    """Return a second lens over the same table, with the digit 2."""
    return replace(lenses()[0], id="other", title="Other", digit="2", order=2)


def sort(name: str, *, descending: bool) -> Check:
    """Return a check that the rows are sorted by this column."""
    return lambda app, _: (
        (app.lens_screen.state.query.sort.field, app.lens_screen.state.query.sort.descending)
        == (name, descending)
    )


def chosen(at: int) -> Check:
    """Return a check that the row at this index is chosen; negative ones count from the last."""
    return lambda app, _: app.lens_screen.rows.at == (at if at >= 0 else len(app.lens_screen.rows.order) + at)


def lens_is(name: str) -> Check:
    """Return a check that this lens is shown."""
    return lambda app, _: app.lens_screen.lens.id == name and app.screen is app.lens_screen


def table_is(name: str) -> Check:
    """Return a check that this table of the first lens is shown."""
    return lambda app, _: (app.lens_screen.table.name, app.lens_screen.lens.id) == (name, "connections")


def page(app: NettopApp) -> int:
    """Return the number of lines of a page."""
    return app.lens_screen.rows.page - 1


EFFECTS: dict[str, tuple[Prepare, Check]] = {
    "refresh_now": ((), lambda app, harness: harness.refresh_was_requested),
    "filter": ((), lambda app, _: bool(app.lens_screen.query(FilterBox)) and isinstance(app.focused, Input)),
    "sort_next": ((), sort("rtt", descending=True)),
    "sort_reverse": ((), sort("bytes_per_s", descending=False)),
    "sort_left": ((), sort("bytes_received_per_s", descending=True)),
    "sort_right": ((), sort("rtt", descending=True)),
    "columns": (
        (),
        lambda app, _: isinstance(app.screen, ColumnsDialog) and "[x] PROCESS" in app.screen.page.text,
    ),
    "copy": (
        ("down",),
        lambda app, _: app.clipboard.startswith(
            "nginx 1813\ttcp\t10.0.3.7:443\t203.0.92.27:39139\t50.0 Mb/s\t"
        ),
    ),
    "copy_command": (("down",), lambda app, _: app.clipboard.startswith("ss -tinpa 'src 10.0.3.7:443 ")),
    "explain": (
        ("down", "right"),
        lambda app, _: "owner: process, PID and container" in app.lens_screen.details.text,
    ),
    "host_names": ((), lambda app, _: "host-27.example:39139" in app.lens_screen.rows.render_line(1).text),
    "next_finding": ((), lambda app, _: any("no findings" in note.message for note in app._notifications)),
    "keep_closed": ((), lambda app, _: "closed kept 0" in app.lens_screen.headline_bar.text),
    "export": (
        (),
        lambda app, _: isinstance(app.screen, ExportDialog) and "JSON Lines" in app.screen.page.text,
    ),
    "freeze": (
        (),
        lambda app, _: (
            app.lens_screen.shown_frame.frozen is not None and "frozen" in app.lens_screen.first_line.text
        ),
    ),
    "totals": ((), lambda app, _: "bytes_sent" in app.lens_screen.rows.names),
    "all_rows": (
        (),
        lambda app, harness: app.lens_screen.state.query.all_rows and harness.refresh_was_requested,
    ),
    "details": (
        ("down",),
        lambda app, _: app.lens_screen.details_open and "REMOTE" in app.lens_screen.details.text,
    ),
    "follow": (("down",), lambda app, _: app.lens_screen.rows.follows),
    "back": (("down", "right"), lambda app, _: not app.lens_screen.details_open),
    "clear": (("down", "right"), lambda app, _: not app.lens_screen.details_open),
    "bars": ((), lambda app, _: not any(column.bar for column in app.lens_screen.rows.columns)),
    "unit": ((), lambda app, _: app.context.in_bytes and "B/s" in app.lens_screen.rows.render_line(1).text),
    "average": (
        (),
        lambda app, harness: (
            app.context.average_s == 2.0
            and "⟳ 1 s  avg 1 of 2 s" in app.lens_screen.first_line.text
            and harness.refresh_was_requested
        ),
    ),
    "slower": ((), lambda app, _: app.context.interval_s == 2.0 and "2 s" in app.lens_screen.first_line.text),
    "faster": (
        (),
        lambda app, _: app.context.interval_s == 0.5 and "0.5 s" in app.lens_screen.first_line.text,
    ),
    "move_up": (("down", "down"), chosen(0)),
    "move_down": (("down",), chosen(1)),
    "page_up": (("end",), lambda app, s: chosen(-1 - page(app))(app, s)),
    "page_down": (("home",), lambda app, s: chosen(page(app))(app, s)),
    "first": (("end",), chosen(0)),
    "last": ((), chosen(-1)),
    "next_lens": ((), lens_is("other")),
    "previous_lens": ((), lens_is("findings")),
    "next_table": ((), table_is("events")),
    "previous_table": ((), table_is("groups")),
    "option_group": ((), table_is("groups")),
    "lens(2)": ((), lens_is("other")),
    "lens(1)": (("2",), lens_is("connections")),
    "overhead": ((), lens_is("self")),
    "theme": ((), lambda app, _: app.theme == "nettop-light"),
    "help": ((), lambda app, _: isinstance(app.screen, HelpDialog) and "Refresh now" in app.screen.page.text),
    "palette": (
        (),
        lambda app, _: isinstance(app.screen, PaletteDialog) and "Sort by rtt_us" in app.screen.page.text,
    ),
    "suspend": ((), lambda app, _: app.suspended),
    "quit": ((), lambda app, _: app._exit),
    "interrupt": ((), lambda app, _: app._exit),
}


def effect_of(action: Action) -> tuple[Prepare, Check] | None:
    """Return the expected effect of an action; digits without a lens do nothing."""
    return EFFECTS.get(f"lens({action.argument})" if action.id == "lens" else action.id)


PRESSED = [(key, action) for action in ACTIONS for key in action.keys if effect_of(action)]


class Watched(NettopApp):
    """The app, which records a request to suspend that a test cannot perform."""

    suspended = False

    def action_suspend_process(self) -> None:
        self.suspended = True


@asynccontextmanager
async def after(*keys: str) -> AsyncIterator[tuple[Press, NettopApp, Harness]]:
    """Yield the app with rows after these keys, and the function that presses more."""
    lens_set = (lenses()[0], other_lens(), FINDINGS)
    async with running(
        busy_host(), (150, 30), lens_set=lens_set, resolver=lambda raw: f"host-{raw[15]}.example"
    ) as run:
        run[0].app.__class__ = Watched
        await press_keys(run, *keys)
        _ = run[2].refresh_was_requested
        yield partial(press_keys, run), run[0].app, run[2]


@pytest.mark.parametrize(("key", "action"), PRESSED, ids=[f"{key}" for key, _ in PRESSED])
async def test_key_has_its_effect(key: str, action: Action) -> None:
    """Pressing a key has the effect in the table."""
    effect = effect_of(action)
    assert effect is not None
    prepare, check = effect
    async with after(*prepare) as (press, app, harness):
        assert not check(app, harness)
        await press(key)
        assert check(app, harness)


def test_every_action_has_an_effect_here() -> None:
    """Each key stands once in the table, and is pressed by these tests, unless only another lens, a flame graph or a
    recording has it."""
    not_pressed = {a.id for a in ACTIONS if not effect_of(a) and a.group not in (GRAPH, RECORDING)}
    assert not_pressed <= {"lens", "option_loopback", "option_sampling"}
    keys = [key for action in ACTIONS for key in action.keys]
    assert len(keys) == len(set(keys))


def test_every_action_has_a_method() -> None:
    """Each row of the table names a method of the app, of the lens's screen or of what controls recordings."""
    for action in ACTIONS:
        owner = NettopApp if action.by_app else CpuScreen if action.group == GRAPH else ConnectionsScreen
        assert callable(getattr(owner, f"action_{action.method or action.id}"))
        if action.method == "replay":
            assert callable(getattr(Playback, action.argument.split("'")[1]))


@pytest.mark.parametrize(
    "keys", [("slash",), ("question_mark",), ("ctrl+p",), ("down", "right", "right")], ids=" ".join
)
async def test_enter_refreshes_from_everywhere(keys: Prepare) -> None:
    """Enter requests a refresh, and Ctrl-C quits, whatever has the focus: a box, a dialog, the palette, the details."""
    async with after(*keys) as (press, app, harness):
        await press("enter")
        assert harness.refresh_was_requested
        await press("ctrl+c")
        assert app._exit


async def test_escape_goes_back_step_by_step() -> None:
    """→ twice lets the arrows scroll the details, ← leaves them. Esc closes the details, drops the filter, then
    the selection, and then is no longer offered."""
    async with after("slash", *"nginx", "enter", "down", "right", "right", "down", "down") as (press, app, _):
        screen = app.lens_screen
        assert (screen.details.top, screen.rows.at) == (2, 0)
        await press("left", "down")
        assert (screen.rows.at, screen.details_open) == (1, True)
        seen = []
        for _ in range(3):
            await press("escape")
            seen.append((screen.details_open, screen.state.query.filter.text, screen.rows.key is None))
        assert seen == [(False, "nginx", False), (False, "", False), (False, "", True)]
        assert "Esc" not in screen.footer.text


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("cwnd", sort("cwnd", descending=True)),
        ("other.failures", lambda app, _: app.lens_screen.table.name == "failures"),
        ("other.failures", lens_is("other")),
        ("totals", lambda app, _: app.lens_screen.state.totals),
        ("show failures", table_is("failures")),
    ],
)
async def test_palette(text: str, check: Check) -> None:
    """The palette sorts by a column that is not shown, opens tables of other lenses, and does what keys do."""
    async with after("ctrl+p", *text, "enter") as (_, app, harness):
        assert app.screen is app.lens_screen
        assert check(app, harness)


def test_lone_lens_shows_no_lens_keys() -> None:
    """With one lens of one table nothing can be switched, and no key is shown for it."""
    alone = replace(lenses()[0], tables=lenses()[0].tables[:1])
    screen = harness_of(busy_host()).app(lens_set=(alone,)).lens_screen
    assert not any(screen.keys.is_available(a) for a in ACTIONS if a.group == "Lenses")
