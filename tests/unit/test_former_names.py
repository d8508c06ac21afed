# SPDX-License-Identifier: Apache-2.0
"""Names of version 0.2: accepted where users and recordings may still have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nettop.preferences import load_preferences
from nettop.query.filter import parse_filter
from nettop.query.query import Sort, checked_columns, parse_sort
from nettop.recording.readings import ReadingReader, ReadingWriter
from nettop.settings.check import CheckSettings
from nettop.settings.declared import parsed
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Table
from nettop.snapshots.services import CONNECTIONS, LENS, SERVICES
from nettop.snapshots.snapshot import Rows, Snapshot

FORMER = {
    "answers": "responses",
    "failed_answers": "failed_responses",
    "answer_bytes": "response_bytes",
    "answer_size": "response_size",
    "queued_answers": "queued_responses",
}


@pytest.mark.parametrize(
    ("table", "former", "name"),
    [
        *((SERVICES, former, name) for former, name in list(FORMER.items())[:4]),
        (SERVICES, "failed_answers_per_s", "failed_responses_per_s"),
        (SERVICES, "ANSWERS/s", "responses_per_s"),
        (CONNECTIONS, "queued_answers", "queued_responses"),
        (SOCKETS, "answers", "responses"),
    ],
)
def test_columns(table: Table, former: str, name: str) -> None:
    """Accept a column's former name in filters, as the sort order, and among the columns."""
    assert parse_filter(table, f"{former}>5").names == (name,)
    if former.islower():
        assert parse_sort(table, f"-{former}") == Sort(name, descending=True)
        assert checked_columns([former, name], table) == (name,)


def test_recordings() -> None:
    """Read columns with former names and units; one that was not available is not either."""
    now = {name: former for former, name in FORMER.items()}
    fields = [
        replace(
            field,
            name=now.get(field.name, field.name),
            unit=field.unit.replace("responses", "answers"),
            parts=tuple(now.get(part, part) for part in field.parts),
        )
        for field in SERVICES.fields
    ]
    recorded = replace(SERVICES, fields=tuple(fields), screen=("answers",), text=("answers",), rules=())
    array = np.zeros(1, recorded.dtype)
    array["answers"], array["answer_bytes"] = 7, 900
    texts = {name: [""] for name in ("process", "cgroup", "container", "namespace")}
    hook = HookStatus("udp_requests", None, fields=("failed_answers", "missing_names"))
    snapshot = Snapshot(LENS.id, 1, 1, {SERVICES.name: Rows(recorded, array, texts, 1)}, hooks=(hook,))
    reader = ReadingReader(LENS)
    reader.read(ReadingWriter().write(snapshot))
    read = reader.snapshot()
    assert reader.unread == set()
    assert read.tables[SERVICES.name].array[["responses", "response_bytes"]].tolist() == [(7, 900)]
    assert read.hooks[0].fields == ("failed_responses", "missing_names")


def test_preferences(tmp_path: Path) -> None:
    """Read the former names of columns and of kinds of findings."""
    path = tmp_path / "preferences.toml"
    path.write_text(
        '[columns]\nservices = ["process", "answers_per_s"]\n[findings]\n"slow answers" = false\n'
    )
    loaded = load_preferences(path)
    assert loaded.problems == ()
    assert loaded.preferences.columns == {"services": ("process", "responses_per_s")}
    assert list(loaded.preferences.findings) == ["slow responses"]


def test_ignored_kinds() -> None:
    """Take the former name of a kind of finding for the current one."""
    assert parsed(CheckSettings, {"ignored": ["slow answers"]}).ignored == ("slow responses",)
