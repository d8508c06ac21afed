# SPDX-License-Identifier: Apache-2.0
"""The CPU screen by pilot: what it shows, its keys and mouse, and what it says without data."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from nettop.screens.actions import ACTIONS, GRAPH
from nettop.screens.cpu.bars import GLYPHS, EntryBars
from nettop.screens.cpu.cpus import CpuScreen
from nettop.screens.cpu.flame_graph import FlameGraph
from nettop.screens.dialogs import help_lines, palette_entries
from nettop.screens.filter_box import FilterBox
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.cpu import CATEGORIES, ENTRIES, LENS, RX_SOFTIRQ, STACKS
from nettop.stacks.counts import FlameSort, Window
from tests.builders.driving import Running, press, running, shown, tick, type_at_once
from tests.builders.example_cpu import example_steps, idle_steps, make_missing, without
from tests.builders.harness import Step

RX = ENTRIES[RX_SOFTIRQ]
HOT = (RX, "handle_softirqs", "net_rx_action", "__napi_poll", "process_backlog")
"""The widest way into the example."""


@asynccontextmanager
async def on_cpu(
    steps: list[Step] | None = None,
    size: tuple[int, int] = (120, 40),
    ticks: int = 3,
    options: Mapping[str, Any] | None = None,
) -> AsyncIterator[tuple[Running, CpuScreen]]:
    """Yield the CPU screen over the example, opened with these options."""
    chosen = [*example_steps()] if steps is None else steps
    settings = Settings(view=ViewSettings(view="cpu", **(options or {})))
    async with running(chosen, size, settings=settings, ticks=ticks, lens_set=(LENS,)) as run:
        screen = run[1]
        yield run, screen


def calling(name: str) -> list[Step]:
    """Return the example, in which the hottest function has this name."""
    steps: list[Step] = []
    for step in example_steps():
        rows = step.tables[STACKS.name]
        names = [text.replace("copy_user_generic", name) for text in rows.texts["stack"]]
        tables = {**step.tables, STACKS.name: replace(rows, texts={"stack": names})}
        steps.append(replace(step, tables=tables))
    return steps


def line(widget: FlameGraph | EntryBars, y: int) -> str:
    """Return the text of a widget's line."""
    return widget.render_line(y).text


# --- what it shows ----------------------------------------------------------------------------------------------


async def test_categories_add_up() -> None:
    """Categories sum up to all samples of the zoomed frame; those without a function here say so."""
    async with on_cpu(size=(160, 45)) as (run, screen):
        assert sum(share.samples for share in screen.categories.shares) == 1264
        assert "this kernel has none of br_" in screen.categories.shares[-1].why_not
        lines = [screen.categories.render_line(y).text for y in range(24)]
        assert any(text.split()[:3] == ["─", "total", "100%"] for text in lines)
        assert any("B bridging" in text and "n/a" in text for text in lines)
        await press(run, "i")
        root = screen.graph.current_layout
        assert sum(share.samples for share in screen.categories.shares) == root.row(0)[0].node.samples


# --- walking and zooming ----------------------------------------------------------------------------------------


async def test_aside_stays_in_the_row() -> None:
    """← and → move to neighbours in the row, whoever calls them, and stop at the last."""
    async with on_cpu() as (run, screen):
        await press(run, "down", "l")
        assert screen.graph.chosen == ("TX syscalls",)
        await press(run, *["l"] * 9)
        last = screen.graph.chosen
        assert last is not None and len(last) == 1
        await press(run, "l")
        assert screen.graph.chosen == last
        await press(run, "shift+left", "h")
        assert screen.graph.chosen != last


async def test_end_and_home() -> None:
    """End goes to the leaf of the widest path, Home back, always in sight."""
    async with on_cpu(size=(80, 24)) as (run, screen):
        await press(run, "end")
        chosen = screen.graph.chosen
        assert chosen is not None and len(chosen) > screen.graph.page
        assert screen.graph.top > 0
        assert "▐" in "".join(line(screen.graph, y)[-1] for y in range(screen.graph.page))
        await press(run, "pageup")
        assert screen.graph.chosen == chosen[: len(chosen) - screen.graph.page]
        await press(run, "home")
        assert screen.graph.chosen == (RX,)
        assert screen.graph.top == 0
        await press(run, "pagedown")
        assert screen.graph.chosen is not None and len(screen.graph.chosen) == 1 + screen.graph.page


async def test_zoom_by_keys() -> None:
    """↓ follows the widest frames, ↑ selects the caller, → zooms into the selected frame, ← goes back."""
    async with on_cpu() as (run, screen):
        await press(run, *["down"] * 6, "up")
        assert screen.graph.chosen == HOT
        await press(run, "right")
        assert screen.graph.zoom == HOT
        assert " of all  " in screen.frame_bar.text
        assert line(screen.graph, 0).startswith(" P▸process_backlog ")
        assert "100% ▕" in line(screen.graph, 0)
        assert screen.crumbs.text.startswith(" all › RX softirq › … ›  process_backlog ")
        await press(run, "down")
        assert " of process_backlog  " in screen.frame_bar.text
        await press(run, "right", "left")
        assert screen.graph.zoom == HOT
        await press(run, "left")
        assert (screen.graph.zoom, screen.graph.chosen) == ((), HOT)
        assert not screen.keys.is_available(next(a for a in ACTIONS if a.id == "back"))


async def test_zoom_by_mouse() -> None:
    """A click selects, a second one zooms in; the first line, the right button, names in the path and entry points in
    the legend zoom too."""
    async with on_cpu(size=(160, 40)) as (run, screen):
        for offset, button, zoom in (((6, 3), 1, ()), ((6, 3), 1, HOT[:4]), ((60, 0), 1, ())):
            await run[0].click(FlameGraph, offset=offset, button=button)
            await run[0].pause()
            assert (screen.graph.chosen, screen.graph.zoom) == (HOT[:4], zoom)
        await press(run, "right")
        await run[0].click(FlameGraph, offset=(6, 2), button=3)
        await run[0].pause()
        assert screen.graph.zoom == ()
        await press(run, "right")
        for bar, word, zoom in (
            (screen.crumbs, "RX softirq", (RX,)),
            (screen.crumbs, "all", ()),
            (screen.legend, "RX softirq", (RX,)),
            (screen.legend, "RX softirq", ()),
        ):
            await run[0].click(bar, offset=(bar.text.index(word), 0))
            await run[0].pause()
            assert screen.graph.zoom == zoom


async def test_zoom_and_choice_outlast_refreshes() -> None:
    """The same functions stay chosen and zoomed into, whatever comes and goes around them."""
    async with on_cpu() as (run, screen):
        await press(run, *["down"] * 4, "right", "down")
        zoom, chosen = screen.graph.zoom, screen.graph.chosen
        before = screen.crumbs.text
        await tick(run)
        assert (screen.graph.zoom, screen.graph.chosen) == (zoom, chosen)
        await press(run, "w", "w")
        assert screen.stacks.window is Window.INTERVAL
        assert (screen.graph.zoom, screen.graph.chosen) == (zoom, chosen)
        assert screen.crumbs.text != before


async def test_another_width_lays_out_anew() -> None:
    """Resizing keeps the choice; frames without room are dropped."""
    async with on_cpu() as (run, screen):
        await press(run, "down", "down")
        await run[0].resize_terminal(90, 30)
        await run[0].pause()
        await run[0].pause()
        assert screen.graph.chosen == HOT[:2]
        layout = screen.graph.current_layout
        assert layout is not None and layout.width == 88
        assert line(screen.graph, 1).startswith(" O▸handle_softirqs ")


async def test_nothing_is_drawn_twice() -> None:
    """A step redraws the two rows that change; drawing again redraws none."""
    async with on_cpu() as (run, screen):
        await press(run, "down")
        drawn = screen.graph.drawn
        await press(run, "down")
        assert screen.graph.drawn - drawn == 2
        screen.graph.refresh()
        await run[0].pause()
        assert screen.graph.drawn - drawn == 2


# --- which samples ----------------------------------------------------------------------------------------------


async def test_windows() -> None:
    """The windows are the last minute, all since the start, and the last interval, with their actual length."""
    async with on_cpu() as (run, screen):
        assert screen.stacks.window is Window.MINUTE
        assert "last minute" in screen.crumbs.text
        seen = []
        for word in ("since start", "last interval", "last minute"):
            await press(run, "w")
            assert word in screen.crumbs.text
            seen.append(sum(count.samples for count in screen.stacks.counts))
        assert seen == [1264, 632, 1264]


async def test_a_screen_that_is_opened_late() -> None:
    """Earlier samples of the source count since its start, as do the seconds of the share, unless it does not tell."""
    counts = {name: n for name, n in example_steps()[-1].counts.items() if name != "watched_ns"}
    async with on_cpu([replace(step, counts=counts) for step in example_steps()], (160, 45)) as (_, screen):
        assert "all entry points   – of 4 CPUs  1,264 samples" in screen.crumbs.text
    late = example_steps(9)[-1:]
    async with on_cpu([*late], (160, 45), ticks=1) as (run, screen):
        await press(run, "w")
        assert screen.stacks.window is Window.START
        assert " all entry points   15.8% of 4 CPUs  5,056 samples" in screen.crumbs.text
        assert "total" in "".join(screen.categories.render_line(y).text for y in range(20))
        assert sum(share.of_time or 0.0 for share in screen.categories.shares) == pytest.approx(
            0.158, abs=1e-3
        )


async def test_entry_points() -> None:
    """The key cycles through the entry points with samples, then all."""
    async with on_cpu() as (run, screen):
        seen = []
        for _ in range(7):
            await press(run, "i")
            seen.append(screen.graph.zoom)
        assert seen == [(ENTRIES[entry],) for entry in GLYPHS] + [()]
        await press(run, "u", "u", "u", "u", *["i"] * 2)
        assert screen.graph.zoom == (RX,)
        await press(run, "i")
        assert screen.graph.zoom == ()


async def test_cpus() -> None:
    """CPUs are selected one by one, then all; backwards too, and by a click on a bar."""
    async with on_cpu() as (run, screen):
        seen = []
        for key in ("u", "u", "U", "U", "U", "u"):
            await press(run, key)
            seen.append(screen.stacks.cpu)
            assert {count.cpu for count in screen.stacks.counts} == (
                {0, 1, 2, 3} if screen.stacks.cpu is None else {screen.stacks.cpu}
            )
        assert seen == [0, 1, 0, None, 3, None]
        for cpu in (2, None):
            await run[0].click(EntryBars, offset=(30, 2))
            await run[0].pause()
            assert screen.stacks.cpu == cpu


async def test_orders() -> None:
    """Frames and categories are sorted by width or name, CPUs by number or load."""
    async with on_cpu(size=(160, 45)) as (run, screen):
        first = screen.categories.shares[0]
        await press(run, "s")
        assert screen.stacks.sort is FlameSort.NAME
        assert line(screen.graph, 0).split()[1:3] == ["I/O", "workers"] or "▕" in line(screen.graph, 0)
        row = screen.graph.current_layout
        names = [block.node.symbol for block in row.row(1) if not block.merged]
        assert names == sorted(names)
        assert screen.categories.shares[0] != first
        await press(run, "s", "S")
        assert screen.stacks.sort is FlameSort.SAMPLES
        assert [line(screen.bars, y).split()[0] for y in range(4)] == ["cpu0", "cpu1", "cpu2", "cpu3"]
        assert screen.busiest_first


async def test_frozen() -> None:
    """A frozen screen stands still in all windows while samples still count; Enter takes a new reading."""
    async with on_cpu([*example_steps(5)]) as (run, screen):
        await press(run, "space")
        before = screen.crumbs.text
        await tick(run)
        assert screen.crumbs.text == before
        await press(run, "w")
        assert sum(count.samples for count in screen.stacks.counts) == 1264
        await press(run, "enter")
        await tick(run)
        assert sum(count.samples for count in screen.stacks.counts) == 4 * 632
        await press(run, "w", "space")
        assert screen.stacks.window is Window.INTERVAL
        assert sum(count.samples for count in screen.stacks.counts) == 632


async def test_frozen_from_another_table() -> None:
    """Samples freeze with another table, and continue when that table resumes."""
    async with on_cpu([*example_steps(5)]) as (run, screen):
        await press(run, "w", "p", "space")
        await tick(run)
        await press(run, "P")
        assert shown(run) is screen
        assert "frozen" in screen.first_line.text
        assert sum(count.samples for count in screen.stacks.counts) == 1264
        await press(run, "p", "space", "P")
        assert sum(count.samples for count in screen.stacks.counts) == 3 * 632


# --- searching --------------------------------------------------------------------------------------------------


async def test_search() -> None:
    """The box shows matches during typing; Enter keeps them and dims the rest; Esc clears."""
    async with on_cpu() as (run, screen):
        await press(run, "slash", *"tcp_ack")
        box = screen.query_one(FilterBox)
        assert box.effect == "2 frames, 6.7% of all samples"
        await press(run, "enter")
        assert "/ tcp_ack   2 frames, 6.7% of all samples" in screen.third_line.text
        assert screen.focused is screen.graph
        styles = {
            segment.text: segment.style
            for y in range(16)
            for segment in screen.graph.render_line(y)
            if segment.style
        }
        match = next(look for text, look in styles.items() if text.startswith("tc…"))
        assert match.underline and match.bold
        await tick(run)
        assert "/ tcp_ack" in screen.third_line.text
        await press(run, "escape")
        assert "tcp_ack" not in screen.third_line.text
        assert screen.graph.words == ""
        assert screen.state.query.filter.is_empty


async def test_a_search_may_begin_before_there_is_a_graph() -> None:
    """`/` opens the box while the view loads, and typed keys are no commands."""
    async with on_cpu(ticks=0) as (run, screen):
        await type_at_once(run, "slash", *"tcp_sendmsg q")
        box = screen.query_one(FilterBox)
        assert (box.input.value, box.effect) == ("tcp_sendmsg q", "no samples to search")


async def test_escape_clears_one_thing_after_the_other() -> None:
    """Esc clears the search, then the zoom, then the choice, then nothing."""
    async with on_cpu() as (run, screen):
        await press(run, "down", "down", "right", "slash", "x", "enter", "escape")
        assert (screen.graph.words, screen.graph.zoom) == ("", HOT[:2])
        await press(run, "escape")
        assert (screen.graph.zoom, screen.graph.chosen) == ((), HOT[:2])
        await press(run, "escape")
        assert screen.graph.chosen is None
        assert "most time in  copy_user_generic" in screen.frame_bar.text
        assert not screen.keys.is_available(next(a for a in ACTIONS if a.id == "clear"))


# --- sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "graph", "categories"),
    [(60, False, True), (80, True, False), (120, True, False), (160, True, True)],
)
async def test_c_switches_between_graph_and_categories(width: int, graph: bool, categories: bool) -> None:
    """`c` switches between the graph, the categories, and both, if there is room."""
    async with on_cpu(size=(width, 40)) as (run, screen):
        assert (bool(screen.graph.region), bool(screen.categories.region)) == (graph, categories)
        await press(run, "c")
        assert (bool(screen.graph.region), bool(screen.categories.region)) == (True, not categories) or (
            not categories and (bool(screen.graph.region), bool(screen.categories.region)) == (False, True)
        )


@pytest.mark.parametrize("size", [(40, 10), (41, 24), (60, 20), (72, 24), (100, 12), (250, 90)])
async def test_every_size_shows_the_largest_costs(size: tuple[int, int]) -> None:
    """Any size has the headline, bars, and the hottest function: its name may be cut, its share never."""
    async with on_cpu(calling("copy_user_enhanced_fast"), size) as (_, screen):
        assert "network 15.8%" in screen.headline_bar.text
        assert "   37.5%" in line(screen.bars, 0)
        assert screen.graph.size.height >= 1 or screen.categories.size.height >= 1
        assert re.match(r" most time in  copy_user_[\w…]+ 15\.3%( |$)", screen.frame_bar.text)


async def test_ticks_that_waited_for_interrupts() -> None:
    """A function that enables interrupts is marked, as its samples are of what ran while they were disabled."""
    name = "_raw_spin_unlock_irqrestore"
    async with on_cpu(calling(name), (140, 40)) as (run, screen):
        assert f"most time in  {name}* 15.3%" in screen.frame_bar.text
        assert "* waited for interrupts" in screen.frame_bar.text
        await press(run, "down", "end")
        is_late = screen.graph.chosen[-1] == name
        assert ("* ticks that waited for interrupts" in screen.frame_bar.text) == is_late


# --- nothing to show --------------------------------------------------------------------------------------------


async def test_a_large_terminal_is_used() -> None:
    """The graph takes the whole width, and the categories what it would leave empty below."""
    async with on_cpu(size=(220, 60)) as (_, screen):
        assert screen.graph.size.width == screen.categories.size.width == 220
        assert screen.categories.region.y == screen.graph.region.bottom
        assert screen.categories.size.height == len(screen.categories.shares) + 3
        assert screen.graph.size.height >= 23


def without_stacks_of(cpu: int) -> list[Step]:
    """Return the example, in which a CPU has no samples."""
    steps: list[Step] = []
    for step in example_steps():
        rows = step.tables[STACKS.name]
        stacks = replace(rows, array=rows.array[rows.array["cpu"] != cpu])
        steps.append(replace(step, tables={**step.tables, STACKS.name: stacks}))
    return steps


NO_SAMPLES = without(example_steps(), via={"samples": "n/a: perf_event_paranoid is 3"})
NOTHING_PASSES = {"filters": ("cpu>99",)}


@pytest.mark.parametrize(
    ("steps", "options", "key", "notice"),
    [
        (example_steps()[:1], {}, "", "waiting for the first samples …"),
        (idle_steps(), {}, "", "the network stack was idle in the last minute w selects a longer time"),
        (idle_steps(), {}, "w", "the network stack was idle since the start "),
        (without_stacks_of(3), {}, "U", "the network stack on cpu3 was idle in the last minute w selects"),
        (NO_SAMPLES, {}, "c", "flame graph n/a: perf_event_paranoid is 3 the bars above are still live"),
        (example_steps(), NOTHING_PASSES, "", "no CPU passes the filter Esc clears it"),
    ],
)
async def test_why_there_is_no_graph(
    steps: list[Step], options: dict[str, Any], key: str, notice: str
) -> None:
    """The reason replaces the graph and the categories; keys that need one do nothing."""
    async with on_cpu([*steps], ticks=min(3, len(steps)), options=options) as (run, screen):
        await press(run, *key)
        assert screen.graph_notice.text.startswith(notice)
        assert not screen.graph.region and not screen.categories.region
        keys = {a.id for a in ACTIONS if screen.keys.is_available(a)}
        assert not keys & {"details", "move_down", "sort_next", "categories"}
        assert (screen.bars.arrangement.shown == ()) == (options == NOTHING_PASSES)
        unknown = len(steps) == 1
        assert unknown == ("network –" in screen.headline_bar.text)
        assert unknown == all(line(screen.bars, y).endswith(" – ") for y in range(4))


async def test_a_function_that_did_not_run() -> None:
    """A zoomed function without samples stays zoomed; the screen says so, and ← goes back."""
    async with on_cpu() as (run, screen):
        await press(run, "down", "l", "down", "right")
        assert screen.graph.zoom == ("TX syscalls", "entry_SYSCALL_64_after_hwframe")
        screen.graph.zoom_to(("TX syscalls", "somewhere_else"))
        await press(run, "w")
        assert "somewhere_else did not run since the start" in screen.graph_notice.text
        await press(run, "left", "left")
        assert screen.graph.zoom == ()
        assert screen.graph.region


async def test_entry_points_that_are_not_here() -> None:
    """The legend marks entry points that are not available, instead of 0."""
    steps = [
        replace(step, hooks=(*step.hooks, *make_missing("napi_threads_ns", "no sched_switch")))
        for step in example_steps()
    ]
    async with on_cpu([*steps], (160, 45)) as (_, screen):
        assert "╲╲ NAPI threads n/a" in screen.legend.text
        assert screen.headline_bar.text.rstrip().endswith("1 n/a (napi_threads_ns)")


# --- keys -------------------------------------------------------------------------------------------------------


async def test_every_key_of_a_graph_is_pressed_here() -> None:
    """Keys of a graph work, and are in help and palette, on this screen alone."""
    async with on_cpu() as (run, screen):
        await press(run, "down")
        working = {a.id for a in ACTIONS if screen.keys.is_available(a)}
        assert {a.id for a in ACTIONS if a.group == GRAPH} <= working
        assert not working & {"sort_left", "sort_right", "totals", "all_rows", "back"}
        words = "\n".join("".join(span.text for span in help_line) for help_line in help_lines(screen, 200))
        assert "Zoom into the selected frame" in words
        assert "\nFILTER\n" not in words
        for category in CATEGORIES.values():
            assert f"{category.letter} {category.label}" in words
        labels = {label for label, _, _ in palette_entries(screen)}
        assert "Show processes" in labels
        assert not any(label.startswith("Sort by") for label in labels)
        await press(run, "p")
        assert shown(run).table is STACKS
        assert not any(shown(run).keys.is_available(a) for a in ACTIONS if a.group == GRAPH)


async def test_out_of_sight() -> None:
    """A hidden screen holds no tree; when visible again it is as before."""
    async with on_cpu() as (run, screen):
        await press(run, "down", "down", "right")
        before = screen.crumbs.text
        await press(run, "p")
        assert (screen.graph.whole, screen.stacks.counts) == (None, [])
        await press(run, "P")
        assert shown(run) is screen
        assert (screen.graph.zoom, screen.crumbs.text) == (HOT[:2], before)


async def test_numbers() -> None:
    """`n` shows the CPUs as a table, with all keys of a table; `n` and ← go back."""
    async with on_cpu() as (run, screen):
        for back in ("n", "left"):
            await press(run, "n")
            there = shown(run)
            assert "TX SOFT" in there.rows.render_line(0).text
            assert "network 15.8% of 4 CPUs" in there.headline_bar.text
            await press(run, "s", "t", back)
            assert shown(run) is screen
            assert screen.graph.has_focus


async def test_words_of_the_command_line() -> None:
    """The command line's filter and limit select CPUs and are shown; Esc clears the filter last."""
    async with on_cpu(options={"limit": 1}, size=(160, 45)) as (_, screen):
        assert "all entry points   37.5% of 1 CPU  748 samples" in screen.crumbs.text
        assert "1 of 4 CPUs" in screen.crumbs.text
    async with on_cpu(options={"filters": ("cpu<2",)}, size=(160, 45)) as (run, screen):
        assert [use.cpu for use in screen.bars.arrangement.shown] == [0, 1]
        assert "/ cpu<2   2 of 4" in screen.third_line.text
        assert {count.cpu for count in screen.stacks.counts} == {0, 1}
        assert "all entry points   25.2% of 2 CPUs  1,004 samples" in screen.crumbs.text
        assert "2 of 4 CPUs" in screen.crumbs.text
        assert "▒▒ RX softirq 13.3%" in screen.legend.text
        await press(run, "U")
        assert screen.stacks.cpu == 1
        await press(run, "u", "escape")
        assert len(screen.bars.arrangement.shown) == 4
        assert "all entry points   15.8% of 4 CPUs  1,264 samples" in screen.crumbs.text


async def test_a_chosen_cpu_that_is_left_out() -> None:
    """If the chosen CPU is filtered out, as when idle, the same key moves on."""
    async with on_cpu(options={"filters": ("network_ns_per_s>5%",)}, size=(100, 24)) as (run, screen):
        screen.action_cpu(3)
        assert screen.graph_notice.text == "cpu3 is left out by the filter or the limit u shows another CPU"
        await press(run, "u")
        assert screen.stacks.cpu == 0
        assert screen.graph.region


async def test_numbers_keep_the_chosen_options() -> None:
    """The numbers keep the command line's filter, order and columns if still valid."""
    options = {"filters": ("cpu<3",), "sort": "-cpu", "columns": ("cpu", "network_ns_per_s")}
    async with on_cpu(options=options, size=(160, 45)) as (run, screen):
        await press(run, "n")
        table = shown(run).rows
        assert [table.render_line(y).text.split()[0] for y in range(1, 4)] == ["2", "1", "0"]
        assert table.render_line(0).text.split() == ["CPU▾", "NETWORK"]
        await press(run, "n", "escape", "n")
        assert shown(run).state.query.filter.is_empty
        assert screen.state.query.filter.is_empty
