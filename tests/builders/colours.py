# SPDX-License-Identifier: Apache-2.0
"""The contrast of two colours."""

from __future__ import annotations

from textual.color import Color


def contrast(each: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    light, dark = sorted((_luminance(each), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [c / 255 for c in Color.parse(colour).rgb]
    red, green, blue = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
