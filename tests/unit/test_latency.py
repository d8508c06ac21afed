# SPDX-License-Identifier: Apache-2.0
"""Rows of the latency lens, from the programs' counts."""

from typing import Any

import numpy as np
import pytest

from nettop.kernel.bpf.set_table import group_by_key
from nettop.probes.latency import rows as latency_rows
from nettop.probes.latency.programs import CLASSES, COUNTED_STAGES, PAIR, PAIR_KEY, TERMS
from nettop.snapshots import latency as spec
from nettop.snapshots.arrays import Array
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.snapshot import known, known_histograms
from tests.builders.arrays import zero_rows
from tests.unit.build import make_rows

UDP_V6 = 3
EVERYTHING = frozenset(spec.STAGES)


def counted(measured: frozenset[int] = EVERYTHING) -> tuple[Array, frozenset[int], int]:
    """Return class rows that differ in every stage and class, the measured stages and the time."""
    rows = latency_rows.no_class_rows()
    counts = rows[:COUNTED_STAGES]
    numbers = np.arange(COUNTED_STAGES * CLASSES, dtype=np.uint64).reshape(COUNTED_STAGES, CLASSES)
    counts["latency"][..., 7] = numbers
    counts["latency"][..., 90] = 2 * numbers
    counts["matched"] = 3 * numbers
    counts["dropped"], counts["unmatched"] = 5 * numbers, 7 * numbers
    counts["seen"], counts["waiting"] = 16 * numbers, numbers
    return rows, measured, 1


def test_stages_are_sums_of_their_protocols() -> None:
    """A stage's columns are sums of its protocols', as far as they are known."""
    stages, protocols = (
        latency_rows.stage_rows(*counted()).array,
        latency_rows.protocol_rows(*counted()).array,
    )
    for row in stages[: spec.RTT]:
        of_stage = protocols[protocols["stage"] == row["stage"]]
        for name in (*TERMS, "waiting", "latency"):
            if known(row[name].reshape(-1)).all():
                assert (of_stage[name].sum(axis=0) == row[name]).all()
    assert set(zip(protocols["protocol"], protocols["family"], strict=True)) == {
        (protocol, family) for protocol in spec.PROTOCOLS for family in spec.FAMILIES
    }


def test_what_is_not_measured_is_unknown() -> None:
    """Stages that compare packets with their timestamps see no drops. An unmeasured stage has a row without numbers."""
    stages = latency_rows.stage_rows(*counted()).array
    assert not known(stages["dropped"])[spec.WIRE_IP]
    assert not known(stages["waiting"])[spec.WIRE_IP]
    assert known(stages["unmatched"])[spec.WIRE_IP]
    assert not known(stages["unmatched"])[spec.RTT]
    assert known(stages["dropped"])[[spec.BACKLOG, spec.IP, spec.QDISC, spec.HANDSHAKE]].all()
    here = counted(EVERYTHING - {spec.IP})
    stages = latency_rows.stage_rows(*here).array
    for name in (*TERMS, "waiting"):
        assert not known(stages[name])[spec.IP]
    assert known_histograms(stages["latency"]).tolist() == [stage != spec.IP for stage in spec.STAGES]
    protocols = latency_rows.protocol_rows(*here)
    for rows in (protocols, latency_rows.bucket_rows(protocols)):
        assert spec.IP not in rows.array["stage"]


def test_buckets_are_those_of_the_histograms() -> None:
    """Each non-empty bucket has a row with its edges, the last one without an end; rows are sorted by key."""
    rows, protocols = (
        latency_rows.bucket_rows(latency_rows.protocol_rows(*counted())).array,
        latency_rows.protocol_rows(*counted()).array,
    )
    assert rows["packets"].sum() == protocols["latency"].sum()
    assert set(rows["at_least"].tolist()) == {spec.BUCKETS.edges[7], spec.BUCKETS.edges[90]}
    assert set(rows["below"].tolist()) == {spec.BUCKETS.edges[8], spec.BUCKETS.edges[91]}
    for ids in (rows["id"], protocols["id"]):
        assert (ids[1:] > ids[:-1]).all()
    here = counted()
    here[0]["latency"][..., -1] = 1
    rows = latency_rows.bucket_rows(latency_rows.protocol_rows(*here)).array
    assert not known(rows["below"][rows["at_least"] == spec.BUCKETS.edges[-1]]).any()


def test_the_stage_of_a_row() -> None:
    """A row's key gives the stage of stages and protocols; other rows have none."""
    for rows in (latency_rows.stage_rows(*counted()).array, latency_rows.protocol_rows(*counted()).array):
        assert [latency_rows.stage_of(key) for key in rows["id"].tolist()] == rows["stage"].tolist()
    assert latency_rows.stage_of(1 << 40) is None


# --- round-trip times -----------------------------------------------------------------------------------------


def test_round_trip_times_of_connections() -> None:
    """Each established connection counts one round-trip time, by family; other sockets count none."""
    v6 = {"family": 10}
    v4 = {"family": 2}
    sockets = make_rows(
        [
            {"cookie": 1, "protocol": 6, "state": 1, "rtt_us": 100, **v4},
            {"cookie": 2, "protocol": 6, "state": 1, "rtt_us": 2500, **v6},
            {"cookie": 3, "protocol": 6, "state": 1, "rtt_us": None, **v4},
            {"cookie": 4, "protocol": 6, "state": 10, "rtt_us": 100, **v4},
            {"cookie": 5, "protocol": 17, "state": 1, "rtt_us": 100, **v4},
        ],
        SOCKETS,
    )
    histograms = latency_rows.rtt_histograms(sockets)
    assert histograms.sum() == 2
    assert histograms[0, spec.BUCKETS.places(np.array(100_000.0))] == 1
    assert histograms[1, spec.BUCKETS.places(np.array(2_500_000.0))] == 1
    classes = latency_rows.no_class_rows()
    latency_rows.add_rtts(classes, histograms)
    rows = latency_rows.stage_rows(classes, EVERYTHING, 1).array[spec.RTT]
    assert rows["seen"] == rows["matched"] == rows["latency"].sum() == 2


# --- pairs ----------------------------------------------------------------------------------------------------


class Entries:
    """Entries in place of a map."""

    def __init__(self, *entries: dict[str, Any]) -> None:
        self._entries = zero_rows(PAIR, *entries)

    def read(self) -> tuple[Array, Array, Array]:
        """Read as SetTable does."""
        return group_by_key(self._entries, PAIR_KEY)


def test_pairs_are_merged_over_cpus() -> None:
    """Counts of one pair on two CPUs are one row; another stage or protocol is another row."""
    latency = np.arange(spec.PAIR_BUCKETS.count)
    pair = {
        "source": (0, 0, 0xFFFF0000, 7),
        "destination": (1, 2, 3, 4),
        "stage_class": spec.QDISC << 8 | UDP_V6,
    }
    entries = Entries(
        pair | {"packets": 3, "latency": latency, "first_seen": 9},
        pair | {"packets": 5, "latency": 2 * latency, "first_seen": 4},
        pair | {"packets": 7, "stage_class": spec.QDISC << 8, "first_seen": 4},
        pair | {"packets": 11, "stage_class": spec.IP << 8 | UDP_V6, "first_seen": 4},
    )
    rows = latency_rows.pair_rows(entries, 1).array  # type: ignore[arg-type]
    assert sorted(rows["packets"].tolist()) == [7, 8, 11]
    (merged,) = rows[rows["packets"] == 8]
    assert (merged["latency"] == 3 * latency).all()
    assert (spec.PROTOCOLS[int(merged["protocol"])], int(merged["stage"])) == ("udp", spec.QDISC)
    assert (rows["id"][1:] > rows["id"][:-1]).all()


@pytest.mark.parametrize("first_seen", [5, 6])
def test_a_pair_that_comes_again_is_another_row(first_seen: int) -> None:
    """An evicted pair that returns counts from 0 in another row."""
    rows = [
        latency_rows.pair_rows(Entries({"packets": 1, "first_seen": seen_ns}), 1).array
        for seen_ns in (5, first_seen)
    ]  # type: ignore[arg-type]
    assert (rows[0]["id"] == rows[1]["id"]).all() == (first_seen == 5)
    assert len(latency_rows.pair_rows(Entries(), 1)) == 0  # type: ignore[arg-type]
