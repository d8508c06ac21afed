# SPDX-License-Identifier: Apache-2.0
"""The layout of a tree's rows and of bars, and the hits of a search, without a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.geometry import Size

from nettop.screens.cpu.bars import (
    GLYPHS,
    ROLES,
    CategoryBars,
    CategoryShare,
    CpuUse,
    EntryBars,
    arrange,
    left_out_text,
)
from nettop.screens.cpu.flame_graph import (
    EDGE,
    FlameBlock,
    FlameGraph,
    Layout,
    Matches,
    matcher,
    node_at,
    search,
)
from nettop.screens.table_screen import LEAST_WIDTH
from nettop.snapshots.cpu import CATEGORIES, ENTRIES, OTHER, RX_SOFTIRQ
from nettop.stacks.counts import FlameNode
from nettop.widgets.themes import DARK, LIGHT, TERMINAL, Palette, Role, Shade, frame_style, style
from tests.builders.colours import contrast


def node(symbol: str, own: int, *children: FlameNode) -> FlameNode:
    """Return a function that was sampled `own` times itself."""
    return FlameNode(symbol, own + sum(child.samples for child in children), 0, OTHER, lambda: children)


def trees(depth: int = 4) -> st.SearchStrategy[FlameNode]:
    """Return trees with wide, narrow and equal children; each node's samples are at least those of its children."""
    own = st.one_of(st.integers(1, 3), st.integers(1, 5000))
    below = st.lists(trees(depth - 1), max_size=6) if depth else st.just([])
    return st.builds(lambda own, children: node("", own, *_named(children)), own, below)


def _named(children: list[FlameNode]) -> Iterator[FlameNode]:
    for at, child in enumerate(children):
        yield FlameNode(f"f{at}", child.samples, child.time_ns, child.category, child.find_children)


WIDTHS = st.integers(1, 240)


def blocks(layout: Layout) -> list[FlameBlock]:
    """Return the blocks of all rows."""
    return [block for number in range(layout.depth) for block in layout.row(number)]


@given(trees(), WIDTHS)
def test_layout(tree: FlameNode, width: int) -> None:
    """Frames lie below their caller without overlapping, within a cell of their share; those narrower than a cell are
    merged or counted as unseen."""
    layout = Layout(tree, (), width)
    for number in range(layout.depth):
        row = layout.row(number)
        assert all(block.end <= other.start for block, other in pairwise(row))
        assert all(0 <= block.start < block.end <= width for block in row)
    all_blocks = blocks(layout)
    singles = {block.path: block for block in all_blocks if not block.merged}
    for block in all_blocks:
        assert abs(block.end - block.start - block.node.samples * width / tree.samples) <= 1
        if block.path or block.merged:
            caller = singles[block.path if block.merged else block.path[:-1]]
            assert caller.start <= block.start and block.end <= caller.end
    for path, caller in singles.items():
        wide = {child.symbol for child in caller.node.children if child.samples * width >= tree.samples}
        assert {below[-1] for below in singles if below and below[:-1] == path} == wide
        merged = sum(block.merged for block in all_blocks if block.merged and block.path == path)
        assert len(wide) + merged + layout.unseen.get(path, 0) == len(caller.node.children)


def test_rows_are_made_when_they_are_visible() -> None:
    """Rows out of sight are not built."""
    layout = Layout(node("", 0, node("a", 0, node("b", 0, node("c", 1)))), (), 10)
    assert [block.path for block in layout.row(1)] == [("a",)]
    assert len(layout._rows) == 2


def test_zoomed_in_the_narrow_ones_get_wide() -> None:
    """Merged frames get their own blocks when their caller takes the whole width."""
    thin = [node(f"thin{n}", 1) for n in range(5)]
    tree = node("", 0, node("wide", 90), node("caller", 5, *thin))
    (whole,) = (block for block in Layout(tree, (), 40).row(2) if block.merged)
    assert whole.merged == 5
    caller = node_at(tree, ("caller",))
    assert caller is not None
    assert [b.path[-1] for b in Layout(caller, ("caller",), 40).row(1)] == [f"thin{n}" for n in range(5)]


def test_a_search_counts_no_sample_twice() -> None:
    """A match inside another match adds a frame, but no samples."""
    tree = node("", 0, node("tcp_v4_rcv", 2, node("ip_x", 1, node("TCP_ack", 4))), node("tcp_y", 3))
    assert search(tree, matcher("tcp")) == Matches(3, 10)
    assert search(tree, matcher("ack  y")) == Matches(2, 7)
    assert search(tree, matcher("nothing")) == Matches(0, 0)
    assert search(tree, matcher(" ")) == Matches(0, 0)


# --- how rows are drawn -----------------------------------------------------------------------------------------


def of_entries() -> st.SearchStrategy[FlameNode]:
    """Return trees as the screen has them: entry points below the root."""

    def named(children: list[FlameNode]) -> FlameNode:
        pairs = zip(ENTRIES.values(), children, strict=False)
        return node(
            "all", 0, *(FlameNode(name, c.samples, 0, c.category, c.find_children) for name, c in pairs)
        )

    return st.lists(trees(3), min_size=1, max_size=len(ENTRIES)).map(named)


def test_every_row_is_as_wide_as_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row fills the width, with an edge at the end of each frame."""
    monkeypatch.setattr(FlameGraph, "app", SimpleNamespace(theme=DARK.name))

    @given(of_entries(), st.integers(3, 240), st.integers(1, 12), st.integers(0, 1))
    def check(tree: FlameNode, width: int, height: int, chosen: int) -> None:
        size = Size(width, height)
        monkeypatch.setattr(FlameGraph, "size", size)
        graph = FlameGraph()
        graph.whole, graph.chosen = tree, (tree.children[0].symbol,) if chosen else None
        strips = graph.strips(size)
        assert [cell_len(strip.text) for strip in strips] == [width] * height
        assert [strip.cell_length for strip in strips] == [width] * height
        layout = graph.current_layout
        for number, strip in enumerate(strips, 1):
            whole = [
                block for block in layout.row(number) if not block.merged and block.end - block.start > 1
            ]
            assert all(strip.text[block.end] == EDGE for block in whole)

    check()


def test_numbers_of_categories_are_whole_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of categories are whole, with their titles, or left out."""
    monkeypatch.setattr(CategoryBars, "app", SimpleNamespace(theme=DARK.name))
    bars = CategoryBars()
    bars.shares, bars._of = (CategoryShare(12, 8_765_432, 0.1234), CategoryShare(9, 1, 0.0005)), "2 CPUs"
    for width in range(LEAST_WIDTH, 120):
        strips = bars.strips(Size(width, 6))
        assert {cell_len(strip.text) for strip in strips} == {width}
        header, first, second, total, *_ = (strip.text.rstrip() for strip in strips)
        assert ("OF 2 CPUS" in header) == first.endswith("12.3%") == second.endswith("0.05%")
        assert ("SAMPLES" in header) == ("8,765,432" in first) == ("8,765,433" in total)
        assert "100%" in first and header.endswith(("SHARE", "OF 2 CPUS"))


# --- bars -------------------------------------------------------------------------------------------------------


def uses(*shares: float) -> list[CpuUse]:
    """Return CPUs by their number, whose RX softirq takes these shares."""
    return [CpuUse(cpu, {RX_SOFTIRQ: share}) for cpu, share in enumerate(shares)]


def shown(*args: object, **how: object) -> list[int]:
    """Return the CPUs of an arrangement, in order."""
    return [use.cpu for use in arrange(*args, **how).shown]


@pytest.mark.parametrize(
    ("shares", "height", "chosen", "by_use", "expected"),
    [
        ((0.1, 0.3, 0.0), 3, None, False, [0, 1, 2]),
        ((0.1, 0.3, 0.0), 3, None, True, [1, 0, 2]),
        ((0.1, 0.3, 0.0, 0.2, 0.05), 4, None, False, [0, 1, 3]),
        ((0.1, 0.3, 0.0, 0.2, 0.05), 4, 2, False, [1, 2, 3]),
        ((0.1, 0.3, 0.0, 0.2, 0.05), 4, None, True, [1, 3, 0]),
    ],
)
def test_cpus_with_a_bar(
    shares: tuple[float, ...], height: int, chosen: int | None, by_use: bool, expected: list[int]
) -> None:
    """The busiest and the selected CPU have bars, by number or by use; one line is for those left out."""
    assert shown(uses(*shares), 80, height, chosen, by_use=by_use) == expected


@pytest.mark.parametrize(
    ("cpus", "width", "height", "columns"), [(16, 160, 8, 2), (16, 160, 6, 3), (4, 160, 6, 1), (16, 60, 6, 1)]
)
def test_many_cpus_stand_side_by_side(cpus: int, width: int, height: int, columns: int) -> None:
    """Many CPUs take as many columns as fit, and no more than needed."""
    assert arrange(uses(*[0.1] * cpus), width, height, None, by_use=False).columns == columns


@given(st.lists(st.floats(0, 1), min_size=1, max_size=200), st.integers(40, 250), st.integers(1, 30))
def test_every_cpu_is_shown_or_left_out(shares: list[float], width: int, height: int) -> None:
    """Each CPU has a bar or is counted as left out, in the lines that there are."""
    made = arrange(uses(*shares), width, height, None, by_use=False)
    assert sorted(use.cpu for use in (*made.shown, *made.left_out)) == list(range(len(shares)))
    assert made.height <= max(2, height) and made.shown


@given(st.dictionaries(st.sampled_from(list(ENTRIES)), st.floats(0, 0.16)), st.integers(0, 200))
def test_cells_of_a_bar(shares: dict[int, float], cells: int) -> None:
    """No entry point is more than a cell off, and together they fit."""
    lengths = dict(EntryBars.lengths(CpuUse(0, shares), cells))
    assert sum(lengths.values()) <= cells
    assert all(abs(count - shares.get(entry, 0.0) * cells) <= 1.001 for entry, count in lengths.items())


def test_no_share_for_a_cpu_without_known_times() -> None:
    """CPUs without known times have no share, not 0."""
    unknown = [CpuUse(cpu, {}) for cpu in range(3)]
    assert [use.network for use in unknown] == [None] * 3
    assert shown([*unknown, CpuUse(3, {RX_SOFTIRQ: 0.1})], 80, 2, None, by_use=True) == [3]
    assert left_out_text(unknown) == "… 3 more"
    assert left_out_text([*unknown, *uses(0.2)]) == "… 4 more, none above 20.0%"


def test_a_full_bar_is_always_one_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full bar is 100 % of a CPU, whatever was shown before."""
    monkeypatch.setattr(EntryBars, "app", SimpleNamespace(theme=DARK.name))
    bars, filled = EntryBars(), []
    for share in (0.48, 0.40, 0.04):
        bars.arrangement = arrange(uses(share), 116, 1, None, by_use=False)
        filled.append(bars.strips(Size(116, 1))[0].text.count(GLYPHS[RX_SOFTIRQ]))
    assert filled == [48, 40, 4]


def test_a_full_bar_of_a_category_is_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bars of the categories add up to one full bar."""
    monkeypatch.setattr(CategoryBars, "app", SimpleNamespace(theme=DARK.name))
    bars = CategoryBars()
    bars.shares, bars._of = (CategoryShare(12, 60, 0.1), CategoryShare(9, 40, 0.1)), "2 CPUs"
    bars.strips(Size(100, 6))
    lengths = [len(bars._share_line(share)[3].text) for share in bars.shares]
    assert lengths == [round(bars._bar * 0.6), round(bars._bar * 0.4)]


# --- colours ----------------------------------------------------------------------------------------------------


def colour(theme: Palette, letter: str, shade: Shade, role: Role) -> tuple[str, str]:
    """Return text and ground."""
    made = frame_style(theme.name, letter, shade, role)
    assert made.color is not None and made.bgcolor is not None
    return made.color.name, made.bgcolor.name


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=lambda p: p.name)
def test_frames_can_be_read(palette: Palette) -> None:
    """Names and entry points have a contrast of 4.5, faded frames of 3; each category has its own background."""
    for category in CATEGORIES.values():
        for shade in (Shade.PLAIN, Shade.CHOSEN):
            assert contrast(*colour(palette, category.letter, shade, Role.TEXT)) >= 4.5, category
            assert contrast(*colour(palette, category.letter, shade, Role.DIM)) >= 3, category
        assert contrast(*colour(palette, category.letter, Shade.FADED, Role.TEXT)) >= 3, category
    for role in ROLES.values():
        for background in (palette["screen"], palette["band"]):
            assert contrast(palette[role.value], background) >= 4.5, role
    grounds = [colour(palette, c.letter, Shade.PLAIN, Role.TEXT)[1] for c in CATEGORIES.values()]
    assert len(set(grounds)) == len({c.letter for c in CATEGORIES.values()}) == len(CATEGORIES)


def test_without_colours_the_chosen_frame_is_not_reversed() -> None:
    """In the terminal's own colours all frames but the selected and faded ones are reversed."""
    looks = [frame_style(TERMINAL.name, "T", shade) for shade in Shade]
    assert [look.reverse for look in looks] == [True, False, False]
    assert looks[1].bold and looks[2].dim
    assert style(TERMINAL.name, Role.RX_SOFTIRQ).color is not None
