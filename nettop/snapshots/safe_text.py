# SPDX-License-Identifier: Apache-2.0
"""Text that others chose (process names, DNS names, datagrams), made safe before anything shows it."""

from __future__ import annotations

import unicodedata

_SYMBOLS = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}
_REPLACEMENT = "\ufffd"
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories that move the cursor, turn the direction of writing, or show nothing."""


def safe_text(text: str) -> str:
    """The text with every control, C1, bidi and zero-width character turned into a visible mark.

    C0 controls become their Unicode symbols (ESC is ␛); everything else that is invisible becomes U+FFFD.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def safe_bytes(raw: bytes) -> str:
    """Bytes from the kernel as safe text: decoded as UTF-8, U+FFFD for what is invalid."""
    return safe_text(raw.decode("utf-8", "replace"))


def _visible(char: str) -> str:
    symbol = _SYMBOLS.get(ord(char))
    if symbol is not None:
        return symbol
    return _REPLACEMENT if unicodedata.category(char) in _INVISIBLE else char
