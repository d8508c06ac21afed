# SPDX-License-Identifier: Apache-2.0
"""Colours that can be read, and signs that can be shown."""

from __future__ import annotations

import pytest
import rich.color
from rich.segment import Segment
from textual.color import Color

from nettop.widgets.glyphs import needed_signs
from nettop.widgets.themes import (
    DARK,
    LIGHT,
    TERMINAL,
    Background,
    Palette,
    Role,
    first_theme,
    has_256_colours,
    style,
)
from tests.builders.colours import contrast

READ = ("text", "dim", "head", "sent", "received", "warn", "bad")


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=lambda p: p.name)
def test_contrast(palette: Palette) -> None:
    """Whatever is to be read has a contrast of 4.5 on every ground, what may fade at least 3."""
    for background in (palette["screen"], palette["panel"], palette["band"]):
        for name in READ:
            assert contrast(palette[name], background) >= 4.5, (name, background)
        assert contrast(palette["faint"], background) >= 3.0, background


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=lambda p: p.name)
@pytest.mark.parametrize("background", ["screen", "panel"])
def test_grounds_are_grey_among_256_colours(palette: Palette, background: str) -> None:
    """The nearest of 256 colours is no pink."""
    shown = rich.color.Color.parse(palette[background]).downgrade(rich.color.ColorSystem.EIGHT_BIT)
    assert len(set(shown.get_truecolor())) == 1


@pytest.mark.parametrize(
    ("environ", "theme"),
    [
        ({"TERM": "xterm-256color"}, DARK),
        ({"COLORFGBG": "15;0"}, DARK),
        ({"COLORFGBG": "0;15"}, LIGHT),
        ({"COLORFGBG": "0;default;15"}, LIGHT),
        ({"TERM": "vte-256color"}, DARK),
        ({"TERM": "linux"}, TERMINAL),
        ({"TERM": "vt220"}, TERMINAL),
        ({"NO_COLOR": "1", "COLORFGBG": "0;15"}, TERMINAL),
    ],
)
def test_first_theme(environ: dict[str, str], theme: Palette) -> None:
    """The theme suits the terminal."""
    assert first_theme(environ) == theme.name


@pytest.mark.parametrize(
    ("term", "has_them"),
    [
        *((term, True) for term in ("xterm-256color", "screen-256color-bce", "xterm-ghostty", "xterm-kitty")),
        *((term, True) for term in ("alacritty", "foot-extra", "wezterm", "xterm-direct", "tmux-256color")),
        *((term, False) for term in ("xterm", "linux", "screen", "vt100", "rxvt", "")),
    ],
)
def test_terminals_with_256_colours(term: str, has_them: bool) -> None:
    """They are known by TERM, which sudo keeps."""
    assert has_256_colours(term) == has_them


def test_terminal_theme_needs_no_colour() -> None:
    """Without colours the chosen row and the tab are reversed, warnings are bold."""
    assert style(TERMINAL.name, Role.TEXT, Background.BAND).reverse
    assert style(TERMINAL.name, Role.TAB).reverse
    assert style(TERMINAL.name, Role.BAD).bold


def test_plain_signs_keep_widths() -> None:
    """Outside UTF-8 every sign becomes ASCII of the same width."""
    signs = needed_signs({}, "ISO-8859-1")
    assert signs is not None
    ((text, _, _),) = signs.apply([Segment("▲ 3.1% – ↑ 日本 ± RTT ▴")], Color(0, 0, 0))
    assert text == "! 3.1% - ^ ???? ~ RTT ^"
    assert needed_signs({"TERM": "xterm"}, "UTF-8") is None


def test_console_signs() -> None:
    """The Linux console keeps the signs that its font has."""
    signs = needed_signs({"TERM": "linux"}, "UTF-8")
    assert signs is not None
    ((text, _, _),) = signs.apply([Segment("▲ – ↑ ❄ RTT ▾")], Color(0, 0, 0))
    assert text == "▲ - ↑ * RTT ▼"


def test_a_deviation_has_the_usual_signs_in_ascii() -> None:
    """`±` is `+/-` where the cell has room at its left, and no column moves."""
    signs = needed_signs({}, "ascii")
    assert signs is not None
    shown = [
        segment.text
        for segment in signs.apply(
            [Segment(text) for text in ("     37 ±18 µs ", " 1234 ±567 ms ", "      RTT ±VAR ")],
            Color(0, 0, 0),
        )
    ]
    assert shown == ["   37 +/-18 us ", " 1234 ~567 ms ", "    RTT +/-VAR "]
