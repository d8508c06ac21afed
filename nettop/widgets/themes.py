# SPDX-License-Identifier: Apache-2.0
"""The colours, besides those of categories. Colour only reinforces what a glyph or a word already says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cache

from rich.style import Style

from nettop.stacks.colours import FRAMES


class Role(Enum):
    """The purpose of a text, which determines its colour."""

    TEXT = "text"
    BOLD = "bold"
    DIM = "dim"
    FAINT = "faint"
    HEAD = "head"
    SENT = "sent"
    RECEIVED = "received"
    TOTAL_SENT = "total_sent"
    TOTAL_RECEIVED = "total_received"
    KEY = "key"
    WARN = "warn"
    BAD = "bad"
    NOBODY = "nobody"
    TAB = "tab"
    NAME = "name"
    TX_SYSCALLS = "tx_syscalls"
    RX_SYSCALLS = "rx_syscalls"
    TX_SOFTIRQ = "tx_softirq"
    RX_SOFTIRQ = "rx_softirq"
    IO_WORKERS = "io_workers"
    NAPI_THREADS = "napi_threads"


class Background(Enum):
    """The background of a text."""

    SCREEN = "screen"
    PANEL = "panel"
    BAND = "band"


class Shade(Enum):
    """The emphasis of a flame graph's frame."""

    PLAIN = "plain"
    CHOSEN = "chosen"
    FADED = "faded"
    """A frame that does not match the search."""


@dataclass(frozen=True, slots=True)
class Palette:
    """A theme, and its column in the tables of colours."""

    name: str
    dark: bool
    column: int

    def __getitem__(self, colour: str) -> str:
        """Return a colour by its name. Those that begin with `ansi_` are the terminal's own."""
        return _COLOURS[colour][self.column]

    @property
    def ansi(self) -> bool:
        """True if the terminal's own colours are used."""
        return self["screen"].startswith("ansi_")


DARK = Palette("nettop-dark", dark=True, column=0)
LIGHT = Palette("nettop-light", dark=False, column=1)
TERMINAL = Palette("nettop-terminal", dark=True, column=2)
"""For 16 colours and for NO_COLOR: emphasis is bold, dim and reverse, which every terminal supports."""
PALETTES: Mapping[str, Palette] = {p.name: p for p in (DARK, LIGHT, TERMINAL)}
THEME_PREFIX = "nettop-"

_COLOURS: Mapping[str, tuple[str, str, str]] = {
    "screen": ("#10151c", "#fbfaf7", "ansi_default"),
    "panel": ("#19212b", "#ebebe6", "ansi_default"),
    "band": ("#26384d", "#cfe0ee", "ansi_default"),
    "text": ("#d5dde6", "#1d2630", "ansi_default"),
    "dim": ("#97a4b3", "#4f5b68", "ansi_default"),
    "faint": ("#7b8794", "#6b7682", "ansi_default"),
    "head": ("#9fb2c8", "#3c5068", "ansi_default"),
    "sent": ("#f2a65a", "#984900", "ansi_yellow"),
    "received": ("#4fb3d9", "#005c86", "ansi_cyan"),
    "warn": ("#e8c547", "#6f5300", "ansi_yellow"),
    "bad": ("#f58582", "#b3261e", "ansi_red"),
    "on_name": ("#10151c", "#fbfaf7", "ansi_default"),
    "on_frame": ("#ffffff", "#1d2630", "ansi_default"),
    "tx_syscalls": ("#f2a65a", "#984900", "ansi_yellow"),
    "rx_syscalls": ("#7cc78c", "#2a6a3d", "ansi_green"),
    "tx_softirq": ("#f0805f", "#b0331c", "ansi_red"),
    "rx_softirq": ("#4fb3d9", "#005c86", "ansi_cyan"),
    "io_workers": ("#cb9fdd", "#7a3f96", "ansi_magenta"),
    "napi_threads": ("#9fabf2", "#474cab", "ansi_blue"),
}
"""Colours of each theme, in the order of `PALETTES`. Grounds are nearly grey: of 256 colours, the one nearest to a
warmer white is pink."""

_BRIGHTER = 0.55
_PALER = 0.25

_BOLD = frozenset(
    {Role.BOLD, Role.HEAD, Role.KEY, Role.BAD, Role.TAB, Role.NAME, Role.TOTAL_SENT, Role.TOTAL_RECEIVED}
)
_COLOUR_OF: Mapping[Role, str] = {
    Role.BOLD: "text",
    Role.KEY: "received",
    Role.TOTAL_SENT: "sent",
    Role.TOTAL_RECEIVED: "received",
    Role.NOBODY: "warn",
    Role.TAB: "text",
    Role.NAME: "on_name",
}
"""The colours of roles that share one; any other role has the colour of its own name."""
_LIGHT_GROUNDS = frozenset({7, 9, 10, 11, 12, 13, 14, 15})
_256_COLOURS = re.compile("256color|direct|alacritty|contour|foot|ghostty|kitty|konsole|rio|wezterm")
"""Parts of TERM that imply 256 colours; sudo keeps TERM but not COLORTERM."""
_FEW_COLOURS = ("linux", "ansi", "vt", "xterm-16color", "screen.linux", "cons")


def has_256_colours(term: str) -> bool:
    """Return whether a terminal with this TERM is known to have 256 colours."""
    return bool(_256_COLOURS.search(term.lower()))


def first_theme(environ: Mapping[str, str] = os.environ, remembered: str | None = None) -> str:
    """Return the initial theme: the terminal's own colours if it has few or NO_COLOR is set, else the user's choice
    (`dark`), else the one that matches the terminal's background.

    Where a terminal sets COLORFGBG, it ends in the number of the background colour.
    """
    term = environ.get("TERM", "")
    if "NO_COLOR" in environ or (term.startswith(_FEW_COLOURS) and not has_256_colours(term)):
        return TERMINAL.name
    if remembered is not None:
        return THEME_PREFIX + remembered
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT.name if background.isdigit() and int(background) in _LIGHT_GROUNDS else DARK.name


@cache
def style(theme: str, role: Role, background: Background = Background.SCREEN) -> Style:
    """Return the style of a role on a background."""
    palette = PALETTES.get(theme, DARK)
    if role is Role.NAME:
        return Style(
            color=_rich(palette["on_name"]),
            bgcolor=_rich(palette["received"]),
            bold=True,
            reverse=palette.ansi,
        )
    background = Background.BAND if role is Role.TAB else background
    pale = palette.ansi and role in (Role.DIM, Role.FAINT) and background is not Background.BAND
    return Style(
        color=_rich(palette[_COLOUR_OF.get(role, role.value)]),
        bgcolor=_rich(palette[background.value]),
        bold=role in _BOLD or None,
        italic=role is Role.NOBODY or None,
        dim=pale or None,
        reverse=(palette.ansi and background is Background.BAND) or None,
    )


@cache
def frame_style(theme: str, letter: str, shade: Shade = Shade.PLAIN, role: Role = Role.TEXT) -> Style:
    """Return the style of a flame graph's frame whose category has this letter.

    `role` is TEXT or DIM for texts in the frame, BOLD for a name that matches the search, FAINT for the edge before the
    next frame. In the terminal's own colours, frames are reversed except for the selected one.
    """
    palette = PALETTES.get(theme, DARK)
    background = FRAMES.get(letter, FRAMES["·"])[palette.column]
    found = Style(bold=True, underline=True) if role is Role.BOLD else Style.null()
    bold = shade is Shade.CHOSEN or None
    if palette.ansi:
        faded = shade is Shade.FADED or None
        return found + Style(color=_rich(background), bold=bold, dim=faded, reverse=shade is Shade.PLAIN)
    text = palette["on_frame"]
    if shade is Shade.FADED:
        background, text = palette["panel"], palette["faint"]
    elif shade is Shade.CHOSEN:
        background, text = _mixed(background, palette["on_frame"], _BRIGHTER), palette["screen"]
    if role is Role.DIM and shade is not Shade.FADED:
        text = _mixed(text, background, _PALER)
    return found + Style(
        color=palette["screen"] if role is Role.FAINT else text, bgcolor=background, bold=bold
    )


def _mixed(colour: str, other: str, part: float) -> str:
    """Mix two colours `#rrggbb`; `part` is the share of the second."""
    pairs = ((int(colour[at : at + 2], 16), int(other[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(first + (second - first) * part):02x}" for first, second in pairs)


def _rich(colour: str) -> str:
    return colour.removeprefix("ansi_")
