# SPDX-License-Identifier: Apache-2.0
"""The view in sight as a new file in the working directory: its rows as CSV or JSON Lines, the screen as SVG."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator, Sequence
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
    "csv": "CSV: the rows that pass the filter, in their order, numbers in base units",
    "jsonl": "JSON Lines: the same rows, an object each",
    "svg": "SVG: the screen as it is now",
}
"""What is written, by the suffix of the file. The first letter is the key that chooses it."""


def rows_text(suffix: str, view: View, names: Sequence[str]) -> str:
    """The rows that a view shows, in these columns; what a column shows side by side is a column each."""
    fields = [(name, declared(view.table, name)) for name in names]
    parts = [field.parts if field.kind is Kind.GROUP else (name,) for name, field in fields]
    columns = tuple(dict.fromkeys(name for each in parts for name in each))
    return (Separated if suffix == "csv" else JsonLines)(columns)(view)


def write_new(view_name: str, wall_ns: int, suffix: str, text: str) -> Path:
    """Write a new file, named after the view and its time, which only its owner may read; returns its path.

    Nothing is overwritten. Raises NettopError where it cannot be written.
    """
    second = re.sub("[-:]", "", rfc3339(wall_ns)[:19])
    try:
        folder = Path.cwd()
        for path in _names(folder / f"nettop-{view_name}-{second}Z", suffix):
            with suppress(FileExistsError):
                _write(path, text)
                return path
    except OSError as error:
        raise NettopError(
            f"the {suffix} file cannot be written to the working directory: {why_not(error)}",
            "start nettop in a directory of yours",
        ) from error
    raise AssertionError("there are infinitely many names")


def _names(path: Path, suffix: str) -> Iterator[Path]:
    yield Path(f"{path}.{suffix}")
    for number in count(2):
        yield Path(f"{path}-{number}.{suffix}")


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
    """A screenshot of Textual's without the number that differs from run to run, and without a font from the web."""
    svg = re.sub(r"terminal-\d+-", "nettop-", svg)
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' x="([\d.]+)"( y="[\d.]+") textLength="([\d.]+)"([^>]*)>([^<]+)<', _without_outer_spaces, svg
    )
    return re.sub(r"[ \t]+$", "", svg.replace("Fira Code", "DejaVu Sans Mono"), flags=re.MULTILINE)


def _without_outer_spaces(match: re.Match[str]) -> str:
    """A text moved to where its first visible character stands: some viewers drop the spaces before it."""
    x, length, text = float(match[1]), float(match[3]), html.unescape(match[5])
    cell = length / len(text)
    x += cell * (len(text) - len(text.lstrip()))
    shown = html.escape(text.strip(), quote=False).replace("\xa0", "&#160;")
    return f' x="{x:.1f}"{match[2]} textLength="{cell * len(text.strip()):.1f}"{match[4]}>{shown}<'
