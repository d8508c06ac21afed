# SPDX-License-Identifier: Apache-2.0
"""The Python API: `nettop.open("connections")` reads a table of the kernel's state, frame by frame.

docs/use/api.md lists what stays compatible between releases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np

from nettop.engine.consumer import READING_WAIT_S, Consumer
from nettop.engine.session import Session
from nettop.engine.source import probe_of
from nettop.errors import SourceFailed, unknown_word
from nettop.kernel.host.facts import Host
from nettop.query.query import checked_columns, query_from_settings, text_query
from nettop.query.view import View
from nettop.settings import ViewSettings
from nettop.settings.shared import parse_lens_options
from nettop.snapshots import find_table
from nettop.snapshots.schema import Kind, Lens, OptionValues, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions

if TYPE_CHECKING:
    import pandas as pd

MaskedArray: TypeAlias = "np.ma.MaskedArray[Any, Any]"

_NUMBERS = frozenset(
    {Kind.KEY, Kind.LABEL, Kind.GAUGE, Kind.COUNTER, Kind.TIME, Kind.RATIO, Kind.SUM, Kind.QUANTILE}
)


class FrameRows(Sequence[Mapping[str, Any]]):
    """Rows of a frame, filtered and sorted. As a sequence, each row maps column names to values; None is unknown."""

    def __init__(self, view: View, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        """Names of the columns, in order."""
        self._view = view
        self._records: list[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self._view.order)

    def __getitem__(self, at: Any) -> Any:
        if self._records is None:
            values = [self._view.values(name, self._view.order) for name in self.columns]
            self._records = [dict(zip(self.columns, row, strict=True)) for row in zip(*values, strict=True)]
        return self._records[at]

    def to_numpy(self) -> dict[str, MaskedArray]:
        """Return one masked array of shape (rows,) per column, in base units; unknown values are masked.

        Times are datetime64[ns] in UTC. Texts, endpoints, groups and histograms are arrays of objects.
        """
        return {name: self._array(name) for name in self.columns}

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame, with NA for unknown values. Raise ImportError without pandas."""
        import pandas as pd

        return pd.DataFrame({name: _nullable(array) for name, array in self.to_numpy().items()})

    def _array(self, name: str) -> MaskedArray:
        view, field = self._view, self._view.table.by_name.get(name)
        if name in view.missing or (field is not None and field.kind not in _NUMBERS):
            values = view.values(name, view.order)
            # None first keeps each list one object.
            objects = np.array([None, *values], object)[1:]
            return np.ma.MaskedArray(objects, mask=[value is None for value in values])
        column = view.column(name)
        is_time = field is not None and field.kind is Kind.TIME
        numbers = column.numbers[view.order]
        return np.ma.MaskedArray(
            numbers.astype("datetime64[ns]") if is_time else numbers, mask=~column.known[view.order]
        )


def _nullable(array: MaskedArray) -> Any:
    """Convert to the nullable pandas array of the same type."""
    import pandas as pd

    data, unknown = array.data, np.ma.getmaskarray(array)
    if data.dtype.kind in "iu":
        return pd.arrays.IntegerArray(data, unknown)
    if data.dtype.kind == "f":
        return pd.arrays.FloatingArray(data, unknown)
    return array.filled(np.datetime64("NaT") if data.dtype.kind == "M" else None)


class TableFrame:
    """One reading of a table, compared with the previous frame."""

    def __init__(
        self,
        reading: Frame,
        table: Table,
        columns: Sequence[str],
        lost: Mapping[str, int],
        *,
        all_rows: bool,
    ) -> None:
        self.wall_ns = reading.now.wall_ns
        """Time of the reading, in nanoseconds since 1970."""
        self.lost = lost
        """Losses since the lens was opened, by name; they are missing from the rows."""
        self._reading = reading
        self._table = table
        self._columns = columns
        self._all_rows = all_rows

    @property
    def missing(self) -> Mapping[str, str]:
        """Columns without values on this host, each with the reason."""
        return View(self._reading, text_query(self._table)).missing

    def rows(
        self,
        columns: Sequence[str] | None = None,
        filter: str = "",  # noqa: A002 - the command line's name
        sort: str | None = None,
        limit: int | None = None,
        *,
        deltas: bool = False,
    ) -> FrameRows:
        """Return the rows that match `filter`, sorted as by --sort.

        `columns` are names of fields, and NAME_per_s for rates; by default those the lens was opened with. `deltas`
        makes counters per-interval. Raise UsageError for an unknown column, FilterError for an invalid filter.
        """
        chosen = ViewSettings(
            filters=(filter,), sort=sort, limit=limit, deltas=deltas, all_rows=self._all_rows
        )
        query = query_from_settings(text_query(self._table), chosen)
        view = View(self._reading, query, all_batches=True)
        return FrameRows(view, checked_columns(columns or self._columns, self._table))


class OpenLens:
    """An attached lens: a context manager, and an iterator that waits for each next frame.

    A program that takes longer than an interval gets the newest frame, compared with its previous one.
    """

    def __init__(
        self,
        view: str,
        *,
        interval: float = 1.0,
        columns: Sequence[str] | None = None,
        all_rows: bool = False,
        **options: float | str,
    ) -> None:
        """Prepare to read `view`, LENS or LENS.TABLE, every `interval` seconds. Nothing is attached yet.

        `columns` are the columns of the rows, by default every field. `all_rows` drops the table's default filter.
        `options` are the lens's own, as on the command line. Raise UsageError for anything that does not exist.
        """
        lens, self._table = find_table(view)
        self._columns = checked_columns(columns or self._table.by_name, self._table)
        self._all_rows = all_rows
        values = _parsed(options, lens, self._table, interval)
        self._host = Host()
        self._session = Session(interval, partial(probe_of, host=self._host))
        self._consumer = Consumer(
            self._session,
            lens.id,
            (self._table,),
            SourceOptions(all_rows=all_rows, values=values),
            columns=columns or (),
        )
        self._exits = ExitStack()
        self._last: Snapshot | None = None

    def __enter__(self) -> Self:
        self._host.require_own_pids()
        with ExitStack() as resources:
            resources.enter_context(self._session)
            resources.enter_context(self._consumer)
            self._exits = resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._exits.close()

    def __iter__(self) -> Iterator[TableFrame]:
        """Yield each frame when it is read. Raise the error of the lens if it fails or cannot be attached."""
        while True:
            while (reading := self._consumer.frame) is None or reading.now is self._last:
                self._consumer.raise_failure()
                self._consumer.wait()
            self._consumer.check_available(reading.now)
            yield self._frame(reading)

    def read(self) -> TableFrame:
        """Take a reading now and return its frame. Raise the error of the lens if it fails or cannot be attached."""
        missing = self._consumer.read_last(wait_s=READING_WAIT_S)
        self._consumer.raise_failure()
        reading = self._consumer.frame
        if missing or reading is None:
            raise SourceFailed(missing or f"no reading within {READING_WAIT_S:g} s", "try again")
        self._consumer.check_available(reading.now)
        return self._frame(reading)

    def _frame(self, reading: Frame) -> TableFrame:
        lost = dict(reading.now.notable_losses)
        batches = reading.batches
        if self._table.append:
            lost[self._table.name] = self._consumer.lost(self._table)
            batches = {self._table.name: tuple(self._consumer.rows(self._table))}
        before, self._last = self._last, reading.now
        compared = replace(reading, before=before, batches=batches)
        return TableFrame(compared, self._table, self._columns, lost, all_rows=self._all_rows)


open = OpenLens  # noqa: A001 - nettop.open


def _parsed(options: Mapping[str, float | str], lens: Lens, table: Table, interval_s: float) -> OptionValues:
    declared = {option.name: option for option in lens.options}
    for name in options:
        if name not in declared:
            raise unknown_word(f"option of {lens.id}", name, declared)
    texts = {name: declared[name].text(value) for name, value in options.items()}
    return parse_lens_options(texts, interval_s, [(lens, table)])
