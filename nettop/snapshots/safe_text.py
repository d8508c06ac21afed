# SPDX-License-Identifier: Apache-2.0
"""Sanitising of untrusted text (process names, DNS names, datagrams) before it is shown."""

from __future__ import annotations

import unicodedata

_SYMBOLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}
_REPLACEMENT = "\ufffd"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, change the writing direction, or are invisible."""


def safe_text(text: str) -> str:
    """Replace every control, C1, bidi and zero-width character by a visible mark.

    C0 controls become their Unicode symbols (ESC is ␛), all other invisible characters U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def safe_bytes(raw: bytes) -> str:
    """Decode bytes from the kernel as UTF-8, with U+FFFD for invalid ones, and make the text safe."""
    return safe_text(raw.decode("utf-8", "replace"))


def _visible(char: str) -> str:
    symbol = _SYMBOLS.get(ord(char))
    if symbol is not None:
        return symbol
    return _REPLACEMENT if unicodedata.category(char) in _INVISIBLE else char
