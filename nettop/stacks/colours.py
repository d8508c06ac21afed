# SPDX-License-Identifier: Apache-2.0
"""Colours of categories on the screens, on the dashboard and in files."""

from __future__ import annotations

from collections.abc import Mapping

FRAMES: Mapping[str, tuple[str, str, str]] = {
    "P": ("#566b87", "#b7c4d3", "ansi_blue"),
    "X": ("#b83d62", "#e9b5c5", "ansi_bright_red"),
    "G": ("#766a1c", "#dfcc53", "ansi_bright_yellow"),
    "C": ("#277386", "#83cee0", "ansi_cyan"),
    "Q": ("#5f61b7", "#bfc0e5", "ansi_bright_blue"),
    "B": ("#8b604b", "#d8beb1", "ansi_bright_red"),
    "F": ("#8e50a9", "#d5b9e1", "ansi_magenta"),
    "K": ("#a44691", "#e2b5d9", "ansi_bright_magenta"),
    "I": ("#377647", "#94d1a3", "ansi_green"),
    "V": ("#755c8f", "#cbbade", "ansi_bright_green"),
    "L": ("#4f742f", "#a4d07e", "ansi_bright_green"),
    "R": ("#277662", "#6dd5bb", "ansi_bright_cyan"),
    "T": ("#a0561a", "#f1b787", "ansi_yellow"),
    "U": ("#8c6219", "#ebbb66", "ansi_bright_yellow"),
    "S": ("#b2492f", "#ecb6a8", "ansi_red"),
    "W": ("#b84141", "#e9b7b7", "ansi_bright_red"),
    "O": ("#636a79", "#bec3cb", "ansi_white"),
    "N": ("#1770a3", "#85cbf3", "ansi_bright_cyan"),
    "Y": ("#4d6a9c", "#b5c4dd", "ansi_bright_blue"),
    "·": ("#646b71", "#bfc3c7", "ansi_default"),
}
"""Frame backgrounds of flame graphs in the dark, the light and the terminal's own colours, by the category's letter;
the last one is for any other letter. The letter marks the frame where there are no colours."""
