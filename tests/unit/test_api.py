# SPDX-License-Identifier: Apache-2.0
"""nettop.open: frames of a scripted source as records, arrays and DataFrames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import nettop
from nettop.errors import FilterError, SourceFailed, UsageError
from nettop.snapshots.snapshot import Snapshot
from tests.unit.build import Row
from tests.unit.scripted import Scripted, steps

SOCKETS: list[list[Row]] = [
    [{"id": 1, "process": "nginx", "pid": 10, "bytes_received": 1000, "began": 1}],
    [
        {"id": 1, "process": "nginx", "pid": 10, "bytes_received": 5000, "began": 1},
        {"id": 2, "process": "curl", "bytes_received": 70, "began": 1},
    ],
]
COLUMNS = ("id", "process", "pid", "bytes_received", "bytes_received_per_s")


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    """Let lenses read two snapshots, a second apart."""
    source = Scripted(steps(*SOCKETS))
    monkeypatch.setattr("nettop.api.probe_of", lambda lens, host: source)
    yield source
    assert source.closed


def two_frames(**options: Any) -> list[Any]:
    """Return the first two frames."""
    with nettop.open("connections", interval=0.1, **options) as lens:
        frames = iter(lens)
        return [next(frames), next(frames)]


def test_records(source: Scripted) -> None:
    """Rows are mappings from columns to values, in the default order; unknown is None."""
    first, second = two_frames(columns=COLUMNS)
    assert [list(row.values()) for row in first.rows()] == [[1, "nginx", 10, 1000, None]]
    rows = second.rows(sort="-bytes_received")
    assert rows.columns == COLUMNS
    assert list(rows[0].values()) == [1, "nginx", 10, 5000, 4000.0]
    assert list(rows[-1].values())[:4] == [2, "curl", None, 70]
    assert len(second.rows(filter="nginx")) == len(second.rows(limit=1)) == 1
    assert [row["bytes_received"] for row in second.rows(filter="nginx", deltas=True)] == [4000]
    with pytest.raises(FilterError):
        second.rows(filter="pid>")
    assert all(hasattr(nettop, name) for name in nettop.__all__)


def test_numpy(source: Scripted) -> None:
    """Each column is a masked array in base units; unknown values are masked."""
    _, second = two_frames(columns=COLUMNS)
    arrays = second.rows(sort="id").to_numpy()
    assert arrays["bytes_received"].tolist() == [5000, 70]
    assert arrays["bytes_received"].dtype.kind == "u"
    assert arrays["pid"].tolist() == [10, None]
    assert arrays["process"].tolist() == ["nginx", "curl"]


def test_every_column(source: Scripted) -> None:
    """Without columns every field is included, and its array agrees with its records."""
    _, second = two_frames()
    rows = second.rows(sort="id")
    for name, array in rows.to_numpy().items():
        values = [row[name] for row in rows]
        assert array.shape == (2,)
        assert [value is None for value in values] == np.ma.getmaskarray(array).tolist()
        if array.dtype.kind != "M":
            assert array.tolist() == values


def test_pandas(source: Scripted) -> None:
    """A DataFrame keeps whole numbers whole; unknown values are missing."""
    pytest.importorskip("pandas")
    _, second = two_frames(columns=COLUMNS)
    frame = second.rows(sort="id").to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert frame["bytes_received"].tolist() == [5000, 70]
    assert frame["pid"].isna().tolist() == [False, True]
    assert frame["pid"][0] == 10


def test_read(source: Scripted) -> None:
    """`read` returns a frame that was read after the call."""
    with nettop.open("connections", interval=3600) as lens:
        assert len(lens.read().rows()) >= 1
        assert len(lens.read().rows()) == 2


@pytest.mark.parametrize(("all_rows", "ids"), [(True, [1, 2]), (False, [2])])
def test_all_rows(source: Scripted, all_rows: bool, ids: list[int]) -> None:
    """With all_rows the source reads every row, and the rows that the table hides by default are there."""
    source._steps[:] = steps(*([{"id": 1, "state": "LISTEN"}, {"id": 2}] for _ in range(2)))
    shown = two_frames(all_rows=all_rows)[1].rows(sort="id")
    assert source.options.all_rows == all_rows
    assert [row["id"] for row in shown] == ids


@pytest.mark.parametrize(
    ("view", "options", "what"),
    [
        ("connection", {}, "unknown view"),
        ("connections", {"columns": ("rx",)}, "unknown column"),
        ("connections", {"busy": 1}, "unknown option of connections"),
        ("connections", {"interval": 0}, "--interval"),
    ],
)
def test_usage_errors(view: str, options: dict[str, Any], what: str) -> None:
    """An unknown name is rejected before anything is attached."""
    with pytest.raises(UsageError, match=what):
        nettop.open(view, **options)


def test_a_lens_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the lens ends the iteration, and is a NettopError."""
    failing: list[Snapshot | Any] = [*steps(*SOCKETS[:1]), SourceFailed("gone", "look")]
    monkeypatch.setattr("nettop.api.probe_of", lambda lens, host: Scripted(failing))
    with nettop.open("connections", interval=0.1) as lens, pytest.raises(nettop.NettopError, match="gone"):
        for _ in lens:
            pass
