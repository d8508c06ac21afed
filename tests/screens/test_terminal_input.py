# SPDX-License-Identifier: Apache-2.0
"""Input from terminals: invalid UTF-8, incomplete sequences, other layouts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import events

from nettop.screens.terminal import InputParser, latin_key

NOT_UTF8 = {
    "Latin-1": b"\xe9",
    "8-bit Meta": b"\xf1",
    "a pair that is none": b"\xc3\x28"[:1],
    "a mark of UTF-16": b"\xff\xfe",
    "half a character": b"\xe2\x82",
}


def keys(*pieces: bytes) -> list[tuple[str, str | None]]:
    """Return the keys that these reads give, with their characters."""
    parser = InputParser()
    messages = [message for piece in pieces for message in parser.feed(piece)]
    return [(message.key, message.character) for message in messages if isinstance(message, events.Key)]


@pytest.mark.parametrize("sent", NOT_UTF8.values(), ids=NOT_UTF8.keys())
def test_invalid_utf8_is_ignored(sent: bytes) -> None:
    """Wherever it is cut, and the key after it counts; the bytes of a split character are joined."""
    for at in range(len(sent) + 1):
        assert keys(b"a", sent[:at], sent[at:], b"q") == [("a", "a"), ("q", "q")]
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
    """Cyrillic and Greek letters act as the Latin keys in the same places."""
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
