# SPDX-License-Identifier: Apache-2.0
"""A small terminal: what output leaves on the screen."""

from __future__ import annotations

import re

from rich.cells import cell_len

_TOKEN = re.compile(
    r"\x1b\[(?P<parameters>[?>=]?[\d;]*)\$?(?P<end>[@-~])|\x1b[^\[]|(?P<text>[^\x1b])", re.DOTALL
)
_INCOMPLETE = re.compile(r"\x1b(?:\[[^@-~]*)?\Z")
_COLOURS = {"38": "colour", "48": "background"}
Cell = tuple[str, frozenset[tuple[str, str]]]


class Emulator:
    """The cells of a terminal, each with its character, attributes and colours. A blank has no colour of its own."""

    def __init__(self, width: int, height: int) -> None:
        self.size = width, height
        self.cells: dict[tuple[int, int], Cell] = {}
        self._at = (0, 0)
        self._pen: dict[str, str] = {}
        self._rest = ""

    def feed(self, output: str) -> None:
        """Take in output, which may end within a sequence."""
        output = self._rest + output
        incomplete = _INCOMPLETE.search(output)
        self._rest = incomplete[0] if incomplete else ""
        output = output[: len(output) - len(self._rest)]
        for token in _TOKEN.finditer(output):
            parameters, end = token["parameters"], token["end"]
            numbers = [int(number or 0) for number in re.findall(r"\d*", parameters or "") if number]
            if token["text"]:
                self._put(token["text"])
            elif end == "H":
                y, x = numbers or (1, 1)
                self._at = x - 1, y - 1
            elif end == "C":
                self._at = self._at[0] + numbers[0], self._at[1]
            elif parameters == "?1049":
                self.cells.clear()  # to the other screen, and back
            elif end == "m":
                self._set_pen(parameters.split(";"))

    def text(self) -> str:
        """Return the characters, line by line."""
        width, height = self.size
        lines = ("".join(self.cells.get((x, y), (" ",))[0] for x in range(width)) for y in range(height))
        return "\n".join(lines)

    def _put(self, character: str) -> None:
        x, y = self._at
        if character in "\r\n" or x >= self.size[0]:
            return
        pen = (
            self._pen
            if character != " "
            else {k: v for k, v in self._pen.items() if k in ("background", "4", "7")}
        )
        width = cell_len(character)
        if width == 0:
            self.cells[x - 1, y] = self.cells[x - 1, y][0] + character, self.cells[x - 1, y][1]
        for at in range(x, x + width):
            self.cells[at, y] = character if at == x else "", frozenset(pen.items())
        self._at = x + width, y

    def _set_pen(self, codes: list[str]) -> None:
        codes = list(codes)
        while codes:
            code = codes.pop(0)
            if code in ("", "0"):
                self._pen = {}
            elif code in _COLOURS:
                count = 2 if codes[0] == "5" else 4
                self._pen[_COLOURS[code]] = ";".join(codes[:count])
                del codes[:count]
            elif code in ("39", "49"):
                self._pen.pop("colour" if code == "39" else "background", None)
            elif int(code) >= 30:
                self._pen["background" if code[:-1] in ("4", "10") else "colour"] = code
            else:
                self._pen[code] = code
