# SPDX-License-Identifier: Apache-2.0
"""The findings in a reading, as rows."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from nettop.errors import NettopError
from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.snapshots import find_table
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.snapshot import Frame


def causes_of(view: View, at: int, found: Frame | None) -> list[str]:
    """Return what explains the row at `at` of a view: the sentences of the findings that it belongs to, or of their
    causes."""
    rows = listed(found, explained=True)
    sentences = {row["id"]: row["finding"] for row in rows}
    causes = []
    for row in (row for row in rows if row["filter"] and not row["unseen"]):
        with suppress(NettopError):  # of a recording by another version
            is_same = find_table(row["view"])[1].name == view.table.name
            if is_same and parse_filter(view.table, row["filter"]).mask(view)[at]:
                causes.append(sentences.get(row["cause"], row["finding"]))
    return list(dict.fromkeys(causes))


def listed(frame: Frame | None, *, explained: bool = False) -> list[dict[str, Any]]:
    """Return the findings of a reading, if there is one, by rank, with all fields; `explained` adds those that others
    explain. A row without a severity, which no rule makes, is left out."""
    if frame is None or FINDINGS.name not in frame.now.tables:
        return []
    view = View(Frame(frame.now), replace(screen_query(FINDINGS), all_rows=explained))
    names = [column.name for column in FINDINGS.fields]
    columns = (view.values(name, view.order) for name in names)
    rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    return [row for row in rows if row["severity"] is not None]
