# SPDX-License-Identifier: Apache-2.0
"""The rank of hosts whose flows are spread over many small pairs, and what sums of pairs cannot tell."""

from __future__ import annotations

import time
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np
import pytest

from nettop.collector.columns import ADDRESS
from nettop.collector.top import TopQuery, read_top
from nettop.output.flow_queries import remarks

pytest.importorskip("chdb")

from nettop.collector.store.embedded import EmbeddedStore
from tests.builders.flow_rows import flow_block, random_flows

from .test_flow_store import directory, store

__all__ = ["directory", "store"]

HOUR = 3600

SERVER, SCANNER = 0xC0000250, 0xCB007142
CLIENTS, TARGETS = 3000, 9000
SMALL_PAIRS = {"bytes": SERVER, "packets": SERVER, "flows": SCANNER}
"""The largest source in each order: all of its pairs are smaller than thousands of others."""


def small_pairs() -> dict[str, Any]:
    """Return flows of a past minute: 2,500 larger pairs, a server with 3,000 clients, and a scanner."""
    counts = {"others": 2500, "server": CLIENTS, "scanner": TARGETS}
    flows: dict[str, Any] = random_flows(3, sum(counts.values()))
    of = np.repeat(np.arange(3), list(counts.values()))
    at = np.arange(len(of))
    flows["received"] = np.full(len(of), (int(time.time()) - HOUR // 2) * 1000, "i8")
    flows["sampling_rate"] = np.ones(len(of), "u4")
    for name, values in (
        ("src", np.choose(of, [0x0A000000 + at, SERVER, SCANNER])),
        ("dst", np.choose(of, [0xC6336400 + at % 200, 0x0A960000 + at, 0x0AC80000 + at])),
    ):
        addresses = np.zeros((len(of), 16), np.uint8)
        addresses[:, 10:12], addresses[:, 12:] = 255, values.astype(">u4").view("u1").reshape(-1, 4)
        flows[name] = addresses.view(ADDRESS).ravel()
    flows["bytes"] = np.choose(of, [300_000, 280_000, 40]).astype("u8") + (at % 7).astype("u8")
    flows["packets"] = np.choose(of, [200, 190, 1]).astype("u8")
    return flows


def true_sums(flows: dict[str, Any], keys: tuple[str, ...], order: str) -> dict[tuple[str, ...], int]:
    """Return what each host or pair has in an order."""
    texts = [[str(IPv6Address(value.tobytes()).ipv4_mapped) for value in flows[key]] for key in keys]
    sums: dict[tuple[str, ...], int] = {}
    amounts = [1] * len(flows["src"]) if order == "flows" else flows[order].tolist()
    for key, amount in zip(zip(*texts, strict=True), amounts, strict=True):
        sums[key] = sums.get(key, 0) + amount
    return sums


@pytest.mark.parametrize("has_expired", [False, True], ids=["flows", "sums"])
def test_hosts_with_many_small_pairs_rank_where_they_belong(
    store: EmbeddedStore, *, has_expired: bool
) -> None:
    """As long as single flows are kept, everything is exact; later, no host or pair lacks more than is stated."""
    flows = small_pairs()
    store.insert({"flows_raw": flow_block(flows)}, "t")
    if has_expired:
        store._execute("TRUNCATE TABLE nettop.flows_raw")
    for keys in (("src",), ("dst",), ("src", "dst")):
        for order in ("bytes", "packets", "flows"):
            query = TopQuery(keys, 2 * HOUR, order, 20_000)
            top, expected = read_top(store, query), true_sums(flows, keys, order)
            assert top.totals[query.measure] == sum(expected.values())
            found = {tuple(row[key] for key in keys): row[query.measure] for row in top.rows}
            assert found.keys() <= expected.keys()
            lacking = max(amount - found.get(key, 0) for key, amount in expected.items())
            assert 0 <= lacking <= top.unnamed
            assert bool(lacking) == has_expired
            stated = " ".join(remarks(top, query))
            assert ("small within their minute" in stated) == has_expired
            if keys == ("src",):
                assert top.rows[0]["src"] == str(IPv4Address(SMALL_PAIRS[order]))


def test_flows_that_do_not_reach_back_are_not_taken_for_all(store: EmbeddedStore) -> None:
    """Sums that are kept for longer are read instead, and what no table has is said."""
    old, new = small_pairs(), small_pairs()
    old["received"] -= 3 * HOUR * 1000
    store.insert({"flows_raw": flow_block(old)}, "old")
    store._execute("TRUNCATE TABLE nettop.flows_raw")
    store.insert({"flows_raw": flow_block(new)}, "new")
    query = TopQuery(("src",), 5 * HOUR, "flows")
    top = read_top(store, query)
    assert (top.table, top.totals["flows"]) == ("talkers_1m", 2 * len(old["src"]))
    (_, covered) = remarks(top, query)
    assert covered.startswith("the rows reach back 3:3")
    recent = TopQuery(("src",), 2 * HOUR)
    top = read_top(store, recent)
    assert (top.table, list(remarks(top, recent))) == ("flows_raw", [])
    assert top.seconds > recent.since_s - 5
