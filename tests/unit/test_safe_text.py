# SPDX-License-Identifier: Apache-2.0
"""Untrusted text, made safe."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.snapshots.safe_text import safe_bytes, safe_text

HOSTILE = st.text(
    st.one_of(
        st.characters(),
        st.characters(categories=["Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"]),
        st.sampled_from("\x00\x07\x1b\x7f\x85\x9b\u200b\u202e\u2066\ufeff\u2028\ud800"),
    )
)


@given(HOSTILE)
def test_nothing_moves_the_cursor_or_hides(text: str) -> None:
    """The result holds no control, format (bidi, zero-width), surrogate, private or separator character."""
    bad = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert not [char for char in safe_text(text) if unicodedata.category(char) in bad]


@given(HOSTILE)
def test_safe_text_is_idempotent_and_keeps_the_length(text: str) -> None:
    """Each bad character becomes one mark, and marks are unchanged."""
    safe = safe_text(text)
    assert safe_text(safe) == safe
    assert len(safe) == len(text)


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)))
def test_printable_ascii_is_left_alone(text: str) -> None:
    """The names that nearly all processes have cost nothing and change nothing."""
    assert safe_text(text) is text


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[2Jrm", "␛[2Jrm"),
        ("a\nb\tc", "a␊b␉c"),
        ("\x7f", "␡"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("\x9b31m", "\ufffd31m"),
        ("zero\u200bwidth", "zero\ufffdwidth"),
        ("größe 東京", "größe 東京"),
    ],
)
def test_known_attacks_become_visible_marks(text: str, safe: str) -> None:
    """Escape sequences, C1, bidi and zero-width characters are shown; letters of any script stay."""
    assert safe_text(text) == safe


@given(st.binary())
def test_any_bytes_become_safe_text(raw: bytes) -> None:
    """Invalid UTF-8 from the kernel neither raises an error nor hides text."""
    assert safe_text(safe_bytes(raw)) == safe_bytes(raw)
