# SPDX-License-Identifier: Apache-2.0
"""NetFlow v5: every field in its column, times by the exporter's clock, and headers that state too many records."""

from __future__ import annotations

import pytest

from nettop.collector.columns import Flows
from nettop.collector.decode.batch import DecodeResult
from nettop.collector.decode.decoder import Decoder
from tests.builders.flow_messages import PORT, RECEIVED_NS, SENDER, Sent, batch
from tests.builders.netflow5 import FIRST, PING, SECONDS, UPTIME_MS, address, datagram, record


def decode(*sent: Sent) -> tuple[Flows, list[int], list[bool]]:
    """Return the flows, the index of each one's datagram, and which datagrams could not be read to the end."""
    decoded = Decoder().decode(batch(list(sent)))
    headers = decoded.headers
    broken = (headers["reading"] != DecodeResult.DECODED) | (headers["broken"] > 0)
    return decoded.flows, decoded.datagram_of.tolist(), broken.tolist()


def test_every_field() -> None:
    """Two records of one datagram."""
    sent = [datagram(record(FIRST), record(PING))]
    flows, of, malformed = decode(*sent)
    assert (of, malformed) == ([0, 0], [False])
    boot_ms = SECONDS * 1000 + 250 - UPTIME_MS
    expected = {
        "src": address("10.0.0.1"), "dst": address("10.0.0.2"), "next_hop": address("10.0.0.254"), "in_if": 3,
        "out_if": 4, "packets": 7, "bytes": 700, "start": boot_ms + 4_990_000, "end": boot_ms + 4_999_000,
        "src_port": 443, "dst_port": 51_515, "tcp_flags": 0x1B, "protocol": 6, "tos": 0x10, "src_as": 65_001,
        "dst_as": 65_002, "src_prefix": 24, "dst_prefix": 16, "sequence": 77, "domain": 0x0102, "sampling_rate": 100,
        "etype": 0x0800, "protocol_version": 5, "exporter": SENDER, "received": RECEIVED_NS // 1_000_000,
        "icmp_type": 0, "icmp_code": 0,
    }  # fmt: skip
    assert {name: flows[name][0].tolist() for name in expected} == expected
    assert (flows["icmp_type"][1], flows["icmp_code"][1]) == (3, 1)


@pytest.mark.parametrize(
    ("protocol", "port", "type_and_code"),
    [(1, 0x0303, (3, 3)), (1, 0, (0, 0)), (1, 8, (8, 0)), (58, 0x8700, (135, 0)), (6, 0x0303, (0, 0))],
)
def test_type_and_code_of_icmp(protocol: int, port: int, type_and_code: tuple[int, int]) -> None:
    """They are in the destination port."""
    values = (*PING[:10], port, 0, protocol, *PING[13:])
    flows, _, _ = decode(datagram(record(values)))
    assert (flows["icmp_type"][0], flows["icmp_code"][0]) == type_and_code


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 25, 71, 72, 100, 119])
def test_truncated_datagrams_are_malformed(cut: int) -> None:
    """Complete records count; the next datagram is unaffected."""
    whole = datagram(record(FIRST), record(PING))
    sent = [Sent(SENDER, PORT, whole.data[:cut]), whole]
    flows, of, malformed = decode(*sent)
    assert malformed == [True, False]
    assert of == [0] * max(0, (cut - 24) // 48) + [1, 1]
    assert flows["bytes"].tolist()[-2:] == [700, 84]


def test_more_records_than_the_protocol_allows() -> None:
    """A header may state at most 30; the records present count."""
    flows, _, malformed = decode(datagram(*[record(FIRST)] * 31))
    assert (len(flows["bytes"]), malformed) == (31, [True])
