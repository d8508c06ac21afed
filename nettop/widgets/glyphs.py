# SPDX-License-Identifier: Apache-2.0
"""Fallback glyphs for terminals that lack the usual ones, substituted in the last step of drawing."""

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
    "▲": "!", "▴": "^", "▾": "v", "↑": "^", "↓": "v", "→": ">", "←": "<", "–": "-", "−": "-", "─": "-", "·": ".",
    "…": "~", "❄": "*", "⟳": "@", "×": "x", "±": "~", "▸": ">", "◆": "*", "▐": "|", "│": "|", "÷": "/", "≥": ">",
    "▶": ">", "‖": "=", "■": "#", "━": "=", "●": "O",
    "▕": "|", "█": "#", "▓": "%", "▒": "=", "░": ":", "╱": "/", "╲": "\\", "›": ">",
    **dict(zip("▏▎▍▌▋▊▉", "'''####", strict=True)), **dict(zip("▁▂▃▄▅▆▇", "_.-=+*%", strict=True)),
    "µ": "u", "\N{LEFT SINGLE QUOTATION MARK}": "'", "’": "'", "“": '"', "”": '"',
}  # fmt: skip
_CONSOLE = {sign: _ASCII[sign] for sign in "–−…❄⟳▸◆×’“”▕▏▎▍╱╲›▶‖━●"} | dict(
    zip("▴▾▋▊▉▁▂▃▅▆▇", "▲▼▌▌█__▄▄██", strict=True)
)
"""Glyphs missing from the 256 of the Linux console's default font."""


_PLUS_MINUS_WITH_ROOM = re.compile("^  ([^±]*)±")
"""A `±` with two blanks at the left of the cell, enough room for `+/-`."""


class PlainSigns(LineFilter):
    """A filter that replaces glyphs without changing widths; with `ascii_only`, no other characters remain."""

    def __init__(self, signs: Mapping[str, str], *, ascii_only: bool) -> None:
        super().__init__()
        self._table = str.maketrans(dict(signs))
        self._ascii_only = ascii_only
        self._plain = lru_cache(4096)(self._translate)

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002 - Textual's
        """Return the segments with glyphs replaced, each as wide as before."""
        texts = [s.text if s.text.isascii() else self._plain(s.text) for s in segments]
        return [segment._replace(text=text) for segment, text in zip(segments, texts, strict=True)]

    def _translate(self, text: str) -> str:
        if ord("±") in self._table:
            text = _PLUS_MINUS_WITH_ROOM.sub(r"\1+/-", text)
        text = text.translate(self._table)
        if not self._ascii_only or text.isascii():
            return text
        return "".join(char if char.isascii() else "?" * cell_len(char) for char in text)


def needed_signs(environ: Mapping[str, str] = os.environ, encoding: str | None = None) -> PlainSigns | None:
    """Return the filter this terminal needs, or None if it can show every glyph."""
    encoding = locale.getencoding() if encoding is None else encoding
    if encoding.replace("-", "").lower() != "utf8":
        return PlainSigns(_ASCII, ascii_only=True)
    if environ.get("TERM", "").startswith("linux"):
        return PlainSigns(_CONSOLE, ascii_only=False)
    return None
