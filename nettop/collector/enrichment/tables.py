# SPDX-License-Identifier: Apache-2.0
"""CSV files written by users: a header, rows, # comments, and errors with file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from nettop.errors import UsageError
from nettop.reading import read_file

_BYTES_MAX = 512 << 20
"""Maximum size of a file: larger than any database of AS numbers and countries."""


class CsvTable:
    """Rows of a CSV file, read one at a time, and the columns named in its header.

    Lines starting with # are comments. The text is UTF-8; invalid bytes become U+FFFD. Raise UsageError if the file is
    not CSV, or a row and the header differ in length.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        lines = io.StringIO(content.decode("utf-8-sig", "replace"), newline="")
        # Replace comments by empty lines: the reader counts but skips them.
        without_comments = ("\n" if line.lstrip().startswith("#") else line for line in lines)
        self._reader = csv.reader(without_comments, skipinitialspace=True, strict=True)
        header = next(self._rows(), [])
        self.columns: dict[str, int] = {}
        for at, name in enumerate(header):
            if self.columns.setdefault(name.lower(), at) != at:
                raise self.error(f"the header has the column {name} twice", "remove one of the two")

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the rows after the header, as lists of cells stripped of blanks."""
        for row in self._rows():
            if len(row) != len(self.columns):
                what = f"the row has {len(row)} cells, the header {len(self.columns)}"
                raise self.error(what, 'quote cells that contain a comma: "a, b"')
            yield row

    def column(self, *names: str) -> int | None:
        """Return the position of the first of these columns that exists."""
        return next((self.columns[name] for name in names if name in self.columns), None)

    def error(self, what: str, remedy: str) -> UsageError:
        """Return an error for the most recently read row."""
        return UsageError(f"{self._path}:{max(1, self._reader.line_num)}: {what}", remedy)

    def _rows(self) -> Iterator[list[str]]:
        try:
            for row in self._reader:
                if row:
                    yield [cell.strip() for cell in row]
        except csv.Error as error:
            raise self.error(f"invalid CSV: {error}", "double a quote within quotes") from None


def read_lookup_file(path: Path) -> bytes:
    """Return the whole file. Raise UsageError."""
    try:
        return read_file(path, _BYTES_MAX)
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "use a file that nettop may read"
        ) from error
