# SPDX-License-Identifier: Apache-2.0
"""A disabled hook on a real kernel: its fields are n/a, null or empty in every frontend, never 0."""

import csv
import io
import json
import socket
from pathlib import Path

import pytest

from .command import JSON, Running, nettop
from .lab import until

pytestmark = pytest.mark.kernel

WITHOUT = ("--mechanism", "events=none")
WHY = "disabled by --mechanism"
USAGE = 2


def test_json_is_null_and_says_why() -> None:
    """No refresh shows 0 closed connections; each row has the reason as soon as it is known."""
    view = ("--view", "connections.groups", "--columns", "pid,closed,failed,closed_per_s")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        Running(*JSON, "--why", "--interval", "0.2", *view, *WITHOUT) as running,
    ):
        explained = until(
            lambda: [r for rows in running.refreshes() for r in rows if r["why"]], "the reason is known"
        )
        shown = [row for rows in running.refreshes() for row in rows]
    assert set(explained[0]["why"].values()) == {WHY}
    assert set(explained[0]["why"]) == {"closed", "failed", "closed_per_s"}
    assert {(row["closed"], row["failed"], row["closed_per_s"]) for row in shown} == {(None, None, None)}


def test_the_table_of_events_says_why_it_is_empty() -> None:
    """Every format has no rows; standard error has the reason and the option to remove."""
    for form in ("table", "csv", "jsonl"):
        view = ("--view", "connections.events", "--columns", "pid", "--once")
        done = nettop("-d", "--format", form, *view, *WITHOUT)
        assert done.returncode == USAGE
        assert (
            done.stderr
            == f"nettop: connections.events is not available: {WHY}\n  remove {' '.join(WITHOUT)}\n"
        )
        assert done.stdout == ""


def test_csv_is_empty() -> None:
    """CSV keeps an unavailable column, and leaves it empty."""
    columns = ("--columns", "pid,closed,failed_per_s")
    options = ("--view", "connections.groups", "--interval", "1", "--count", "2", "--format", "csv")
    done = nettop("-d", *options, *columns, *WITHOUT)
    assert done.returncode == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {(row["closed"], row["failed_per_s"]) for row in rows} <= {("", "")}


def test_the_log_has_a_line_in_place_of_events(tmp_path: Path) -> None:
    """A log without events says so among its lines; a log that has only events is refused."""
    line = {"type": "missing", "what": "events", "why": WHY}
    options = ("--log-dir", "none", "--format", "jsonl", "--why", *WITHOUT)
    with Running("log", *options) as running:
        until(lambda: running.text().count("\n"), "the log begins")
        first = json.loads(running.text().splitlines()[0])
        assert running.end() == 0
        assert "logged n/a events" in running.errors()
    assert {name: first[name] for name in line} == line
    done = nettop("log", "--events-only", *options, cwd=tmp_path)
    assert done.returncode == USAGE
    assert WHY in done.stderr


def test_nettop_run_needs_events() -> None:
    """`nettop run` does not start its command without events."""
    done = nettop("run", *WITHOUT, "--", "echo", "I ran")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert WHY in done.stderr


@pytest.mark.parametrize(
    "words", [("--table", "--once"), ("log", "--log-dir", "none"), ("run",)], ids=lambda w: w[0]
)
def test_an_unknown_mechanism(words: tuple[str, ...]) -> None:
    """The usage error for an unknown mechanism lists the known ones, in every frontend."""
    command = ("--", "true") if words[0] == "run" else ()
    done = nettop(*words, "--mechanism", "events=nosuch", *command)
    assert done.returncode == USAGE
    assert "unknown mechanism for events 'nosuch'" in done.stderr
    assert "none" in done.stderr
