# SPDX-License-Identifier: Apache-2.0
"""The frame around the screens: its lines, lenses, failures and sizes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from unittest.mock import patch

import pytest
from textual import events
from textual.geometry import Region, Size
from textual.strip import Strip

from nettop.engine.own_cost import DRAW, Steps
from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported, UsageError
from nettop.screens import headline
from nettop.screens.dialogs import help_lines
from nettop.screens.lens import LensScreen
from nettop.screens.nettop_app import NettopApp
from nettop.settings import Settings, ViewSettings
from nettop.snapshots import lenses
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import BarItem
from nettop.widgets.lines import Lines
from nettop.widgets.text import Line
from nettop.widgets.themes import Role
from tests.builders.driving import press, running, shown, text_of, tick
from tests.builders.harness import busy_host, harness_of
from tests.options import source_options

ENOUGH = 50


async def test_first_line_is_the_answer() -> None:
    """Totals, connections and losses stand in the headline, the cost above it; a narrow one drops the rest. What is
    unknown is left out."""
    steps = busy_host(lost={"rows": 37}, missing={"drops": "no such member"})
    async with running(steps, (150, 30)) as run:
        screen = run[1]
        headline = screen.headline_bar.text
        assert headline.startswith(" ↑ ")
        assert "59 conns   opened 0/s   closed 0/s" in headline
        assert headline.rstrip().endswith("37 missed   1 n/a (drops)")
        assert "web-03" in screen.first_line.text
        assert screen.first_line.text.rstrip().endswith("⟳ 1 s  cost 0.9% +hooks")
        await run[0].resize_terminal(59, 20)
        await run[0].pause()
        assert "conns" in screen.headline_bar.text
        assert "37 missed" in screen.headline_bar.text
        assert not {"retrans", "(drops)"} & set(screen.headline_bar.text.split())
    async with running(busy_host(1), ticks=1) as run:
        run[1].context.cost = lambda: None
        run[1].draw_lines()
        assert "–" not in run[1].headline_bar.text
        assert run[1].first_line.text.rstrip().endswith("cost – +hooks")
        await tick(run)
        assert " 1 conn " in run[1].headline_bar.text


@pytest.mark.parametrize("width", [40, 50, 60, 70, 80])
async def test_losses_are_shown_at_every_width(width: int) -> None:
    """However many connections come and go, what was lost has its place in the headline."""
    storm = [dict.fromkeys(("connected", "accepted", "closed"), count) for count in (0, 16_143_000)]
    first, second = (step for step in busy_host(lost={"events": 37}) if isinstance(step, Snapshot))
    steps = [replace(first, counts=storm[0]), replace(second, counts=storm[1])]
    async with running(steps, (width, 20)) as run:
        for _ in lenses()[0].tables[:2]:
            assert "37" in shown(run).headline_bar.text
            await press(run, "p")


LENSES = (
    *(replace(lenses()[0], id=f"other{n}", title=f"Another {n}", digit=str(n), order=n) for n in (1, 2, 3)),
    replace(lenses()[0], digit="4", order=4),
)


@pytest.mark.parametrize(
    ("lost", "ticks", "words", "alarms"),
    [
        ({}, None, "0 missed", False),
        ({"events": 1}, None, "1eventmissed", True),
        ({"events": 12, "rows": 0}, None, "12eventsmissed", True),
        ({"events": 12, "rows": 1}, None, "13missed", True),
        ({"ticks": 3}, None, "3samplesmissed", True),
        ({"ticks": 99}, 901, "9.9% of samples missed0 missed", False),
        ({"ticks": 100}, 900, "10.0% of samples missed100samplesmissed", True),
        ({"ticks": 3, "walks": 1}, 997, "0.3% of samples missed1missed", True),
    ],
)
def test_losses_in_the_headline(lost: dict[str, int], ticks: int | None, words: str, alarms: bool) -> None:
    """One kind of loss is named, several are summed; a few missed ticks are a share and no alarm."""
    snapshot = Snapshot("cpu", 0, 0, {}, {} if ticks is None else {"ticks": ticks}, lost=lost)
    assert words_and_alarm(headline.status_items(snapshot)) == (words, alarms)


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (72, "  1 Another 1  2 Another 2  3 Another 3  4 Connections            ⟳ 1 s"),
        (61, "  nettop  web-03  1  2  3  4         ⟳ 1 s  cost 0.9% +hooks"),
        (53, "  nettop  1  2  3  4         ⟳ 1 s  cost 0.9% +hooks"),
        (40, "  1  2  3  4    ⟳ 1 s  cost 0.9% +hooks"),
    ],
)
async def test_the_programs_name_goes_first_then_names_shrink(width: int, line: str) -> None:
    """Every lens keeps its tab, in full as long as there is room."""
    async with running(busy_host(), (width, 20), lens_set=LENSES) as run:
        assert run[1].first_line.text.rstrip() == line


async def test_the_current_lens_keeps_its_name() -> None:
    """Where there is no room for all names, only the current lens has its own, and at last only its digit."""
    async with running(busy_host(), (90, 20), lens_set=lenses()) as run:
        assert "1 Connections  2  3  4  5  6  7  0 " in run[1].first_line.text
        await run[0].resize_terminal(120, 20)
        await run[0].pause()
        assert all(f"{lens.digit} {lens.title}" in run[1].first_line.text for lens in lenses() if lens.digit)
        assert run[1].first_line.text.rstrip().endswith("⟳ 1 s  cost 0.9% +hooks")
    async with running(busy_host(), (40, 20), lens_set=LENSES, view="connections") as run:
        await press(run, "space")
        run[2].now += 36_000
        run[1].draw_lines()
        assert run[1].first_line.text.rstrip() == "  1  2  3  4  ❄ frozen 10:00:00 ago"


def words_and_alarm(parts: list[BarItem]) -> tuple[str, bool]:
    """Return the text of parts, and whether any is an alarm."""
    pieces = [piece for part in parts for piece in part.spans]
    return "".join(span.text for span in pieces), any(piece.role is Role.BAD for piece in pieces)


async def test_help_begins_with_what_is_lost() -> None:
    """The help names the option and its meaning above the keys; without one it shows nothing."""
    lost = {"ticks": 3, "events": 1_234, "rows": 0}
    steps = busy_host(lost=lost, counts={"ticks": 997})
    async with running(steps) as run:
        lines = lines_until_keys(help_lines(run[1], 160))
        title, ticks, events, empty, keys = lines[lines.index("LOST") :]
        assert title == "LOST"
        assert ticks.split() == ["ticks", "3", "(0.3%", "of", "all)"]
        assert events.startswith("events           1,234 events that the kernel skipped")
        assert (empty, keys) == ("", "SCREEN")
    async with running(busy_host()) as run:
        assert "LOST" not in lines_until_keys(help_lines(run[1]))


def lines_until_keys(lines: list[Line]) -> list[str]:
    """Return the first lines of the help, as text, with the heading of the first keys."""
    texts = ["".join(span.text for span in line).rstrip() for line in lines]
    return texts[: texts.index("SCREEN") + 1]


class WatchedSteps(Steps):
    """Steps that record which of them is running."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []

    @contextmanager
    def time(self, lens: str, name: str) -> Iterator[None]:
        """Time a step, and record it."""
        self.open.append((lens, name))
        with super().time(lens, name):
            yield
        self.open.pop()


@pytest.mark.parametrize("key", ["", "question_mark", "ctrl+p"])
async def test_all_drawing_counts_as_cost(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Any line is rendered within the step, even under a dialog, once per drawing."""
    steps, seen = WatchedSteps(), []
    render_lines = Lines.render_lines

    def noted(self: Lines, crop: Region) -> list[Strip]:
        seen.append(tuple(steps.open))
        return render_lines(self, crop)

    monkeypatch.setattr(Lines, "render_lines", noted)
    async with running(busy_host(), ticks=1) as run:
        if key:
            await press(run, key)
        run[2].session.steps = steps
        seen.clear()
        await tick(run)
        await run[0].pause()
    assert set(seen) == {(("connections", DRAW),)}


async def test_failed_source_says_why_and_can_be_tried_again() -> None:
    """The error and its remedy replace the table; Enter tries again."""
    failure = SourceFailed("this kernel has no BTF", "CONFIG_DEBUG_INFO_BTF=y is needed")
    async with running([failure, *busy_host()], ticks=1) as run:
        _, screen, _ = run
        assert "this kernel has no BTF" in screen.notice.text
        assert "CONFIG_DEBUG_INFO_BTF=y" in screen.notice.text
        assert not screen.rows.region
        await press(run, "enter")
        await tick(run)
        assert screen.rows.region
        assert "total" in "".join(text_of(screen.rows))
        run[2].session.bus.fail("connections", SourceFailed("the loader died", "see dmesg"))
        await run[0].pause()
        assert "the loader died" in screen.notice.text


@pytest.mark.parametrize("error", [PermissionMissing, Unsupported, UsageError])
async def test_nothing_to_stay_for(error: type[NettopError]) -> None:
    """If the first lens cannot work, as for an unknown mechanism, the app exits with the reason."""
    failure = error("seeing every process's sockets needs CAP_BPF", "run it as root: sudo nettop")
    async with running([failure], ticks=1, settings=Settings(mechanisms={"events": "x"})) as run:
        assert run[2].script.options.mechanisms == {"events": "x"}
        app = run[0].app
        assert app.fatal_error is failure
        assert app._exit


async def test_late_refreshes_and_old_rows_are_shown() -> None:
    """Skipped refreshes stand beside losses, rows of an earlier walk show their age, and the first line how often there
    is a reading if they take longer than the interval."""
    counts = {"unattributed": 2, "walk_age_ms": 4200}
    async with running(busy_host(counts=counts), (160, 30)) as run:
        assert "no process 2 (4 s ago)" in run[1].headline_bar.text
        assert "late" not in run[1].headline_bar.text
        run[2].session._cost.late = 3
        run[1].update_view()
        await run[0].pause()
        assert "late 3" in run[1].headline_bar.text
        assert "not" not in run[1].first_line.text
        run[2].session._skipped = 2
        run[1].update_view()
        await run[0].pause()
        assert "⟳ 3 s, not 1 s" in run[1].first_line.text


async def test_attaching_is_calm() -> None:
    """Before the first rows there is one line, and no unmeasured zeros."""
    async with running(busy_host(), ticks=0) as run:
        assert run[1].notice.text == "Connections: attaching …"
        assert run[1].headline_bar.text.strip() == ""
        began_s = run[1].context.clock()
        run[1].context.clock = lambda: began_s + 3.2
        run[1]._count_seconds()
        assert run[1].notice.text == "Connections: attaching … 3 s"


@pytest.mark.parametrize("size", [(39, 40), (100, 9)])
async def test_too_small_says_what_is_needed(size: tuple[int, int]) -> None:
    """Below 40×10 there is only a sentence with the size needed; a terminal that grows shows everything again."""
    settings = Settings(view=ViewSettings(filters=("nginx",)))
    async with running(busy_host(), size, settings=settings) as run:
        pilot, screen, _ = run
        assert screen.notice.text == f"nettop needs 40×10 cells; this terminal has {size[0]}×{size[1]}."
        assert screen.notice.region
        assert not (screen.rows.region or screen.footer.region or screen.third_line.region)
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        assert screen.rows.region
        assert "total" in "".join(text_of(screen.rows))


async def test_two_sizes_at_once_settle_on_the_last() -> None:
    """A terminal that is resized twice while the screen is busy is drawn once, at its last size."""
    async with running(busy_host(), (100, 30)) as run:
        pilot, screen, _ = run
        lay_out, layouts = screen._refresh_layout, count()

        def counted(size: Size | None = None, scroll: bool = False) -> None:
            if next(layouts) < ENOUGH:  # for ever, the test would not end
                lay_out(size, scroll)

        with patch.object(screen, "_refresh_layout", counted):
            for size in (Size(90, 40), Size(120, 50)):
                screen.post_message(events.Resize(size, size))
                # Without something between them the second size would replace the first.
                screen.post_message(events.Callback(lambda: None))
            screen.app.post_message(events.Resize(size, size))
            await pilot.pause()
        assert screen.size == (120, 50)
        assert next(layouts) < ENOUGH


async def test_words_of_the_command_line_hold() -> None:
    """The screen opens with the command line's filter, sort, columns and --all."""
    view_settings = ViewSettings(
        filters=("nginx",), sort="-rtt_us", columns=("process", "rtt_us"), all_rows=True
    )
    async with running(busy_host(), settings=Settings(view=view_settings)) as run:
        screen = run[1]
        assert "   / nginx   21 of 60" in screen.third_line.text
        assert [c.name for c in screen.rows.columns] == ["process", "rtt_us"]
        assert "▾" in text_of(screen.rows)[0]
        assert screen.state.query.all_rows
        assert run[2].script.options == source_options(["sockets"], all_rows=True)


async def test_all_rows_are_requested_again_after_a_failure() -> None:
    """A source that Enter attaches again lists what the screen shows, as the one before."""
    failure = SourceFailed("the loader died", "see dmesg")
    async with running(
        [failure, *busy_host()], ticks=1, settings=Settings(view=ViewSettings(all_rows=True))
    ) as run:
        run[2].script.options = None
        await press(run, "enter")
        run[2].run_tasks()
        assert run[2].script.options == source_options(["sockets"], all_rows=True)


async def test_another_lens_attaches_when_it_is_opened() -> None:
    """A click on its tab attaches a lens, which has the common screen if none of its own, and releases the previous
    one; a click on a word of the footer does what its key does."""
    other = replace(lenses()[0], id="other", title="Other", digit="2", order=2)
    async with running(busy_host(), lens_set=(lenses()[0], other)) as run:
        pilot, screen, harness = run
        app = pilot.app
        await pilot.click("#footer", offset=(screen.footer.text.index("totals"), 0))
        await pilot.pause()
        assert screen.state.totals
        assert isinstance(app, NettopApp)
        assert "2 Other" in run[1].first_line.text
        assert set(harness.session._attached) == {"connections"}
        await pilot.click("#first-line", offset=(run[1].first_line.text.index("2 Other"), 0))
        await pilot.pause()
        harness.run_tasks()
        assert set(harness.session._attached) == {"connections", "other"}
        assert harness.session._leases["connections"] == 0
        assert type(app.lens_screen) is LensScreen


async def test_publications_wait_once() -> None:
    """However often the bus wakes the screen, at most one message is queued."""
    async with running(busy_host()) as run:
        pilot, screen, harness = run
        shown_frames = []
        screen.show_newest = lambda: shown_frames.append(1)
        for _ in range(5):
            harness.session._read("connections")
        await pilot.pause()
        assert len(shown_frames) == 1


async def test_a_source_without_details_says_so() -> None:
    """A source without details says so in the pane, and the fields are shown all the same."""
    harness = harness_of(busy_host())
    app = harness.app()
    async with app.run_test(size=(120, 30)) as pilot:
        harness.tick()
        harness.tick()
        await pilot.press("right")
        await pilot.pause()
        harness.run_tasks()
        await pilot.pause()
        assert app.lens_screen.details.text.startswith("no such row")
        assert "REMOTE" in app.lens_screen.details.text


async def test_tab_passes_over_a_lens_that_cannot_work() -> None:
    """An unavailable lens's tab is dim once known; its digit opens it, with the reason."""
    others = tuple(
        replace(lenses()[0], id=f"other{n}", title=f"Other {n}", digit=str(n), order=n) for n in (2, 3)
    )
    async with running(busy_host(), lens_set=(lenses()[0], *others)) as run:
        run[2].session.bus.fail("other2", Unsupported("this kernel has no such hook"))
        await tick(run)
        tabs = headline._tabs(run[1].context, run[1].lens, named=run[1].context.lenses)
        assert [tab.spans[0].role for tab in tabs] == [Role.TAB, Role.FAINT, Role.DIM]
        seen = []
        for key in ("tab", "tab", "shift+tab", "2", "tab"):
            await press(run, key)
            seen.append(shown(run).lens.id)
        assert seen == ["other3", "connections", "other3", "other2", "other3"]


async def test_rows_that_are_late_show_their_age() -> None:
    """Rows that two intervals have passed over stand under their age, until they are read again."""
    async with running(busy_host()) as run:
        _, screen, harness = run
        screen.shown_frame.came_at = screen.context.clock() - 2 * harness.session.interval_s
        screen.context.clock = partial(float, screen.context.clock())
        screen._count_seconds()
        assert "ago" not in screen.first_line.text
        screen.shown_frame.came_at -= 72
        screen._count_seconds()
        assert "▲ read 01:14 ago" in screen.first_line.text
        screen.context.clock = time.monotonic
        await tick(run)
        assert "ago" not in screen.first_line.text
