# SPDX-License-Identifier: Apache-2.0
"""The colours, and the only place that names one. Colour strengthens what a glyph or a word already says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from functools import cache

from rich.style import Style


class Role(Enum):
    """What a piece of text is, for whoever chooses its colour."""

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


class Ground(Enum):
    """What a piece of text stands on."""

    SCREEN = "screen"
    PANEL = "panel"
    BAND = "band"


@dataclass(frozen=True, slots=True)
class Palette:
    """One theme. Names that begin with `ansi_` are the terminal's own colours."""

    name: str
    dark: bool
    screen: str
    panel: str
    band: str
    text: str
    dim: str
    faint: str
    head: str
    sent: str
    received: str
    warn: str
    bad: str
    on_name: str

    @property
    def ansi(self) -> bool:
        """True where the terminal's own colours are used."""
        return self.screen.startswith("ansi_")


DARK = Palette(
    name="nettop-dark", dark=True, screen="#10151c", panel="#19212b", band="#26384d", text="#d5dde6",
    dim="#97a4b3", faint="#7b8794", head="#9fb2c8", sent="#f2a65a", received="#4fb3d9", warn="#e8c547",
    bad="#f58582", on_name="#10151c",
)  # fmt: skip
LIGHT = Palette(
    name="nettop-light", dark=False, screen="#fbfaf7", panel="#eceae4", band="#cfe0ee", text="#1d2630",
    dim="#4f5b68", faint="#6b7682", head="#3c5068", sent="#984900", received="#005c86", warn="#6f5300",
    bad="#b3261e", on_name="#fbfaf7",
)  # fmt: skip
TERMINAL = Palette(
    name="nettop-terminal", dark=True, screen="ansi_default", panel="ansi_default", band="ansi_default",
    text="ansi_default", dim="ansi_default", faint="ansi_default", head="ansi_default", sent="ansi_yellow",
    received="ansi_cyan", warn="ansi_yellow", bad="ansi_red", on_name="ansi_default",
)  # fmt: skip
"""For 16 colours and for NO_COLOR: rank shows as bold, dim and reverse, which every terminal has."""

PALETTES: Mapping[str, Palette] = {p.name: p for p in (DARK, LIGHT, TERMINAL)}

_BOLD = frozenset(
    {Role.BOLD, Role.HEAD, Role.KEY, Role.BAD, Role.TAB, Role.NAME, Role.TOTAL_SENT, Role.TOTAL_RECEIVED}
)
_COLOURS: Mapping[Role, str] = {
    Role.BOLD: "text",
    Role.KEY: "received",
    Role.TOTAL_SENT: "sent",
    Role.TOTAL_RECEIVED: "received",
    Role.NOBODY: "warn",
    Role.TAB: "text",
    Role.NAME: "on_name",
}
_LIGHT_GROUNDS = frozenset({7, 9, 10, 11, 12, 13, 14, 15})
_FEW_COLOURS = ("linux", "ansi", "vt", "xterm-16color", "screen.linux", "cons")


def first_theme(environ: Mapping[str, str] = os.environ) -> str:
    """The theme that suits the terminal: its own colours where it has few or none are wanted.

    COLORFGBG ends in the number of the background colour, where a terminal sets it.
    """
    if "NO_COLOR" in environ or environ.get("TERM", "").startswith(_FEW_COLOURS):
        return TERMINAL.name
    ground = environ.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT.name if ground.isdigit() and int(ground) in _LIGHT_GROUNDS else DARK.name


@cache
def style(theme: str, role: Role, ground: Ground = Ground.SCREEN) -> Style:
    """The style of a role on a ground."""
    palette = PALETTES.get(theme, DARK)
    if role is Role.NAME:
        return Style(
            color=_rich(palette.on_name), bgcolor=_rich(palette.received), bold=True, reverse=palette.ansi
        )
    ground = Ground.BAND if role is Role.TAB else ground
    on = {Ground.SCREEN: palette.screen, Ground.PANEL: palette.panel, Ground.BAND: palette.band}[ground]
    pale = palette.ansi and role in (Role.DIM, Role.FAINT) and ground is not Ground.BAND
    return Style(
        color=_rich(getattr(palette, _COLOURS.get(role, role.value))),
        bgcolor=_rich(on),
        bold=role in _BOLD or None,
        italic=role is Role.NOBODY or None,
        dim=pale or None,
        reverse=(palette.ansi and ground is Ground.BAND) or None,
    )


def css_variables(palette: Palette) -> dict[str, str]:
    """The palette's colours as variables of the style sheets: `$nt-panel`, `$nt-dim` …"""
    return {
        f"nt-{f.name}": getattr(palette, f.name) for f in fields(palette) if f.name not in ("name", "dark")
    }


def _rich(colour: str) -> str:
    return colour.removeprefix("ansi_")
