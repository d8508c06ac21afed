# SPDX-License-Identifier: Apache-2.0
"""Plainer signs for terminals that lack the usual ones, put in as the last step of drawing."""

from __future__ import annotations

import locale
import os
import re
from collections.abc import Mapping
from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_ASCII = {
    "▲": "^", "▼": "v", "↑": "^", "↓": "v", "→": ">", "←": "<", "–": "-", "−": "-", "─": "-", "·": ".",
    "…": "~", "❄": "*", "⟳": "@", "×": "x", "±": "~", "▸": ">", "◆": "*", "▐": "|", "│": "|", "÷": "/", "≥": ">",
    "▕": "|", "█": "#", "▓": "%", "▒": "=", "░": ":", "╱": "/", "╲": "\\", "›": ">",
    **dict(zip("▏▎▍▌▋▊▉", "'''####", strict=True)), **dict(zip("▁▂▃▄▅▆▇", "_.-=+*%", strict=True)),
    "µ": "u", "\N{LEFT SINGLE QUOTATION MARK}": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
_CONSOLE = {sign: _ASCII[sign] for sign in "–−…❄⟳▸◆×’“”▕▏▎▍╱╲›"} | dict(
    zip("▋▊▉▁▂▃▅▆▇", "▌▌█__▄▄██", strict=True)
)
"""What the 256 glyphs of the Linux console's default font lack."""


_WITH_ROOM = re.compile("^  ([^±]*)±")
"""A sign for which the cell has two more cells, at its left."""


class PlainSigns(LineFilter):
    """Replaces signs in the cells that there are, so that no column moves; `ascii_only` leaves nothing beyond ASCII."""

    def __init__(self, signs: Mapping[str, str], *, ascii_only: bool) -> None:
        super().__init__()
        self._table = str.maketrans(dict(signs))
        self._replaced = frozenset(signs)
        self._ascii_only = ascii_only
        self._plain = lru_cache(4096)(self._translate)

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's
        """The segments in plainer signs, each as wide as it was."""
        return [
            segment
            if segment.text.isascii()
            else Segment(self._plain(segment.text), segment.style, segment.control)
            for segment in segments
        ]

    def _translate(self, text: str) -> str:
        if "±" in self._replaced:
            text = _WITH_ROOM.sub(r"\1+/-", text)
        text = text.translate(self._table)
        if not self._ascii_only or text.isascii():
            return text
        return "".join(char if char.isascii() else "?" * cell_len(char) for char in text)


def needed_signs(environ: Mapping[str, str] = os.environ, encoding: str | None = None) -> PlainSigns | None:
    """The replacement that this terminal needs, or None when it can show every sign."""
    encoding = locale.getencoding() if encoding is None else encoding
    if encoding.replace("-", "").lower() != "utf8":
        return PlainSigns(_ASCII, ascii_only=True)
    if environ.get("TERM", "").startswith("linux"):
        return PlainSigns(_CONSOLE, ascii_only=False)
    return None
