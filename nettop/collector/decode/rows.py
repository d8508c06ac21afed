# SPDX-License-Identifier: Apache-2.0
"""Convert records to flows: fill gaps from packets and ports, and split bidirectional records into two flows.

Three kinds of exporters count both directions of a connection in one record: those that follow RFC 5103, by reverse
elements; firewalls, as initiator and responder; nProbe and others, by OUT_BYTES and OUT_PKTS.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nettop.collector.columns import Flows, default_values
from nettop.collector.decode import elements
from nettop.collector.decode.packets import FirstHeader, decode_packets, icmp_in_port
from nettop.collector.decode.records import COUNTERS, Records
from nettop.snapshots.arrays import Index, Mask

_REVERSED = (
    ("src", "dst"), ("src_port", "dst_port"), ("src_mac", "dst_mac"), ("src_vlan", "dst_vlan"), ("src_as", "dst_as"),
    ("src_prefix", "dst_prefix"), ("in_if", "out_if"), ("in_vrf", "out_vrf"), ("nat_src", "nat_dst"),
    ("nat_src_port", "nat_dst_port"),
)  # fmt: skip
"""Columns swapped in the reverse direction of a biflow."""
_DURATION_MAX_MS = (1 << 32) - 1
FORWARD, BACKWARD = 1, 2
"""Directions of a biflow."""

CountOnce = Callable[[Flows, Flows], None]
"""Function that reduces initiator and responder counters in place to their increments."""


def decode_flows(records: Records, count_once: CountOnce) -> list[tuple[Index, Flows]]:
    """Return the flows of data records, with each one's record index; unknown columns are left out.

    Records with reverse packets add their reverse flows as a second part.
    """
    flows: Flows = {}
    said: dict[str, Mask] = {}
    for name in elements.ELEMENTS_OF:
        values, known = records.column(name)
        if known.any():
            flows[name], said[name] = values, known
    _read_durations(records, flows)
    _read_packets(records, flows)
    _read_icmp(flows, said)
    backward = _reverse_flows(records, flows, count_once)
    parts: list[tuple[Index, Flows]] = [(np.arange(len(records)), flows)]
    if backward:
        counters = [backward[name] for name in COUNTERS if name in backward]
        at = np.flatnonzero(
            np.logical_or.reduce([np.zeros(len(records), bool), *(counter > 0 for counter in counters)])
        )
        parts.append((at, {name: values[at] for name, values in backward.items()}))
    return parts


def _read_durations(records: Records, flows: Flows) -> None:
    """Derive a missing end from start and duration, and a missing start from end and duration."""
    for element, of_a_ms in elements.DURATIONS.items():
        duration, has = records.number(element)
        if has.any():
            has &= duration <= _DURATION_MAX_MS * of_a_ms
            duration_ms = (duration // of_a_ms).astype(np.int64)
            start, end = (flows.get(name, default_values(name, len(records))) for name in ("start", "end"))
            flows["start"] = np.where(has & (start == 0) & (end > 0), end - duration_ms, start)
            flows["end"] = np.where(has & (end == 0) & (start > 0), start + duration_ms, end)


def _read_packets(records: Records, flows: Flows) -> None:
    """Add columns from sampled packet headers that no element of the records fills."""
    for element, first in ((elements.FRAME, FirstHeader.ETHERNET), (elements.IP_PACKET, FirstHeader.IP)):
        if element in records.fields:
            places = records.fields[element]
            at = np.flatnonzero(places.lengths > 0)
            starts = places.starts[at]
            packets = decode_packets(records.buffer, starts, starts + places.lengths[at], first)
            packets["bytes"], packets["packets"] = packets.pop("ip_bytes"), np.ones(len(at), np.uint64)
            for name in packets.keys() - flows.keys():
                flows[name] = default_values(name, len(records))
                flows[name][at] = packets[name]


def _read_icmp(flows: Flows, said: dict[str, Mask]) -> None:
    """Add ICMP types and codes from the ports, unless elements or packets provide them."""
    is_of_packets = "icmp_type" in flows.keys() - said.keys()
    is_said = said.get("icmp_type", np.zeros(1, bool))
    if is_of_packets or is_said.all() or not {"protocol", "dst_port"} <= flows.keys():
        return
    type_and_code = icmp_in_port(flows["protocol"], flows["dst_port"])
    for name, values in zip(("icmp_type", "icmp_code"), type_and_code, strict=True):
        flows[name] = np.where(is_said, flows.get(name, 0), values)


# --- directions -----------------------------------------------------------------------------------------------


def _reverse_flows(records: Records, flows: Flows, count_once: CountOnce) -> Flows:
    """Return the reverse flows (n,), and set each flow's direction.

    They are empty if no record counts both directions. Adjust the counters in `flows` where records count forward and
    reverse separately.
    """
    if any(enterprise == elements.REVERSE for enterprise, _ in records.fields):
        flows["biflow_direction"] = np.full(len(records), FORWARD, np.uint8)
        exchanged = _swap_ends(flows)
        return exchanged | _reverse_columns(records, exchanged)
    if _counts_responders(records):
        return _read_responders(records, flows, count_once)
    if any(element in records.fields for element in elements.OUT.values()):
        return _read_out(records, flows)
    return {}


def _counts_responders(records: Records) -> bool:
    """Return whether records count initiator and responder, rather than IN and OUT."""
    has_responder, has_total, has_out = (
        any(element in records.fields for element in group)
        for group in (elements.RESPONDER.values(), elements.TOTALS, elements.OUT.values())
    )
    return has_responder and not (has_total and has_out)


def _read_responders(records: Records, flows: Flows, count_once: CountOnce) -> Flows:
    """Return the reverse flows of responders. Skip records whose totals match neither the initiator nor the sum of
    both.
    """
    names = [
        name
        for name in COUNTERS
        if {elements.INITIATOR[name], elements.RESPONDER[name]} & records.fields.keys()
    ]
    sent, back = (
        {name: records.number(of[name])[0] for name in names}
        for of in (elements.INITIATOR, elements.RESPONDER)
    )
    is_both = np.ones(len(records), bool)
    for name in flows.keys() & sent.keys():
        counted = flows[name]
        is_both &= (counted == 0) | (counted == sent[name]) | (counted == sent[name] + back[name])
    for name in flows.keys() & sent.keys():
        flows[name] = np.where(is_both, sent[name], flows[name])
    flows["biflow_direction"] = np.where(is_both, FORWARD, 0).astype(np.uint8)
    counters = {name: np.where(is_both, values, 0) for name, values in back.items()}
    if not any(element in records.fields for element in elements.TOTALS):
        count_once(flows, counters)
    return _swap_ends(flows) | counters


def _read_out(records: Records, flows: Flows) -> Flows:
    """Return the reverse flows of records whose IN and OUT differ. If IN is 0, OUT counts the flow itself."""
    counted = {
        name: (records.number(elements.IN[name])[0], records.number(elements.OUT[name])[0])
        for name in COUNTERS
    }
    is_both = np.zeros(len(records), bool)
    if records.has_both_directions:
        for into, out in counted.values():
            is_both |= (into > 0) & (out > 0) & (into != out)
    for name, (_, out) in counted.items():
        if name in flows:
            flows[name] = np.where((flows[name] == 0) & ~is_both, out, flows[name])
    if not is_both.any():
        return {}
    flows["biflow_direction"] = np.where(is_both, FORWARD, 0).astype(np.uint8)
    return _swap_ends(flows) | {name: np.where(is_both, out, 0) for name, (_, out) in counted.items()}


def _swap_ends(forward: Flows) -> Flows:
    """Return the flows with both ends swapped, without counters."""
    flows = {name: values for name, values in forward.items() if name not in COUNTERS}
    for source, destination in _REVERSED:
        for name, from_name in ((source, destination), (destination, source)):
            if from_name in forward:
                flows[name] = forward[from_name]
            else:
                flows.pop(name, None)
    return flows | {"biflow_direction": np.full(len(flows["biflow_direction"]), BACKWARD, np.uint8)}


def _reverse_columns(records: Records, exchanged: Flows) -> Flows:
    """Return the columns filled by reverse elements."""
    flows: Flows = {}
    for name in elements.ELEMENTS_OF:
        values, known = records.column(name, elements.REVERSE)
        if known.any():
            flows[name] = np.where(known, values, exchanged.get(name, default_values(name, len(records))))
    return flows
