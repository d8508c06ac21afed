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
    Palette,
    first_theme,
    has_256_colours,
)
from tests.builders.colours import contrast

READ = ("text", "dim", "head", "sent", "received", "warn", "bad")


@pytest.mark.parametrize("palette", [DARK, LIGHT], ids=lambda p: p.name)
def test_contrast(palette: Palette) -> None:
    """Texts have a contrast of 4.5 on every background, faint ones of 3; the nearest of 256 colours is grey."""
    for background in (palette["screen"], palette["panel"], palette["band"]):
        for name in READ:
            assert contrast(palette[name], background) >= 4.5, (name, background)
        assert contrast(palette["faint"], background) >= 3.0, background
    for background in (palette["screen"], palette["panel"]):
        nearest = rich.color.Color.parse(background).downgrade(rich.color.ColorSystem.EIGHT_BIT)
        assert len(set(nearest.get_truecolor())) == 1


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
    """TERM, COLORFGBG and NO_COLOR choose the first theme."""
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
    """TERM tells which terminals have 256 colours."""
    assert has_256_colours(term) == has_them


@pytest.mark.parametrize(
    ("term", "encoding", "text", "expected"),
    [
        ("xterm", "ISO-8859-1", "▲ 3.1% – ↑ 日本 ± RTT ▴", "! 3.1% - ^ ???? ~ RTT ^"),
        ("xterm", "ascii", "     37 ±18 µs ", "   37 +/-18 us "),
        ("xterm", "ascii", " 1234 ±567 ms ", " 1234 ~567 ms "),
        ("linux", "UTF-8", "▲ – ↑ ❄ RTT ▾", "▲ - ↑ * RTT ▼"),
    ],
)
def test_plain_signs_keep_widths(term: str, encoding: str, text: str, expected: str) -> None:
    """Signs that the terminal lacks become others of the same width; `±` is `+/-` where the cell has room for it."""
    signs = needed_signs({"TERM": term}, encoding)
    assert [segment.text for segment in signs.apply([Segment(text)], Color(0, 0, 0))] == [expected]
    assert needed_signs({"TERM": "xterm"}, "UTF-8") is None
