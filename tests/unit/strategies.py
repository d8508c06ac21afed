# SPDX-License-Identifier: Apache-2.0
"""Random connections for property tests: few distinct values, so that they collide, including awkward ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nettop.snapshots.connections import STATES
from tests.unit.build import Row

PROCESSES = ["nginx", "NGINX", "sshd", "a b", "java 8", 'quo"te\\', "(sd-pam)"]
CONTAINERS = ["docker:ab12", "nginx.service", "podman:443"]
V4 = ["10.0.0.7", "10.0.3.7", "192.168.1.1", "0.0.0.0", "203.0.113.255"]
V6 = ["2001:db8::7", "::1", "::", "fe80::443"]
NUMBERS = [0, 1, 22, 443, 1812]
TIMES_US = [0, 9_999, 10_000, 10_001, 3_000_000]
BIG = [0, 1, 999_999, 1_000_000, 2**53, 2**53 + 1, 2**63, 2**64 - 3, 2**64 - 2]

FIELDS: dict[str, list[Any]] = {
    "process": [None, *PROCESSES],
    "container": [None, *CONTAINERS],
    "pid": [None, *NUMBERS],
    "uid": [None, *NUMBERS],
    "state": [None, *STATES.values()],
    "local_address": [*V4, *V6],
    "remote_address": [*V4, *V6],
    "local_port": [None, *NUMBERS],
    "remote_port": [None, *NUMBERS],
    "rtt_us": [None, *TIMES_US],
    "rtt_var_us": [None, *TIMES_US],
    "bytes_sent": [None, *BIG],
    "bytes_received": [None, *BIG],
    "retransmits": [None, 0, 1, 5],
    "data_packets_sent": [None, 0, 1, 100, 500],
    "opened_at": [None, 0, 1_795_000_000_000_000_000],
}


def row(ids: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Row]:
    """Return one connection; without `ids` it has no key and gets its place."""
    values: dict[str, Any] = {name: st.sampled_from(choices) for name, choices in FIELDS.items()}
    return st.fixed_dictionaries(values if ids is None else {"id": ids, **values})


rows = st.lists(row(), max_size=12)
"""Connections without keys: each gets its place, from 1."""

keyed_rows = st.lists(row(st.integers(1, 12)), max_size=10, unique_by=lambda each: each["id"])
"""Connections with keys, of which two lists share some; in any order."""
