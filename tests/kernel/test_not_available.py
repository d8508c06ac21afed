# SPDX-License-Identifier: Apache-2.0
"""A disabled hook on a real kernel: its fields are n/a, null or empty in every frontend, never 0."""

import socket

import pytest

from .command import JSON, Running
from .lab import until

pytestmark = pytest.mark.kernel

WITHOUT = ("--mechanism", "events=none")
WHY = "disabled by --mechanism"


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
