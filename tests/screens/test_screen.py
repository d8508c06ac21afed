# SPDX-License-Identifier: Apache-2.0
"""The connections screen by pilot: what it shows, follows, holds, refuses and survives."""

from __future__ import annotations

import asyncio
import base64
import re
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from textual import events

from nettop.process.interrupts import handle_signals
from nettop.query.address import address_bytes
from nettop.screens.actions import BY_ID
from nettop.screens.filter_box import FilterBox
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Kind, Lens
from nettop.widgets.bar import Bar
from nettop.widgets.details import sections_of
from nettop.widgets.table import LiveTable
from tests.builders.driving import Running, press, running, shown, text_of, tick, type_at_once
from tests.builders.harness import Step, busy_host, steps_of
from tests.unit.build import Row, make_frame


def connection(key: int, sent: int, **more: object) -> Row:
    """Return a connection of nginx that sent so much."""
    return {"id": key, "process": "nginx", "pid": key, "bytes_sent": sent, "bytes_received": 0, **more}


def two_orders() -> list[Step]:
    """Return ten connections whose order by rate is turned round by the third snapshot."""
    first = [connection(key, 0) for key in range(1, 11)]
    second = [connection(key, key * 1000) for key in range(1, 11)]
    third = [connection(key, key * 1000 + (11 - key) * 5000) for key in range(1, 11)]
    steps = steps_of(make_frame(second, first))
    (later,) = steps_of(make_frame(third, None, elapsed_s=2.0))
    return [*steps, later]


async def test_rates_are_averages_of_several_intervals() -> None:
    """Averages cover the seconds in the first line, without rows that have gone."""
    sent = [0, 1000, 9000, 9000, 9000]
    steps = [
        make_frame([connection(1, n), *[connection(2, 0)] * (at < 2)], None, at).now
        for at, n in enumerate(sent)
    ]
    async with running(list(steps), ticks=2) as run:
        await press(run, "A", "A")
        for covers, rate in (
            ("2 of 10 s", "36.0 kb/s"),
            ("3 of 10 s", "24.0 kb/s"),
            ("4 of 10 s", "18.0 kb/s"),
        ):
            await tick(run)
            assert f"avg {covers}" in run[1].first_line.text
            assert rate in text_of(run[1].rows)[1]
            assert len(run[1].rows.order) == 1
        await press(run, "A", "A")
        await tick(run)
        assert "avg" not in run[1].first_line.text


async def test_an_average_is_longer_than_the_interval() -> None:
    """Only longer averages are offered, and one equal to the interval has no name."""
    async with running(two_orders()) as run:
        await press(run, "A", "plus", "plus")
        run[2].session._pace.set_interval(5.0)
        run[1].draw_lines()
        assert "avg" not in run[1].first_line.text
        await press(run, "A")
        assert run[1].context.average_s == 10.0
        run[2].session._pace.set_interval(60.0)
        await press(run, "A")
        assert run[1].context.average_s == 0.0
        assert not run[1].keys.is_available(BY_ID["average"])


async def test_walking_goes_line_by_line() -> None:
    """While only ↑ and ↓ were pressed, the selection stays on its line; a step draws two rows."""
    async with running(two_orders()) as run:
        rows = run[1].rows
        await press(run, "down", "down", "down")
        assert (rows.at, rows.key) == (2, 8)
        await tick(run)
        assert (rows.at, rows.key) == (2, 3)
        assert text_of(rows)[3].startswith("▸nginx 3 ")
        drawn = rows.drawn
        await press(run, "down")
        assert (rows.at, rows.key) == (3, 4)
        assert rows.drawn - drawn <= 2


@pytest.mark.parametrize(
    ("keys", "follows"),
    [
        ("right", True),
        ("f", True),
        ("right down up", True),
        ("right escape", False),
        ("right left", False),
        ("f f", False),
        ("f up", False),
    ],
)
async def test_a_followed_row_stays_chosen(keys: str, follows: bool) -> None:
    """From → or its own key on, the selected row stays selected and visible when the order changes, until the details
    are closed, the key is pressed again, or another row is selected."""
    async with running(two_orders(), (80, 20 if "right" in keys else 10)) as run:
        rows = run[1].rows
        await press(run, "down", *keys.split())
        assert (rows.at, rows.key) == (0, 10)
        await tick(run)
        assert (rows.at, rows.key) == ((9, 10) if follows else (0, 1))
        assert any(line.startswith("◆nginx 10 " if follows else "▸nginx 1 ") for line in text_of(rows))


async def test_closed_row_dims_then_goes() -> None:
    """A closed connection is marked for one interval and not counted; then the row in its place is selected."""
    first = [connection(1, 5), connection(2, 7)]
    steps = steps_of(make_frame(first, first, 1.0))
    (without,) = steps_of(make_frame([connection(1, 5)], None, elapsed_s=2.0))
    (again,) = steps_of(make_frame([connection(1, 5)], None, elapsed_s=3.0))
    async with running([*steps, without, again], ticks=3) as run:
        lines = text_of(run[1].rows)
        assert any(line.startswith("×nginx 2 ") for line in lines)
        assert any("total 1 " in line for line in lines)
        assert "opened 0/s   closed 1/s" in run[1].headline_bar.text
        await press(run, "down", "down", "f")
        assert run[1].rows.key == 2
        await tick(run)
        assert not any("nginx 2 " in line for line in text_of(run[1].rows))
        assert run[1].rows.key == 1


async def test_a_frozen_screen_does_not_change() -> None:
    """A frozen screen ignores new data and shows its age; Enter takes one new reading."""
    async with running(two_orders()) as run:
        _, screen, harness = run
        await press(run, "space")
        before = text_of(screen.rows)
        harness.now += 14
        await tick(run)
        screen.draw_lines()
        assert text_of(screen.rows) == before
        assert "❄ frozen 00:14 ago" in screen.first_line.text
        await press(run, "enter")
        await tick(run)
        assert text_of(screen.rows) != before
        assert "❄ frozen 00:00 ago" in screen.first_line.text
        await press(run, "space")
        assert "frozen" not in screen.first_line.text


async def test_filter_is_checked_while_typed() -> None:
    """A wrong filter gets an explanation and is not applied; a valid one shows its effect, and Enter applies it."""
    async with running(busy_host()) as run:
        _, screen, _ = run
        await press(run, "slash", *"pid=x")
        box = screen.query_one(FilterBox)
        assert "pid is a whole number" in box.effect
        await press(run, "enter")
        assert screen.query(FilterBox)
        assert screen.state.query.filter.is_empty
        assert screen.footer.text.strip() == "Enter apply and refresh  Esc cancel"
        await press(run, "backspace")
        run[0].app.post_message(events.Paste("1813"))
        await run[0].pause()
        assert box.effect == "9 of 59 rows"
        await press(run, "enter")
        assert not screen.query(FilterBox)
        assert screen.third_line.text.strip().endswith("   / pid=1813   9 of 59   Esc clears")
        assert screen.focused is screen.rows


@pytest.mark.parametrize(
    ("text", "mark_first"),
    [("nginx stat=LISTEN", True), ("nginx or (pid=1 local_port>=443 remote_port!=443) pid=x", False)],
)
async def test_the_mark_stands_below_what_is_wrong(text: str, mark_first: bool) -> None:
    """The explanation follows the mark, or precedes it if there is no room."""
    async with running(busy_host(), (80, 24)) as run:
        await press(run, "slash", *text)
        box = run[1].query_one(FilterBox)
        line = box.query_one("#filter-effect", Bar)
        wrong = max(text.find("stat"), text.find("x", 10))
        upper = box.input.content_region.x + wrong
        assert line.text[upper] == "▲"
        assert line.text.count("▲") == 1
        assert line.text.strip().startswith("▲") == mark_first
        assert "stat" in line.text or "pid is a whole number, not 'x' · write pid=80 ▲" in line.text


async def test_keys_after_enter_are_no_text() -> None:
    """Of many keys that arrive at once, those after Enter or Esc are not part of the filter; those after Enter with an
    invalid filter are."""
    async with running(busy_host()) as run:
        screen = run[1]
        await type_at_once(run, "slash", *"nginx", "enter", "t", "slash", *"x", "escape", "n")
        assert screen.state.query.filter.text == "nginx"
        assert screen.state.totals
        assert not screen.query(FilterBox)
        await type_at_once(run, "slash", *" pid=x", "enter", "backspace", "7", "enter")
        assert screen.state.query.filter.text == "nginx pid=7"


async def test_keys_typed_while_a_view_loads_are_no_commands() -> None:
    """Keys after `/` go into its box, even before it appears; its effect is that on the newest rows."""
    other = replace(lenses()[0], id="other", title="Other", digit="2", order=2)
    async with running(busy_host(), lens_set=(lenses()[0], other)) as run:
        await type_at_once(run, "2", "slash", *"nginx q")
        screen = shown(run)
        assert screen.notice.text == "Other: attaching …"
        box = screen.query_one(FilterBox)
        assert (box.input.value, box.effect) == ("nginx q", "there are no rows yet")
        await press(run, "backspace", "backspace")
        for _ in range(2):
            await tick(run)
        assert box.effect == screen.filter_effect("nginx")
        await press(run, "enter")
        assert screen.state.query.filter.text == "nginx"


async def test_keys_after_the_palette_are_no_text() -> None:
    """Enter runs what matches the text, whole words first, however fast it was typed."""
    async with running(busy_host()) as run:
        await type_at_once(run, "ctrl+p", *"sort by pid", "enter", "slash", *"nginx", "enter")
        assert run[1].state.query.sort.field == "pid"
        assert run[1].state.query.filter.text == "nginx"


async def has_ended(run: Running) -> None:
    """Wait until the app has handled everything and ended."""
    task = run[0].app._task  # as only Textual has it
    assert task is not None
    await asyncio.wait_for(asyncio.shield(task), 30)


@pytest.mark.parametrize("keys", [("q", "slash"), ("y", "q"), ("right", "q", "p")])
async def test_keys_after_quitting_are_no_error(keys: tuple[str, ...]) -> None:
    """Later keys are dropped, and so are pending effects of earlier keys, such as a notice."""
    async with running(busy_host()) as run:
        app = run[0].app
        for key in keys:
            app.post_message(events.Key(key, key))
        await has_ended(run)
    assert app.return_code == 0


async def test_a_signal_does_not_wait_for_what_was_typed() -> None:
    """Keys still queued at the exit are dropped."""
    async with running(busy_host()) as run:
        app = run[0].app
        theme = app.theme
        for _ in range(3):
            app.post_message(events.Key("T", "T"))
        with handle_signals(app._end):
            signal.raise_signal(signal.SIGTERM)
            await has_ended(run)
        assert app.theme == theme
    assert app.return_code == 0


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("ctrl+p", "enter"), ("ctrl+p", "escape"), ("question_mark", "escape"), ("e", "c")],
)
async def test_a_dialog_may_be_closed_twice(
    opening: str, closing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two Escs close the dialog once, and the screen below stays."""
    monkeypatch.chdir(tmp_path)
    async with running(busy_host()) as run:
        await press(run, opening)
        dialog = run[0].app.screen
        await type_at_once(run, closing, closing, closing)
        assert shown(run) is run[1]
        assert not dialog.is_attached


async def test_rows_open_by_mouse() -> None:
    """A click on a header sorts by it, another one in reverse; one on a row follows it, another one opens its details;
    the wheel keeps the selection."""
    async with running(busy_host(), (120, 12)) as run:
        pilot, screen, harness = run
        at = text_of(screen.rows)[0].index("RETR")
        for descending in (True, False):
            await pilot.click(LiveTable, offset=(at, 0))
            await pilot.pause()
            assert str(screen.state.query.sort) == ("-" if descending else "") + "retransmit_ratio"
        await pilot.click(LiveTable, offset=(5, 3))
        await pilot.pause()
        assert (screen.rows.at, screen.rows.follows) == (2, True)
        screen.rows.scroll_by(30)
        await tick(run)
        assert screen.rows.top == 30
        assert screen.rows.at == 2
        screen.rows.choose(2)
        await pilot.click(LiveTable, offset=(5, 3 - screen.rows.top))
        harness.run_tasks()
        await pilot.pause()
        assert screen.details_open


async def test_details_tell_each_fact_once() -> None:
    """Details have the source's description, then each known fact once, by section; a key adds names and formulas."""
    async with running(busy_host(), (160, 45)) as run:
        _, screen, _ = run
        await press(run, "down", "right")
        text = screen.details.text
        assert text.startswith("COMMAND         nginx -g daemon off;")
        by_name = screen.table.by_name
        # What only another lens knows is unknown without it.
        headings = [
            heading
            for heading, names in screen.table.details
            if not any(by_name[name].lens for name in names)
        ]
        assert [line for line in text.splitlines() if line in headings] == headings
        titles = [screen.table.by_name[name].title for _, names in screen.table.details for name in names]
        counts = {
            title: len(re.findall(rf"(?:^|  ){re.escape(title)}  ", text, re.MULTILINE)) for title in titles
        }
        assert set(counts.values()) == {0, 1}
        assert [title for title in ("MSGS OUT", "ACCQ %", "OPENED") if counts[title]] == []
        assert "–" not in text
        assert "srtt_us >> 3" not in text
        await press(run, "m", "down")
        assert "bytes_sent: payload sent, without retransmits" in screen.details.text
        assert "srtt_us >> 3" in screen.details.text
        await press(run, "m")
        assert "bytes_sent:" not in screen.details.text


@pytest.mark.parametrize("lens", lenses(), ids=lambda lens: lens.id)
def test_details_are_complete(lens: Lens) -> None:
    """Every field is in exactly one section, directly or as a part of another."""
    for table in lens.tables:
        fields = [field for _, fields in sections_of(table) for field in fields]
        beside = (Kind.GROUP, Kind.ENDPOINT)
        shown_names = [
            n for field in fields for n in (field.parts if field.kind in beside else (field.name,))
        ]
        assert len(shown_names) == len(set(shown_names))
        assert {field.name for field in table.stored} <= set(shown_names)


async def test_a_row_is_copied_whole() -> None:
    """The copy has the chosen or first row, in the shown columns, unabridged and escaped."""
    name = "a\tname\nof \x1b]52;c;\a many words"
    row = {
        "process": safe_text(name),
        "pid": 77,
        "remote_address": "2001:db8:1:2:3:4:5:6",
        "remote_port": 443,
    }
    written: list[str] = []
    async with running(steps_of(make_frame([connection(1, 5) | row])), (80, 20)) as run:
        pilot, screen, _ = run
        assert "…" in text_of(screen.rows)[1]
        driver = pilot.app._driver
        driver.write = written.append
        await press(run, "y")
        cells = pilot.app.clipboard.split("\t")
        assert cells[0] == "a␉name␊of ␛]52;c;␇ many words 77"
        assert "[2001:db8:1:2:3:4:5:6]:443" in cells
        assert len(cells) == len([column for column in screen.rows.columns if not column.bar])
        assert "".join(cells).isprintable()
        encoded = base64.b64encode(pilot.app.clipboard.encode()).decode()
        assert f"\x1b]52;c;{encoded}\a" in written
        assert "a␉name" in next(iter(pilot.app._notifications)).message
        assert screen.rows.at == 0


async def test_host_names_appear_as_they_are_resolved() -> None:
    """`r` shows names as they arrive, even on a frozen screen, or addresses again; --resolve shows names at once. A
    table without addresses does not offer it."""
    known: dict[bytes, str] = {}
    async with running(busy_host(), resolver=known.get) as run:
        _, screen, _ = run
        addresses = text_of(screen.rows)
        await press(run, "r")
        assert text_of(screen.rows) == addresses
        known.update(dict.fromkeys(address_bytes(screen.view.raw("remote_address")), "web.example"))
        await tick(run)
        assert "web.example:39139" in text_of(screen.rows)[1]
        await press(run, "slash", *"web.example", "enter")
        assert "59 of 59" in screen.third_line.text
        known.clear()
        await press(run, "escape", "space", "r", "r")
        assert text_of(screen.rows) == addresses
        known.update(dict.fromkeys(address_bytes(screen.view.raw("remote_address")), "db.example"))
        screen._count_seconds()
        assert "db.example:39139" in text_of(screen.rows)[1]
        await press(run, "r")
        assert text_of(screen.rows) == addresses
    async with running(busy_host(), view="cpu.categories", lens_set=lenses()) as run:
        assert not run[1].keys.is_available(BY_ID["host_names"])
    settings = Settings(view=ViewSettings(resolve=True))
    async with running(busy_host(), settings=settings, resolver=lambda _: "web.example") as run:
        assert "web.example:39139" in text_of(run[1].rows)[1]
        assert run[1].keys.label_of(BY_ID["host_names"]) == "addresses"
