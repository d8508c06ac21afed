# SPDX-License-Identifier: Apache-2.0
"""Input from terminals: invalid UTF-8, old mouse reports, kitty's keyboard protocol, other layouts."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events

from nettop.screens.terminal_input import InputParser, latin_key

NOT_UTF8 = {
    "Latin-1": b"\xe9",
    "8-bit Meta": b"\xf1",
    "a pair that is none": b"\xc3\x28"[:1],
    "a mark of UTF-16": b"\xff\xfe",
    "half a character": b"\xe2\x82",
    "an old mouse report beyond column 95": b"\x1b[M \xe8!",
    "an old mouse report beyond column and row 95": b"\x1b[M \xe2\x82",
    "an old mouse report that looks like UTF-8": b"\x1b[M \xc3\xa9",
}


def keys(*pieces: bytes) -> list[tuple[str, str | None]]:
    """Return the keys that these reads give, with their characters."""
    parser = InputParser()
    messages = [message for piece in pieces for message in parser.feed(piece)]
    return [(message.key, message.character) for message in messages if isinstance(message, events.Key)]


@pytest.mark.parametrize("sent", NOT_UTF8.values(), ids=NOT_UTF8.keys())
def test_what_is_not_utf8_is_ignored(sent: bytes) -> None:
    """Wherever it is cut, and the key after it counts."""
    for at in range(len(sent) + 1):
        assert keys(b"a", sent[:at], sent[at:], b"q") == [("a", "a"), ("q", "q")]


def test_a_character_may_be_cut() -> None:
    """The bytes of a split character are joined."""
    assert keys(b"\xc3", b"\xa9") == [("é", "é")]


@pytest.mark.parametrize(
    "begun", [b"\x1b[200~pas", b"\x1b[200~", b"\x1b[", b"\x1b]52;c;", b"\x1bP", b"\x1b[M", b"\xe2"]
)
def test_ctrl_c_is_no_part_of_what_is_not_complete(begun: bytes) -> None:
    """Ctrl-C ends the program even during an unfinished paste, whatever else has arrived."""
    assert keys(begun, b"q\x1b[A" if b"200~" in begun else b"", b"\x03", b"q") == [
        ("ctrl+c", "\x03"),
        ("q", "q"),
    ]


KITTY = {
    "\x1b[57413;129;43u": "plus",
    "\x1b[57413;;43u": "plus",
    "\x1b[57413u": "plus",
    "\x1b[57412;129;45u": "minus",
    "\x1b[57410;129;47u": "slash",
    "\x1b[57404;129;53u": "5",
    "\x1b[57414;129u": "enter",
    "\x1b[57420;129u": "down",
    "\x1b[61;2;43u": "plus",
    "\x1b[1;129B": "down",
    "\x1b[B": "down",
    "\x1b[32;2;32u": "space",
    "\x1b[13;2u": "enter",
    "\x1b[27;129u": "escape",
    "\x1b[9;2u": "shift+tab",
    "\x1b[113;65;81u": "Q",
    "\x1b[113;129;113u": "q",
    "\x1b[34;2;51u": "3",
    "\x1b[99;5u": "ctrl+c",
    "\x1b[1089;5u": "ctrl+c",
    "\x1b[968;5u": "ctrl+c",
    "\x1b[1489::99;5u": "ctrl+c",
    "\x1b[1087::103;133u": "ctrl+g",
    "\x1b[113:81;2;81u": "Q",
    "\x1b[113;1:2;113u": "q",
}
"""Keys under kitty's protocol, and what they are elsewhere."""


@pytest.mark.parametrize("sent", KITTY)
def test_kitty_keys_are_those_of_other_terminals(sent: str) -> None:
    """The keypad, locks, shift, layouts and keys that repeat; what is bound to the key works."""
    assert [key for key, _ in keys(sent.encode())] == [KITTY[sent]]


@pytest.mark.parametrize("sent", ["\x1b[113;1:3u", "\x1b[99999999u", "\x1b[55296u", "\x1b[;u"])
def test_what_is_no_key_in_kittys_form_is_ignored(sent: str) -> None:
    """Key releases and codes without a character are ignored."""
    assert keys(sent.encode(), b"q") == [("q", "q")]


def test_text_is_typed_as_the_layout_has_it() -> None:
    """A Cyrillic letter stays one in the filter box."""
    assert keys("й".encode()) == keys(b"\x1b[1081::113;;1081u") == [("й", "й")]
    assert keys(b"\x1b[57413;;43u") == [("plus", "+")]


@pytest.mark.parametrize(
    ("key", "latin"),
    [
        ("й", "q"),
        ("Й", "Q"),
        ("ы", "s"),
        ("ς", "w"),
        ("Σ", "S"),
        ("ctrl+с", "ctrl+c"),
        ("q", "q"),
        ("down", "down"),
    ],
)
def test_letters_are_the_keys_of_their_places(key: str, latin: str) -> None:
    """With a Cyrillic or a Greek layout the key of `q` still quits."""
    assert latin_key(key) == latin


PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from(
        [b"\x1b[", b"\x1b[<", b"\x1b[M", b"\x1b[200~", b"\x1b[201~", b"\x1bO", b"\x1b[?", b"\x1b[48;"]
    ),
    st.text("0123456789:;uMmRt~$yA", max_size=12).map(str.encode),
    st.sampled_from([b"\x1b[48;0;0;0;0t", b"\x1b[<0;1;1M", b"\x1b[<64;9999999999;1M", b"\x1b[1;1R"]),
)


@given(st.lists(PIECES, max_size=20))
def test_nothing_that_is_sent_is_an_error(pieces: list[bytes]) -> None:
    """No sequence of bytes raises, wherever reads cut it, and every character that comes out can be written."""
    parser = InputParser()
    for piece in pieces:
        for message in (*parser.feed(piece), *parser.tick()):
            if isinstance(message, events.Key) and message.character:
                message.character.encode()


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes(seed: int) -> None:
    """2,000 of them, cut anywhere."""
    chance = random.Random(seed)
    sent, parser = chance.randbytes(2000), InputParser()
    while sent:
        cut = chance.randint(1, 40)
        list(parser.feed(sent[:cut]))
        list(parser.tick())
        sent = sent[cut:]
