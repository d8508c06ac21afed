# SPDX-License-Identifier: Apache-2.0
"""The parts of a snapshot: unknown values, and the table of texts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.snapshots.snapshot import TextTable, known, unknown_value
from tests.unit.build import example_rows, make_frame, make_rows


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8", "f4", "f8"])
def test_unknown_differs_from_every_value(dtype: str) -> None:
    """Zero and the second largest number are values; the largest, or NaN, is none."""
    largest = 1e30 if dtype[0] == "f" else np.iinfo(dtype).max - 1
    column = np.array([0, largest, unknown_value(np.dtype(dtype))], dtype)
    assert known(column).tolist() == [True, True, False]


@given(st.lists(st.text()))
def test_a_text_keeps_its_code(texts: list[str]) -> None:
    """Codes count from zero in order of first sight, and a text never gets a second one."""
    table = TextTable()
    codes = [table.code(text) for text in texts]
    assert [table.frozen()[code] for code in codes] == texts
    assert table.frozen() == tuple(dict.fromkeys(texts))
    assert [table.code(text) for text in texts] == codes


def test_rows_have_the_length_of_their_array() -> None:
    """`len(rows)` is the number of connections."""
    assert len(make_rows(example_rows(7))) == 7
    assert len(make_rows([])) == 0


def test_a_snapshot_is_its_own_and_cannot_be_changed() -> None:
    """Snapshots compare by identity and refuse to be assigned to, so that readers may share them."""
    frame = make_frame(example_rows(2))
    with pytest.raises(AttributeError):
        frame.now.lens = "other"  # type: ignore[misc]
    assert frame.now != make_frame(example_rows(2)).now
