# SPDX-License-Identifier: Apache-2.0
"""The BPF source of the bandwidth lens, and the layouts that its programs share with nettop."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import columns, extend_dtype, row_header
from nettop.kernel.bpf.set_table import partition
from nettop.probes.probe import with_types
from nettop.snapshots.bandwidth import CASTS, KINDS, NO_SERVICE, PROTOCOL_NOT_IP, PROTOCOLS

XDP_PROGRAM, TC_PROGRAM = "xdp_received", "tc_received"
SENT_PROGRAMS = ("tp_btf__net_dev_start_xmit", "tp_btf__net_dev_xmit")

INTERFACES_MAX = 256
"""Interfaces counted at the same time; each takes 1 KiB per CPU."""
FLOWS_MAX = 1 << 16
"""Flows tracked at the same time: 6.3 MB of kernel memory, split equally among the CPUs."""
SET_ENTRIES = 8
SERVICES_BYTES = 2 << 16
"""One byte, the service, for each TCP port, then for each UDP port."""

COUNTS = np.dtype([("packets", "u8", (KINDS,)), ("bytes", "u8", (KINDS,))])
INTERFACE = np.dtype([("index", "u4"), ("number", "u2"), ("has_ethernet", "u2")])
"""An entry for a counted interface. Its number in flows, modulo INTERFACES_MAX, is its slot in `received` and `sent`.
The index of a free entry is 0. An entry has 8 bytes, so that it is written atomically."""
INTERFACE_SETS, INTERFACE_SET_ENTRIES = 256, 8
"""Interfaces whose indexes are equal modulo INTERFACE_SETS share the entries of a set."""
KEY = np.dtype(
    [
        ("local_address", "u4", (4,)),
        ("remote_address", "u4", (4,)),
        *columns("u2", "local_port", "remote_port", "interface"),
        *columns("u1", "protocol", "has_unknown_ports"),
    ]
)
"""The key of a flow, without padding. A flow that is not IP has its ethertype as the remote port; the ports of a
fragment are unknown if the first fragment of its datagram was not seen."""
TRAFFIC_COLUMNS = ("packets_received", "bytes_received", "packets_sent", "bytes_sent")
_COUNTED = columns("u8", *TRAFFIC_COLUMNS)
FLOW = extend_dtype(KEY, (*_COUNTED, *columns("u8", "first_seen", "last_seen", "tcp_flags")))
"""A flow: its key; packets and bytes; when it was first and last seen, in ns of CLOCK_MONOTONIC_COARSE (0: free
entry); the TCP flags of all its packets."""
EVICTED_SUM = np.dtype([("flows", "u8"), *_COUNTED])

_SKB = ("len", "data_len", "data", "head", "end", "transport_header", "inner_transport_header")
_SHARED_INFO = ("gso_size", "gso_segs", "gso_type")
_SLICES = (
    Slice("sk_buff", {name: name for name in _SKB}, {"vlan_all": "vlan_all"}),
    Slice("skb_shared_info", {name: name for name in _SHARED_INFO}, {}),
    Slice("net_device", {"ifindex": "ifindex", "nd_net": "nd_net"}, {}),
    Slice("net", {"inum": "ns.inum"}, {}),
)


def program_text(namespace: int, *, flows_max: int | None = FLOWS_MAX) -> ProgramText:
    """Return the program that counts the interfaces of a network namespace, given its inode number.

    If `flows_max` is None, it does not track flows.
    """
    sets, parts = partition(flows_max or FLOWS_MAX, SET_ENTRIES)
    has_flows = flows_max is not None
    kinds = {name.upper(): number for number, name in enumerate((*PROTOCOLS, *CASTS))}
    return ProgramText(
        sources=(str(Path(__file__).with_name("bandwidth.bpf.c")),),
        header="#include <linux/types.h>\n"
        + row_header("counts", COUNTS)
        + row_header("interface", INTERFACE)
        + row_header("key", KEY)
        + row_header("flow", FLOW, ("key", KEY))
        + row_header("evicted", EVICTED_SUM),
        slices=_SLICES,
        functions=with_types((XDP_PROGRAM, TC_PROGRAM, *SENT_PROGRAMS)),
        maps=(
            "interfaces",
            "received",
            "sent",
            "services",
            "refused",
            *(("flows", "evicted") if has_flows else ()),
        ),
        defines={
            "KINDS": KINDS,
            **{f"KIND_{name}": number for name, number in kinds.items()},
            "KIND_NO_SERVICE": NO_SERVICE,
            "PROTOCOL_NOT_IP": PROTOCOL_NOT_IP,
            "PORTS_MASK": SERVICES_BYTES - 1,
            "INTERFACES_MAX": INTERFACES_MAX,
            "INTERFACE_SETS": INTERFACE_SETS,
            "INTERFACE_SET_ENTRIES": INTERFACE_SET_ENTRIES,
            **(
                {"FLOW_SETS": sets, "FLOW_PARTITIONS": parts, "SET_ENTRIES": SET_ENTRIES} if has_flows else {}
            ),
        },
        values={"OWN_NAMESPACE": namespace},
    )
