# SPDX-License-Identifier: Apache-2.0
"""Terminal input: decode bytes robustly, and map kitty's keyboard protocol to the keys that other terminals send.

This module relies on private names of Textual, as `textual_internals` does.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator

from textual import events
from textual._xterm_parser import XTermParser
from textual.keys import Keys
from textual.message import Message

_OLD_MOUSE = b"\x1b[M"
"""Start of a mouse report in the oldest format. Three bytes follow, which may not be UTF-8 (beyond column 95)."""
_OLD_MOUSE_BYTES = 3
_CTRL_C = "\x03"
"""Ctrl-C is never part of a paste: terminals leave it out, because shells would end the paste there."""
_FIRST_PRINTABLE = 0x20

_KITTY = re.compile(
    r"\x1b\[(?P<code>\d{1,7})(?::(?P<shifted>\d*))?(?::(?P<base>\d{1,7}))?"
    r"(?:;(?P<modifiers>\d{0,3})(?::(?P<event>\d))?(?:;(?P<text>[\d:]*))?)?(?P<end>[u~ABCDEFHPQRS])",
    re.ASCII,
)
"""A key in kitty's protocol: https://sw.kovidgoyal.net/kitty/keyboard-protocol."""
_KITTY_LIKE = re.compile(r"\x1b\[[\d:;]+[u~ABCDEFHPQRS]", re.ASCII)
_RELEASED = "3"
_SHIFT, _ALT, _CTRL = 1, 2, 4
_LOCKS = 64 | 128
"""Caps lock and num lock: the text already reflects them."""
_FIRST_KEYPAD = 57399
_KEYPAD = {str(_FIRST_KEYPAD + at): str(ord(sign)) for at, sign in enumerate("0123456789./*-+\r=,")}
"""Keypad keys that other terminals send as the characters printed on them."""
_SAME_WITH_SHIFT = ("13", "27", "32", "127")
"""Enter, Escape, space and backspace: other terminals send them the same with and without shift."""

_LATIN = str.maketrans(
    "йцукенгшщзхъфывапролджэячсмитьбюієїςερτυθιοπασδφγηξκλζχψωβνμ",
    "qwertyuiop[]asdfghjkl;'zxcvbnm,.s']wertyuiopasdfghjklzxcvbnm",
)
"""Cyrillic and Greek letters mapped to the same keys of a Latin keyboard."""


def latin_key(key: str) -> str:
    """Return the name of a key on a Latin keyboard: Ctrl-С and `й` on a Cyrillic one are Ctrl-C and `q`."""
    modifiers, plus, letter = key.rpartition("+")
    latin = letter.lower().translate(_LATIN)
    return modifiers + plus + (latin.upper() if letter != letter.lower() else latin)


class InputDecoder:
    """A decoder of terminal input that drops invalid UTF-8 and the bytes of old mouse reports."""

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("ignore").decode
        self._last = b""
        self._report_left = 0

    def __call__(self, data: bytes) -> str:
        """Return the text of these bytes; keep an incomplete character for the next call."""
        return self._decode(bytes(map(self._without_report, data)))

    def _without_report(self, byte: int) -> int:
        """Return the byte, or 0 instead in an old mouse report, which the parser recognizes by its length."""
        if self._report_left and byte >= _FIRST_PRINTABLE:
            self._report_left -= 1
            return 0
        self._last = (self._last + bytes((byte,)))[-len(_OLD_MOUSE) :]
        self._report_left = _OLD_MOUSE_BYTES if self._last == _OLD_MOUSE else 0
        return byte


class InputParser:
    """A parser of terminal input that drops only the sequences Textual fails to read.

    Ctrl-C drops an incomplete sequence: a paste whose end never arrives would swallow it like every other key.
    """

    def __init__(self) -> None:
        self._decode = InputDecoder()
        self._keys = _KeyParser()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages completed by these bytes."""
        for character in self._decode(data):
            if character == _CTRL_C:
                self._keys = _KeyParser()
            yield from self._try(self._keys.feed(character))

    def tick(self) -> Iterator[Message]:
        """Yield the messages completed by a timeout, such as a lone Escape."""
        yield from self._try(self._keys.tick())

    def _try(self, messages: Iterable[Message]) -> Iterator[Message]:
        try:
            yield from list(messages)
        except (ValueError, ArithmeticError, IndexError, StopIteration):
            self._keys = _KeyParser()


class _KeyParser(XTermParser):
    """Textual's parser, with keys in kitty's protocol mapped to those that other terminals send."""

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        if _KITTY_LIKE.fullmatch(sequence) is None:
            return super()._sequence_to_key_events(sequence, alt)
        plain = _plain(sequence)
        return (
            [events.Key(Keys.Ignore, sequence)] if plain is None else super()._sequence_to_key_events(plain)
        )


def _plain(sequence: str) -> str | None:
    """Convert a key from kitty's protocol to the one other terminals send, as Textual reads it; None if no key."""
    match = _KITTY.fullmatch(sequence)
    if match is None or match["event"] == _RELEASED:
        return None
    modifiers = max(int(match["modifiers"] or 1) - 1, 0) & ~_LOCKS
    code, text = match["code"], match["text"] or ""
    if match["end"] == "u":
        code = _KEYPAD.get(code, code)
        if modifiers == _SHIFT and code in _SAME_WITH_SHIFT:
            modifiers = 0
        if not _is_character(code):
            return None
        if modifiers & (_CTRL | _ALT) and int(code) > 0x7F:
            code = match["base"] or str(ord(latin_key(chr(int(code)))))
        if not modifiers and not text and chr(int(code)).isprintable():
            text = code
    text = ":".join(filter(_is_character, text.split(":")))
    return f"\x1b[{code};{modifiers + 1 if modifiers else ''}{';' + text if text else ''}{match['end']}"


def _is_character(code: str) -> bool:
    """Return whether a code is a character's; surrogates are not."""
    return code.isdecimal() and (int(code) < 0xD800 or 0xE000 <= int(code) < 0x110000)
