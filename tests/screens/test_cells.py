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


@pytest.mark.parametrize("width", range(1, 24))
def test_fit_is_exact(width: int) -> None:
    """Whatever the text, a cell has exactly its width."""
    for text in ("nginx", "日本語プロセス", "␛[31mred", "x" * 40, ""):
        assert cell_len(fit(text, width, left=True)) == width
        assert cell_len(fit(text, width, left=False)) == width
        assert len(elide_middle("203.0.113.9", width)) <= width


def test_owner_keeps_its_pid() -> None:
    """A long process name is cut, its PID is not."""
    owner = cells_of({"process": "systemd-resolved-worker", "pid": 12345}, width=80)["owner"]
    assert owner == ("systemd… 12345", Role.TEXT)


def test_container_is_marked() -> None:
    """A container stands behind the process as @id; a systemd unit does not."""
    owner = cells_of({"process": "java", "pid": 2210, "container": "docker:api-7f"})["owner"]
    assert owner[0].strip() == "java 2210 @api-7f"
    owner = cells_of({"process": "nginx", "pid": 1, "container": "nginx.service"})["owner"]
    assert owner[0].strip() == "nginx 1"


def test_row_without_owner_says_so() -> None:
    """A socket that no process holds is (unattributed), in a style of its own."""
    text, role = cells_of({"process": None, "pid": None})["owner"]
    assert text.strip() == "(unattributed)"
    assert role is Role.NOBODY


def test_unknown_is_not_zero() -> None:
    """A rate without an earlier snapshot is a dash, a measured zero is a zero."""
    row = {"bytes_sent": 5}
    assert cells_of(row)["bytes_sent_per_s"][0].strip() == "–"
    assert cells_of(row, row)["bytes_sent_per_s"][0].strip() == "0 b/s"


def test_missing_field_is_not_available() -> None:
    """A field that this kernel lacks shows n/a, and so does what is made of it."""
    frame = make_frame([{"rtt_us": None}], missing={"rtt_us": "no such member"})
    view = make_view(frame)
    (rtt,) = [c for c in plan(view.table, view.table.screen, 200) if c.name == "rtt"]
    ((text, role),) = column_cells(
        view, rtt, np.array([0]), row_flags(view, np.array([0])), ConnectionsScreen.row_style
    )
    assert (text.strip(), role) == ("n/a", Role.FAINT)


def test_retransmits_warn_by_sign_and_colour() -> None:
    """Above the threshold a share has a sign and a colour, at it neither."""
    before = {"retransmits": 0, "data_packets_sent": 0}
    text, role = cells_of({"retransmits": 31, "data_packets_sent": 1000}, before)["retransmit_ratio"]
    assert (text.strip(), role) == ("▲ 3.1%", Role.BAD)
    text, role = cells_of({"retransmits": 10, "data_packets_sent": 1000}, before)["retransmit_ratio"]
    assert text.strip() == "1.0%"
    assert role is not Role.BAD


def test_idle_connection_has_a_dim_rtt() -> None:
    """An RTT is old when no packet went in the last interval."""
    row = {"rtt_us": 21400, "rtt_var_us": 3100, "packets_sent": 7, "packets_received": 9}
    assert cells_of(row, row)["rtt"] == ("21.4 ±3.1 ms".rjust(14), Role.FAINT)
    assert cells_of(row | {"packets_received": 10}, row)["rtt"][1] is Role.TEXT


def test_hostile_name_stays_text() -> None:
    """What looks like markup is shown as it is."""
    assert cells_of({"process": "[red]x[/red]", "pid": 1})["owner"][0].strip() == "[red]x[/red] 1"
