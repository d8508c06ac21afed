# SPDX-License-Identifier: Apache-2.0
"""The screens as screenshots: any change of a cell or a colour is a visible difference.

`pytest tests/screens/test_pictures.py --snapshot-update` draws them anew; look at each before it is kept.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from nettop.errors import SourceFailed
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.connections import FAILURES
from nettop.snapshots.safe_text import safe_text
from tests.builders.example_events import eventful_host, only
from tests.builders.harness import Harness, Step, busy_host, harness_of, steps_of
from tests.unit.build import Row, make_frame

Compare = Callable[..., bool]
Draw = Callable[..., bool]

SIZES = [(60, 20), (80, 24), (120, 40), (160, 45)]
DETAILS = {
    "held by": "nginx 1813, descriptor 12",
    "also held by": "nginx 1812, descriptor 12; nginx 1814, descriptor 12",
    "command": "nginx: worker process",
    "cgroup": "/system.slice/nginx.service",
}


@pytest.fixture
def draw(snap_compare: Compare) -> Draw:
    """Play a script, press keys, and compare the screen."""

    def compare(steps: list[Step], size: tuple[int, int], *keys: str, **how: Any) -> bool:
        harness, ticks = harness_of(steps, DETAILS, how.get("batches")), how.get("ticks", 2)
        settings = Settings(view=ViewSettings(view=how.get("view", "connections")))
        app = harness.app(settings, how.get("theme", "nettop-dark"))
        return snap_compare(app, terminal_size=size, run_before=player(harness, keys, ticks))

    return compare


def player(harness: Harness, keys: tuple[str, ...], ticks: int) -> Callable[[Pilot[Any]], Awaitable[None]]:
    """Return a function that plays the steps before the screenshot."""

    async def play(pilot: Pilot[Any]) -> None:
        for _ in range(ticks):
            harness.tick()
            await pilot.pause()
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
            harness.run_tasks()
            await pilot.pause()
        for cursor in pilot.app.screen.query("Input"):
            cursor.cursor_blink = False  # type: ignore[attr-defined]
        await pilot.pause()

    return play


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_connections(draw: Draw, size: tuple[int, int]) -> None:
    """The connections screen at four sizes, with a row chosen."""
    assert draw(busy_host(), size, "down", "down", "down")


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_details(draw: Draw, size: tuple[int, int]) -> None:
    """The details of a row: beside the table where it is wide, below it elsewhere."""
    assert draw(busy_host(), size, "down", "right")


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_events(draw: Draw, size: tuple[int, int]) -> None:
    """The events pane at four sizes, the newest first, with a row chosen."""
    steps, batches = eventful_host()
    assert draw(steps, size, "down", "down", "down", batches=batches, view="connections.events")


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_failures(draw: Draw, size: tuple[int, int]) -> None:
    """The groups of failures at four sizes."""
    steps, batches = eventful_host()
    assert draw(steps, size, batches=batches, view="connections.failures")


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_groups(draw: Draw, size: tuple[int, int]) -> None:
    """Groups by process at four sizes."""
    steps, batches = eventful_host()
    assert draw(steps, size, batches=batches, view="connections.groups")


def test_events_of_a_group(draw: Draw) -> None:
    """What → on a group of failures shows: its events, and the filter that they pass."""
    steps, batches = eventful_host()
    assert draw(steps, (80, 24), "down", "right", "down", batches=batches, view="connections.failures")


def test_events_of_yesterday(draw: Draw) -> None:
    """Events of another day have their date."""
    steps, batches = eventful_host()
    assert draw(steps, (120, 40), "end", batches=batches, view="connections.events")


def test_details_of_an_event(draw: Draw) -> None:
    """All fields of an event."""
    steps, batches = eventful_host()
    assert draw(steps, (160, 45), "down", "down", "right", batches=batches, view="connections.events")


def test_events_in_the_terminals_colours(draw: Draw) -> None:
    """Failures are marked where there are few colours."""
    steps, batches = eventful_host()
    keys = ("slash", *"java", "enter")
    assert draw(steps, (80, 24), *keys, batches=batches, view="connections.events", theme="nettop-terminal")


def test_no_events_yet(draw: Draw) -> None:
    """The screen before any event."""
    assert draw(eventful_host()[0], (80, 24), view="connections.events")


def test_no_failures_yet(draw: Draw) -> None:
    """The screen before any failure."""
    assert draw(only(FAILURES, [], eventful_host()[0]), (80, 24), view="connections.failures")


def test_no_events_here(draw: Draw) -> None:
    """A kernel that does not report connection events, and the reason."""
    steps, _ = eventful_host(counts={}, via={"events": "n/a: Operation not permitted"})
    assert draw(steps, (80, 24), view="connections.events")


@pytest.mark.parametrize("theme", ["nettop-light", "nettop-terminal"])
def test_themes(draw: Draw, theme: str) -> None:
    """A light background, and the terminal's own colours."""
    assert draw(busy_host(), (80, 24), "down", theme=theme)


def test_all_rows_as_totals(draw: Draw) -> None:
    """Listeners and orphans too, in totals."""
    assert draw(busy_host(), (120, 40), "a", "t", "s")


def test_frozen(draw: Draw) -> None:
    """A frozen screen shows that it is frozen, and since when."""
    assert draw(busy_host(), (80, 24), "space")


def test_filtered(draw: Draw) -> None:
    """A filter is named with what it leaves."""
    assert draw(busy_host(), (80, 24), "slash", *"nginx", "enter")


def test_filter_box_with_error(draw: Draw) -> None:
    """A wrong filter is explained during typing."""
    assert draw(busy_host(), (80, 24), "slash", *"rtt_us>fast")


def test_filter_passes_nothing(draw: Draw) -> None:
    """A filter without matches leaves a message."""
    assert draw(busy_host(), (80, 24), "slash", *"nobody", "enter")


@pytest.mark.parametrize("size", [(60, 20), (120, 40)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_help(draw: Draw, size: tuple[int, int]) -> None:
    """Help has all working keys, the signs and the columns."""
    assert draw(busy_host(), size, "question_mark")


def test_palette(draw: Draw) -> None:
    """The palette has actions and columns by name."""
    assert draw(busy_host(), (80, 24), "ctrl+p", *"rtt")


def test_attaching(draw: Draw) -> None:
    """Before the first rows."""
    assert draw(busy_host(), (80, 24), ticks=0)


def test_empty(draw: Draw) -> None:
    """A machine without connections."""
    assert draw(steps_of(make_frame([], [])), (80, 24))


def test_first_screen(draw: Draw) -> None:
    """After one snapshot no rate is known."""
    assert draw(busy_host(), (80, 24), ticks=1)


def test_failed(draw: Draw) -> None:
    """A failed source shows the reason and the remedy."""
    failure = SourceFailed(
        "this kernel has no BTF (/sys/kernel/btf/vmlinux)", "run a kernel built with DEBUG_INFO_BTF"
    )
    assert draw([failure], (80, 24), ticks=1)


def test_missing_and_lost(draw: Draw) -> None:
    """Fields that this kernel lacks are n/a and counted above, as are losses."""
    steps = busy_host(lost={"rows": 37}, missing={"rtt_us": "no srtt_us", "rtt_var_us": "no mdev_us"})
    assert draw(steps, (80, 24))


def hostile_rows() -> list[Row]:
    """Return processes whose names contain terminal escapes and markup."""
    names = [
        "\x1b[31mred\x1b[0m",
        "[bold]x[/bold]",
        "日本語サーバー名前",
        "a\u202egnp.exe",
        "z\u200bero",
        "\x9b2J",
    ]
    return [
        {
            "id": n + 1,
            "process": safe_text(name),
            "pid": 100 + n,
            "bytes_sent": (9 - n) * 1000,
            "bytes_received": 0,
        }
        for n, name in enumerate(names)
    ]


def test_hostile_names(draw: Draw) -> None:
    """Names that hold escapes, markup, wide or turned letters move no column."""
    before = [row | {"bytes_sent": 0} for row in hostile_rows()]
    assert draw(steps_of(make_frame(hostile_rows(), before)), (80, 24), "down")


def test_closed_row(draw: Draw) -> None:
    """A connection that has just closed."""
    rows = hostile_rows()
    assert draw(steps_of(make_frame(rows[1:], rows)), (80, 24), "t")


def test_narrow(draw: Draw) -> None:
    """A terminal that is too small shows one sentence."""
    assert draw(busy_host(), (39, 9))


def test_no_utf8(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside UTF-8 every sign has an ASCII replacement."""
    monkeypatch.setattr("nettop.widgets.glyphs.locale.getencoding", lambda: "ISO-8859-1")
    assert draw(busy_host(), (80, 24), "down", "space")


def test_no_color(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colours, rank shows as bold, dim and reverse."""
    monkeypatch.setenv("NO_COLOR", "1")
    assert draw(busy_host(), (80, 24), "down", "right", theme="nettop-terminal")
