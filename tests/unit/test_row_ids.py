# SPDX-License-Identifier: Apache-2.0
"""Row IDs: exact for every JSON reader, distinct, and the same in every reading."""

from __future__ import annotations

import numpy as np

from nettop.probes.bandwidth.flows import KEY, ids_of
from nettop.probes.collector.probe import _ids
from nettop.snapshots.row_ids import ID_BITS, row_id, row_ids

LARGEST = 0xFFFF_FFFF


def test_hashes_become_numbers_in_their_order() -> None:
    """The largest one is below 2⁵³: as a float, which is all that JavaScript has, it is itself."""
    hashes = np.array([0, 1 << 11, 1 << 63, (1 << 64) - 1], np.uint64)
    ids = row_ids(hashes)
    assert ids.tolist() == [0, 1, 1 << 52, (1 << ID_BITS) - 1]
    assert [int(float(id_)) for id_ in ids.tolist()] == ids.tolist()


def test_interfaces() -> None:
    """Namespaces have inode numbers of 32 bits, and so do interfaces."""
    every = [(LARGEST - netns, LARGEST - index) for netns in range(100) for index in range(100)]
    ids = {row_id(*values) for values in every}
    assert len(ids) == len(every)
    assert max(ids) >> ID_BITS - 1 == 1
    assert row_id(1, 2) == row_id(1, 2) != row_id(2, 1)


def test_flows() -> None:
    """Flows that differ in one address, and one that came again, are apart."""
    flows = np.zeros(1000, np.dtype([*((name, KEY[name]) for name in KEY.names or ()), ("first_seen", "u8")]))
    flows["first_seen"] = np.arange(1000) // 2 << 40
    assert int(ids_of(flows).max()) < 1 << ID_BITS
    assert len(np.unique(ids_of(flows))) == 500


def test_exporters() -> None:
    """Two processes may receive from the same exporter."""
    exporter = {"exporter": "::ffff:10.0.0.1", "port": 1, "protocol_version": "sflow", "domain": 1}
    ids = _ids([exporter, exporter, exporter | {"domain": 2}])
    assert len(set(ids)) == 3
    assert max(ids) < 1 << ID_BITS
