# SPDX-License-Identifier: Apache-2.0
"""Export of the visible view to a new file in the working directory: rows as CSV or JSON Lines, the screen as SVG."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

from nettop.errors import NettopError
from nettop.formats.jsonl import JsonLines
from nettop.formats.separated import Separated
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.snapshots.schema import Kind
from nettop.widgets.columns import declared
from nettop.writing import open_to_write, why_not, write_all

FORMATS = {
    "csv": "CSV: the rows that pass the filter, in the same order, numbers in base units",
    "jsonl": "JSON Lines: the same rows, one object each",
    "svg": "SVG: the current screen",
}
"""Export formats by file suffix. The first letter of the suffix is its key."""


def rows_text(suffix: str, view: View, names: Sequence[str]) -> str:
    """Return the rows of a view in these columns; the parts of a group become separate columns."""
    fields = [(name, declared(view.table, name)) for name in names]
    parts = [field.parts if field.kind is Kind.GROUP else (name,) for name, field in fields]
    columns = tuple(dict.fromkeys(name for part in parts for name in part))
    return (Separated if suffix == "csv" else JsonLines)(columns)(view)


def write_new(view_name: str, wall_ns: int, suffix: str, text: str) -> Path:
    """Write a new file named after the view and its time, readable only by its owner, and return its path.

    Never overwrite a file. Raise NettopError if the file cannot be written.
    """
    second = re.sub("[-:]", "", rfc3339(wall_ns)[:19])
    try:
        stem = Path.cwd() / f"nettop-{view_name}-{second}Z"
        for number in count(1):
            path = Path(f"{stem}{f'-{number}' if number > 1 else ''}.{suffix}")
            with suppress(FileExistsError):
                _write(path, text)
                return path
    except OSError as error:
        raise NettopError(
            f"the {suffix} file cannot be written to the working directory: {why_not(error)}",
            "start nettop in a directory you can write to",
        ) from error
    raise AssertionError("there are infinitely many names")


def _write(path: Path, text: str) -> None:
    descriptor = open_to_write(path, os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            write_all(descriptor, text.encode("utf-8", "replace"))
        finally:
            os.close(descriptor)
    except OSError:
        path.unlink()
        raise


# --- SVG --------------------------------------------------------------------------------------------------------


def tidy_svg(svg: str) -> str:
    """Return Textual's screenshot without the id that differs in every run, and without the web font."""
    svg = re.sub(r"terminal-\d+-", "nettop-", svg)
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' x="([\d.]+)"( y="[\d.]+") textLength="([\d.]+)"([^>]*)>([^<]+)<', _without_outer_spaces, svg
    )
    return re.sub(r"[ \t]+$", "", svg.replace("Fira Code", "DejaVu Sans Mono"), flags=re.MULTILINE)


def _without_outer_spaces(match: re.Match[str]) -> str:
    """Return a text without outer spaces, moved to its first visible character: some viewers drop leading spaces."""
    x, length, text = float(match[1]), float(match[3]), html.unescape(match[5])
    cell = length / len(text)
    x += cell * (len(text) - len(text.lstrip()))
    shown = html.escape(text.strip(), quote=False).replace("\xa0", "&#160;")
    return f' x="{x:.1f}"{match[2]} textLength="{cell * len(text.strip()):.1f}"{match[4]}>{shown}<'
