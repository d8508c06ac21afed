# SPDX-License-Identifier: Apache-2.0
"""Writing only changed cells leaves the same screen as writing everything."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from rich.color import ColorSystem
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate, LayoutUpdate
from textual.geometry import Region
from textual.strip import Strip

from nettop.screens.changed_cells import PLAIN, ChangedCells, Pen, TerminalCells, pen_of
from nettop.widgets.themes import PALETTES, Background, Role, style
from tests.emulator import Emulator

WIDTH, HEIGHT, CUT = 40, 6, 25
CONSOLE = Console(color_system="truecolor", force_terminal=True)
TEXTS = ("12.3 Mb/s", "   4 ms", "▸█▌··", "–", "日本 語", "e\u0301tat", " " * 7, "nginx 1813")
STYLES = [
    style(theme, role, background)
    for theme in PALETTES
    for role in (Role.TEXT, Role.SENT, Role.BAD, Role.NOBODY, Role.FAINT)
    for background in Background
] + [Style(underline=True, color="red"), Style(reverse=True), Style.null()]


def strip_of(chance: random.Random, width: int) -> Strip:
    """Return a strip of some texts in some styles."""
    segments = [Segment(chance.choice(TEXTS), chance.choice(STYLES)) for _ in range(width // 5)]
    return Strip(segments).adjust_cell_length(width, STYLES[0])


def changed(chance: random.Random, strip: Strip, width: int) -> Strip:
    """Return the strip with another segment in place of one of its own, or another strip."""
    segments = list(strip)
    if not segments or chance.random() < 0.1:
        return strip_of(chance, width)
    segments[chance.randrange(len(segments))] = Segment(chance.choice(TEXTS), chance.choice(STYLES))
    return Strip(segments).adjust_cell_length(width, STYLES[0])


Lines = Sequence[Mapping[int, Strip]]


def whole(lines: Lines) -> LayoutUpdate:
    """Return the update that draws all lines."""
    return LayoutUpdate([line.values() for line in lines], Region(0, 0, WIDTH, HEIGHT))


def part(lines: Lines, spans: list[tuple[int, int, int]]) -> ChopsUpdate:
    """Return the update that draws these spans."""
    return ChopsUpdate(lines, spans, [[CUT, WIDTH]] * HEIGHT)


def written(terminal: TerminalCells, update: LayoutUpdate | ChopsUpdate) -> str:
    """Return what is written for an update."""
    return ChangedCells(terminal, update).render_segments(CONSOLE)


def seen(lines: Lines) -> Emulator:
    """Return a terminal on which Textual itself has drawn all lines."""
    emulator = Emulator(WIDTH, HEIGHT)
    emulator.feed(whole(lines).render_segments(CONSOLE))
    return emulator


@pytest.mark.parametrize("seed", range(8))
def test_same_screen_as_by_textual(seed: int) -> None:
    """After another size and each of many random updates, the terminal shows all lines as Textual draws them."""
    chance, terminal, emulator = random.Random(seed), TerminalCells(), Emulator(WIDTH, HEIGHT)
    written(terminal, LayoutUpdate([[strip_of(chance, 60)]] * 3, Region(0, 0, 60, 3)))
    lines = [{0: strip_of(chance, CUT), CUT: strip_of(chance, WIDTH - CUT)} for _ in range(HEIGHT)]
    emulator.feed(written(terminal, whole(lines)))
    for _ in range(30):
        spans = []
        for y in sorted(chance.sample(range(HEIGHT), chance.randint(1, HEIGHT))):
            x, end = chance.choice([(0, CUT), (CUT, WIDTH)])
            lines[y] = lines[y] | {x: changed(chance, lines[y][x], end - x)}
            spans.append((y, x, end))
        emulator.feed(written(terminal, part(lines, spans)))
        assert emulator.cells == seen(lines).cells


def line_of(*texts: str) -> Lines:
    """Return lines of which the first has these texts, in alternating styles."""
    styles = (style("nettop-dark", Role.TEXT), style("nettop-dark", Role.SENT))
    segments = [Segment(text, styles[n % 2]) for n, text in enumerate(texts)]
    return [
        {0: Strip(segments).adjust_cell_length(WIDTH, styles[0])},
        *[{0: Strip.blank(WIDTH)}] * (HEIGHT - 1),
    ]


def update(lines: Lines) -> ChopsUpdate:
    """Return the update that draws the first line."""
    return ChopsUpdate(lines, [(0, 0, WIDTH)], [[WIDTH]] * HEIGHT)


def test_only_changed_cells_are_written() -> None:
    """A digit that changes costs a move, its colour and itself; a few unchanged cells between changes are written, more
    are skipped. A whole update is written even if nothing changed."""
    terminal = TerminalCells()
    written(terminal, whole(line_of("nginx ", "12.5 Mb/s")))
    assert written(terminal, update(line_of("nginx ", "12.5 Mb/s"))) == ""
    assert written(terminal, update(line_of("nginx ", "13.6 Mb/s"))) == (
        "\x1b[1;8H\x1b[38;2;242;166;90;48;2;16;21;28m3.6\x1b[0m"
    )
    lines = line_of("1234567")
    assert written(terminal, whole(lines)) == written(terminal, whole(lines)) != ""
    assert "m_2345_\x1b" in written(terminal, update(line_of("_2345_7")))
    assert "\x1b[5C" in written(terminal, update(line_of("x2345_y")))


def test_line_with_wide_characters_is_written_whole() -> None:
    """Terminals disagree about their widths, so nothing after them is left where it was."""
    terminal = TerminalCells()
    written(terminal, whole(line_of("日本", "12.5 Mb/s")))
    assert "Mb/s" in written(terminal, update(line_of("日本", "12.6 Mb/s")))
    assert "日本" in written(terminal, update(line_of("日本", "12.6 Mb/s")))


@pytest.mark.parametrize(
    ("was", "now", "sequence"),
    [
        (PLAIN, PLAIN, ""),
        (PLAIN, Pen("1", "31", "49"), "\x1b[0;1;31m"),
        (Pen("1", "31", "44"), Pen("1", "32", "44"), "\x1b[32m"),
        (Pen("1", "31", "44"), Pen("", "31", "44"), "\x1b[0;31;44m"),
        (Pen("", "31", "44"), PLAIN, "\x1b[39;49m"),
    ],
)
def test_pen_changes_by_what_differs(was: Pen, now: Pen, sequence: str) -> None:
    """Colours are set alone; to take an attribute back, all are set again."""
    assert now.sequence_from(was) == sequence


def test_blanks_differ_in_what_is_visible() -> None:
    """The colour of a blank, bold and italic are invisible; its background, underlines and reverse are not."""
    blue = Style(color="red", bgcolor="blue", bold=True, italic=True)
    assert pen_of(blue, ColorSystem.STANDARD).of_blank() == Pen(background="44")
    underlined = pen_of(Style(color="red", underline=True), ColorSystem.STANDARD)
    assert underlined.of_blank() == underlined
