# SPDX-License-Identifier: Apache-2.0
"""Filtering the flows to store: the usual filters, over the columns of flows."""

from __future__ import annotations

import numpy as np
import pytest

from nettop.collector.columns import ADDRESS, COLUMNS, Coded, default_values
from nettop.collector.enrichment.enrich import FlowSide
from nettop.collector.pipeline import Columns
from nettop.collector.wanted import FLOWS, flow_filter
from nettop.errors import UsageError
from nettop.query.address import MAPPED


def flows() -> Columns:
    """Return three flows: HTTPS in IPv4 outwards, DNS in IPv6 inwards, and an unknown one."""
    columns: Columns = {column.name: default_values(column.name, 3) for column in COLUMNS}
    addresses = (MAPPED + bytes((10, 1, 2, 3)), bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes(16))
    columns["src"] = np.frombuffer(b"".join(addresses), ADDRESS)
    for name, values in {
        "protocol": [6, 17, 0],
        "dst_port": [443, 53, 0],
        "bytes": [1500, 60, 0],
        "side": [FlowSide.OUT, FlowSide.IN, FlowSide.UNKNOWN],
    }.items():
        columns[name] = np.array(values)
    for name in ("src_country", "dst_country", "src_network", "dst_network", "in_if_name", "out_if_name"):
        columns[name] = Coded(np.array([0, 1, 0], np.uint32), ("", "DE"))
    return columns


@pytest.mark.parametrize(
    ("text", "is_wanted"),
    [
        ("protocol=tcp", [True, False, False]),
        ("dst_port=53", [False, True, False]),
        (":443", [True, False, False]),
        ("src=10.0.0.0/8", [True, False, False]),
        ("src=2001:db8::/32", [False, True, False]),
        ("side!=in", [True, False, True]),
        ("bytes>100", [True, False, False]),
        ("src_country=DE", [False, True, False]),
        ("protocol=udp bytes<100", [False, True, False]),
        ("protocol=tcp bytes<100", [False, False, False]),
    ],
)
def test_filters(text: str, is_wanted: list[bool]) -> None:
    """All comparisons must hold."""
    wanted = flow_filter([text])
    assert wanted is not None
    assert wanted(flows()).tolist() == is_wanted


def test_no_filter() -> None:
    """Everything is stored, without evaluating anything."""
    assert flow_filter([]) is None


@pytest.mark.parametrize("text", ["nonsense=1", "bytes>many"])
def test_invalid_filters(text: str) -> None:
    """The error comes before anything is received."""
    with pytest.raises(UsageError):
        flow_filter([text])


def test_every_column_is_one_of_flows() -> None:
    """Every comparable column exists."""
    columns = flows()
    assert {field.name for field in FLOWS.stored} - {FLOWS.key} <= set(columns)
