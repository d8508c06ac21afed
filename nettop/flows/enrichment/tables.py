# SPDX-License-Identifier: Apache-2.0
"""Tables that users write as CSV: a header, rows, comments behind #, and errors that name file and line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from nettop.errors import UsageError
from nettop.reading import read_file

_MOST_BYTES = 512 << 20
"""More than any database of AS numbers and countries has."""


class CsvTable:
    """The rows of a CSV file, read one after the other, and the columns that its header names.

    A line that begins with # is a comment. The text is UTF-8, and what is not is replaced by U+FFFD. Raises UsageError
    where the file is no CSV, or a row has another number of cells than the header.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        lines = io.StringIO(content.decode("utf-8-sig", "replace"), newline="")
        # An empty line in place of a comment: the reader counts it, and passes over it.
        without_comments = ("\n" if line.lstrip().startswith("#") else line for line in lines)
        self._reader = csv.reader(without_comments, skipinitialspace=True, strict=True)
        header = next(self._rows(), [])
        self.columns: dict[str, int] = {}
        for at, name in enumerate(header):
            if self.columns.setdefault(name.lower(), at) != at:
                raise self.error(f"the header names the column {name} twice", "remove one of the two")

    def __iter__(self) -> Iterator[list[str]]:
        """The rows behind the header, each a list of cells without blanks around them."""
        for row in self._rows():
            if len(row) != len(self.columns):
                what = f"the row has {len(row)} cells, the header {len(self.columns)}"
                raise self.error(what, 'a cell that holds a comma is written in quotes, as "a, b"')
            yield row

    def column(self, *names: str) -> int | None:
        """Where a row has the first of these columns that there is."""
        return next((self.columns[name] for name in names if name in self.columns), None)

    def error(self, what: str, remedy: str) -> UsageError:
        """The error for the row that was read last."""
        return UsageError(f"{self._path}:{max(1, self._reader.line_num)}: {what}", remedy)

    def _rows(self) -> Iterator[list[str]]:
        try:
            for row in self._reader:
                if row:
                    yield [cell.strip() for cell in row]
        except csv.Error as error:
            raise self.error(f"this is not CSV: {error}", "a quote within quotes is written twice") from None


def read_lookup_file(path: Path) -> bytes:
    """Return the whole file. Raises UsageError."""
    try:
        return read_file(path, _MOST_BYTES)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}", "name a file that nettop may read"
        ) from error
