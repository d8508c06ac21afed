# SPDX-License-Identifier: Apache-2.0
"""The texts of cells: elided, padded, in terminal cells."""

from __future__ import annotations

import numpy as np
import pytest
from rich.cells import cell_len

from nettop.screens.connections.sockets import ConnectionsScreen, row_flags
from nettop.widgets.cells import Cell, column_cells, fit_endpoint
from nettop.widgets.columns import plan
from nettop.widgets.text import elide_middle, fit
from nettop.widgets.themes import Role
from tests.unit.build import make_frame, make_view


def cells_of(
    row: dict[str, object], before: dict[str, object] | None = None, width: int = 200
) -> dict[str, Cell]:
    """Return the cells of a table with this one row, by the columns' names."""
    frame = make_frame([row], None if before is None else [before])
    view = make_view(frame, deltas=True)
    at = np.array([0])
    row_style = ConnectionsScreen.row_style
    return {
        column.name: column_cells(view, column, at, row_flags(view, at), row_style)[0]
        for column in plan(view.table, view.table.screen, width)
    }


@pytest.mark.parametrize(
    ("endpoint", "width", "shown"),
    [
        ("10.0.3.7:443", 12, "10.0.3.7:443"),
        ("192.168.100.200:55010", 17, "192.1…0.200:55010"),
        ("[2001:db8:1::4f]:52114", 18, "[2001:…::4f]:52114"),
        ("0.0.0.0:*", 10, "*"),
        ("[::]:*", 10, "*"),
        ("0.0.0.0:443", 22, "0.0.0.0:443"),
        ("203.0.113.9:52114", 7, "…:52114"),
    ],
)
def test_endpoints_keep_their_port(endpoint: str, width: int, shown: str) -> None:
    """An address too long gives way in its middle, never its port."""
    assert fit_endpoint(endpoint, width) == shown


@pytest.mark.parametrize("text", ["nginx", "日本語プロセス", "␛[31mred", "x" * 40, ""])
def test_fit_is_exact(text: str) -> None:
    """Whatever the text, a cell has exactly its width."""
    for width in range(1, 24):
        assert {cell_len(fit(text, width, left=left)) for left in (True, False)} == {width}
        assert len(elide_middle("203.0.113.9", width)) <= width


SENDING = {"retransmits": 0, "data_packets_sent": 0}
QUIET = {"rtt_us": 21400, "rtt_var_us": 3100, "packets_sent": 7, "packets_received": 9}


@pytest.mark.parametrize(
    ("row", "before", "column", "text", "role"),
    [
        (
            {"process": "java", "pid": 2, "container": "docker:api-7f"},
            None,
            "owner",
            "java 2 @api-7f",
            Role.TEXT,
        ),
        ({"process": "nginx", "pid": 1, "container": "nginx.service"}, None, "owner", "nginx 1", Role.TEXT),
        ({"process": "[red]x[/red]", "pid": 1}, None, "owner", "[red]x[/red] 1", Role.TEXT),
        ({"process": None, "pid": None}, None, "owner", "(unattributed)", Role.NOBODY),
        ({"bytes_sent": 5}, None, "bytes_sent_per_s", "–", Role.FAINT),
        ({"bytes_sent": 5}, {"bytes_sent": 5}, "bytes_sent_per_s", "0 b/s", Role.FAINT),
        ({"retransmits": 31, "data_packets_sent": 1000}, SENDING, "retransmit_ratio", "▲ 3.1%", Role.BAD),
        ({"retransmits": 10, "data_packets_sent": 1000}, SENDING, "retransmit_ratio", "1.0%", Role.DIM),
        (QUIET, QUIET, "rtt", "21.4 ±3.1 ms", Role.FAINT),
        (QUIET | {"packets_received": 10}, QUIET, "rtt", "21.4 ±3.1 ms", Role.TEXT),
    ],
)
def test_cells(
    row: dict[str, object], before: dict[str, object] | None, column: str, text: str, role: Role
) -> None:
    """Names are shown as they are; unknown is no zero; values above a threshold warn, and stale ones are faint."""
    cell = cells_of(row, before)[column]
    assert (cell[0].strip(), cell[1]) == (text, role)


def test_owner_keeps_its_pid() -> None:
    """A long process name is cut, its PID is not."""
    owner = cells_of({"process": "systemd-resolved-worker", "pid": 12345}, width=80)["owner"]
    assert owner[0] == "systemd… 12345"


def test_missing_field_is_not_available() -> None:
    """A field that this kernel lacks shows n/a, and so does what is made of it."""
    frame = make_frame([{"rtt_us": None}], missing={"rtt_us": "no such member"})
    view = make_view(frame)
    (rtt,) = [c for c in plan(view.table, view.table.screen, 200) if c.name == "rtt"]
    ((text, role),) = column_cells(
        view, rtt, np.array([0]), row_flags(view, np.array([0])), ConnectionsScreen.row_style
    )
    assert (text.strip(), role) == ("n/a", Role.FAINT)
