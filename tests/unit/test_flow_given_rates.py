# SPDX-License-Identifier: Apache-2.0
"""User-supplied sampling rates: which flows they apply to, and what is rejected."""

from __future__ import annotations

import struct

import pytest

from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.decode.user_rates import parse_rates
from nettop.errors import UsageError
from tests.builders.flow_messages import (
    PLAIN,
    QUIET,
    SENDER,
    Sent,
    a_set,
    batch,
    from_port,
    message,
    options_set,
    plain,
    template_set,
)
from tests.builders.netflow5 import FIRST, datagram, record
from tests.builders.sflow import AGENT, RAW, flow
from tests.builders.sflow import datagram as sflow_datagram

FIELDS = [*PLAIN, (0, 10, 4), (0, 14, 4), (0, 61, 1)]
"""With both interfaces and the direction."""


def flows(*interfaces: tuple[int, int, int], version: int = IPFIX, options: bytes = b"") -> Sent:
    """Return a message of flows with these interfaces and directions, numbered by their bytes."""
    records = (plain(at) + struct.pack("!IIB", *interface) for at, interface in enumerate(interfaces))
    return message(version, options, template_set(version, 300, FIELDS), a_set(300, b"".join(records)))


def rates(given: list[str], *sent: Sent) -> list[int]:
    """Return the rates of all flows, ordered by exporter and bytes."""
    decoded = Decoder(parse_rates(given)).decode(batch(list(sent)))
    rows = zip(
        *(decoded.flows[name].tolist() for name in ("exporter", "bytes", "sampling_rate")), strict=True
    )
    return [rate for _, _, rate in sorted(rows)]


TWO_RATES = options_set(IPFIX, 301, [(0, 10, 4)], [(0, 34, 4)]) + a_set(
    301, struct.pack("!IIII", 5, 50, 6, 60)
)
FLOWS = flows((5, 6, 0), (6, 5, 255), (7, 5, 1), (8, 9, 0), options=TWO_RATES)
"""Flows observed at the interfaces 5, 6, 5 and 8."""


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ([], [50, 60, 50, 0]),
        (["1000"], [50, 60, 50, 1000]),
        (["default=1000"], [50, 60, 50, 1000]),
        (["192.0.2.1=7"], [7, 7, 7, 7]),
        (["::ffff:192.0.2.1=7"], [7, 7, 7, 7]),
        (["192.0.2.1/5=7"], [7, 60, 7, 0]),
        (["192.0.2.1/5=7", "192.0.2.1/8=8", "192.0.2.1=9", "1000"], [7, 9, 7, 8]),
        (["192.0.2.1/8=7", "3"], [50, 60, 50, 7]),
        (["192.0.2.2=7", "2001:db8::1/5=7"], [50, 60, 50, 0]),
        (["192.0.2.1=7", "192.0.2.1=8"], [8, 8, 8, 8]),
    ],
)
def test_precedence_of_rates(given: list[str], seen: list[int]) -> None:
    """The interface's, the exporter's, the announced one, then the default."""
    assert rates(given, FLOWS) == seen


def test_exporters_have_rates_of_their_own() -> None:
    """In any order of their datagrams."""
    one, other = flows((1, 2, 0), (5, 2, 0)), from_port(flows((1, 2, 0), (5, 2, 0)), 1, sender=QUIET)
    given = ["192.0.2.1=10", "192.0.2.2/5=20", "3"]
    assert rates(given, one, other, one, other) == [10, 10, 10, 10, 3, 3, 20, 20]


def test_every_protocol_but_sflow() -> None:
    """NetFlow v5 has a rate in its header; an sFlow sample keeps its own unless it is 0."""
    netflow_5 = datagram(record(FIRST)).data
    unsampled = netflow_5[:22] + b"\0\0" + netflow_5[24:]
    netflow_9 = flows((1, 2, 0), version=NETFLOW_9)
    sflow = Sent(SENDER, 1, sflow_datagram(flow(RAW)))
    five = [Sent(SENDER, 1, each) for each in (netflow_5, unsampled)]
    assert sorted(rates(["7"], *five, netflow_9, sflow)) == [7, 7, 100, 512]
    assert sorted(rates(["192.0.2.1=9", f"{AGENT}=9"], *five, netflow_9, sflow)) == [9, 9, 9, 512]
    of_no_rate = Sent(SENDER, 1, sflow.data.replace(struct.pack("!I", 512), bytes(4), 1))
    assert rates(["7"], of_no_rate) == [7]
    assert rates(["7", f"{AGENT}=9"], of_no_rate) == [9]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "0",
            "-1",
            "1.5",
            "1e3",
            "4294967296",
            "\u0661",
            "=5",
            "router=5",
            "192.0.2.1=",
            "192.0.2.1=0",
        ),
        *(
            "192.0.2.1/=5",
            "192.0.2.1/0=5",
            "192.0.2.1/eth0=5",
            "192.0.2.1/4294967296=5",
            "192.0.2.0/24/5=5",
            "5=",
        ),
    ],
)
def test_invalid_rates(text: str) -> None:
    """The error names the value and the correct form."""
    with pytest.raises(UsageError) as raised:
        parse_rates(["10", text])
    assert repr(text) in raised.value.what
    assert "192.0.2.1/5=1000" in raised.value.remedy
