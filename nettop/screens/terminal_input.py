# SPDX-License-Identifier: Apache-2.0
"""What terminals send, whatever it is: bytes to text, and kitty's keyboard protocol to the keys that others send.

It relies on private names of Textual, as `textual_internals` does.
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
"""Begins a mouse report in the oldest form, of three more bytes, which need not be UTF-8 (beyond column 95)."""
_OLD_MOUSE_BYTES = 3
_CTRL_C = "\x03"
"""No part of a paste: terminals leave it out, as shells too end pastes there."""
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
"""Caps lock and num lock: what they change is in the text."""
_FIRST_KEYPAD = 57399
_KEYPAD = {str(_FIRST_KEYPAD + at): str(ord(sign)) for at, sign in enumerate("0123456789./*-+\r=,")}
"""Keys of the keypad that other terminals send as what is written on them."""
_ALIKE_WITH_SHIFT = ("13", "27", "32", "127")
"""Enter, Escape, space and backspace, which other terminals send alike with and without shift."""

_LATIN = str.maketrans(
    "йцукенгшщзхъфывапролджэячсмитьбюієїςερτυθιοπασδφγηξκλζχψωβνμ",
    "qwertyuiop[]asdfghjkl;'zxcvbnm,.s']wertyuiopasdfghjklzxcvbnm",
)
"""What Cyrillic and Greek letters' keys are on a Latin keyboard."""


def latin_key(key: str) -> str:
    """Return the name of a key as a Latin keyboard has it: Ctrl-С and `й` of a Cyrillic one are Ctrl-C and
    `q`."""
    modifiers, plus, letter = key.rpartition("+")
    latin = letter.lower().translate(_LATIN)
    return modifiers + plus + (latin.upper() if letter != letter.lower() else latin)


class InputDecoder:
    """Decodes what a terminal sends. Whatever is not UTF-8 is dropped, and so are the bytes of old mouse reports."""

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("ignore").decode
        self._last = b""
        self._report_left = 0

    def __call__(self, data: bytes) -> str:
        """Return the text of these bytes; what is incomplete is kept for the next call."""
        return self._decode(bytes(map(self._without_report, data)))

    def _without_report(self, byte: int) -> int:
        """Return the byte, or 0 in its place in an old mouse report, which the parser recognizes by its
        length."""
        if self._report_left and byte >= _FIRST_PRINTABLE:
            self._report_left -= 1
            return 0
        self._last = (self._last + bytes((byte,)))[-len(_OLD_MOUSE) :]
        self._report_left = _OLD_MOUSE_BYTES if self._last == _OLD_MOUSE else 0
        return byte


class InputParser:
    """Parses what a terminal sends. A sequence that Textual fails to read is dropped, and nothing else with it.

    Ctrl-C drops what is incomplete: a paste whose end never comes would take it, as it takes every other key.
    """

    def __init__(self) -> None:
        self._decode = InputDecoder()
        self._keys = _KeyParser()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Return the messages that these bytes complete."""
        for character in self._decode(data):
            if character == _CTRL_C:
                self._keys = _KeyParser()
            yield from self._try(self._keys.feed(character))

    def tick(self) -> Iterator[Message]:
        """Return the messages that are complete as nothing followed in time, such as a lone Escape."""
        yield from self._try(self._keys.tick())

    def _try(self, messages: Iterable[Message]) -> Iterator[Message]:
        try:
            yield from list(messages)
        except (ValueError, ArithmeticError, IndexError, StopIteration):
            self._keys = _KeyParser()


class _KeyParser(XTermParser):
    """Textual's parser, for which keys in kitty's protocol are those that other terminals send."""

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        if _KITTY_LIKE.fullmatch(sequence) is None:
            return super()._sequence_to_key_events(sequence, alt)
        plain = _plain(sequence)
        return (
            [events.Key(Keys.Ignore, sequence)] if plain is None else super()._sequence_to_key_events(plain)
        )


def _plain(sequence: str) -> str | None:
    """Return a key in kitty's protocol in the form that Textual reads, as other terminals mean it; None where
    it is none."""
    match = _KITTY.fullmatch(sequence)
    if match is None or match["event"] == _RELEASED:
        return None
    modifiers = max(int(match["modifiers"] or 1) - 1, 0) & ~_LOCKS
    code, text = match["code"], match["text"] or ""
    if match["end"] == "u":
        code = _KEYPAD.get(code, code)
        if modifiers == _SHIFT and code in _ALIKE_WITH_SHIFT:
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
    """Return whether a code is that of a character; surrogates are none."""
    return code.isdecimal() and (int(code) < 0xD800 or 0xE000 <= int(code) < 0x110000)
