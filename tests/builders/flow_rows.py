# SPDX-License-Identifier: Apache-2.0
"""Flows as rows, and the blocks that stores take."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from nettop.collector.columns import ADDED_COLUMNS, ADDRESS, BY_NAME, COLUMNS, Coded, default_values
from nettop.collector.store.native import Values, native_block
from nettop.collector.store.schema import SERVICE_PORTS, TABLES

MIDNIGHT_MS = int(time.time()) // 86_400 * 86_400_000
"""Start of today: flows around it fall into two minutes, two hours and two partitions."""
SIDES = ("unknown", "in", "out", "internal", "through")
WORDS = ("", "DE", "Zürich")
Row = dict[str, Any]


def random_flows(seed: int, count: int) -> dict[str, Values]:
    """Return flows with few distinct keys, received within seconds of midnight."""
    random = np.random.default_rng(seed)
    flows: dict[str, Values] = {column.name: default_values(column.name, count) for column in COLUMNS}
    flows["received"] = MIDNIGHT_MS + random.integers(-3000, 3000, count)
    for name in ("exporter", "src", "dst"):
        addresses = np.zeros((count, 16), np.uint8)
        addresses[:, 15] = random.integers(1, 4, count)
        flows[name] = addresses.view(ADDRESS).ravel()
    choices = {
        "in_if": [1, 2],
        "etype": [0x800, 0x86DD],
        "protocol": [1, 6, 17, 58],
        "dst_as": [3, 64_512],
        "sampling_rate": [0, 1, 1000],
        "src_port": [0, 22, 443, 1023, 1024, 8080, 33_000, 51_820, 60_000],
        "dst_port": [0, 53, 1024, 8443, 33_000, 40_000, 51_820],
    }
    for name, values in choices.items():
        flows[name] = random.choice(np.array(values, BY_NAME[name].dtype), count)
    # All different, so that the smallest kept pair is unique.
    flows["bytes"] = random.permutation(np.arange(1, count + 1, dtype="u8")) * np.uint64(1 << 20)
    flows["packets"] = random.integers(1, 1 << 20, count).astype("u8")
    for column in ADDED_COLUMNS:
        flows[column.name] = Coded(random.integers(0, len(WORDS), count).astype("u1"), WORDS)
    flows["side"] = random.integers(0, len(SIDES), count).astype("i1")
    return flows


def flow_block(flows: Mapping[str, Values]) -> bytes:
    return native_block(TABLES["flows_raw"].types, flows)


def rows_of(flows: Mapping[str, Values]) -> list[Row]:
    """Return the flows one by one, with the columns that rollup tables add."""
    columns = {name: readable(name, values) for name, values in flows.items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row in rows:
        rate = max(row["sampling_rate"], 1)
        row |= {
            "estimated_bytes": row["bytes"] * rate,
            "estimated_packets": row["packets"] * rate,
            "flows": 1,
        }
        row["service_port"] = next(
            (port for port in sorted((row["src_port"], row["dst_port"])) if is_service(port)), 0
        )
        if row["protocol"] in (1, 58):
            row["service_port"] = 0
    return rows


def readable(name: str, values: Values) -> list[Any]:
    if isinstance(values, Coded):
        return [values.words[code] for code in values.codes]
    assert isinstance(values, np.ndarray)
    if values.dtype == ADDRESS:
        return [value.tobytes().hex() for value in values]
    return [SIDES[code] for code in values] if name == "side" else [int(value) for value in values]


def is_service(port: int) -> bool:
    return 0 < port < 1024 or port in SERVICE_PORTS
