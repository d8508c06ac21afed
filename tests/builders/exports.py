# SPDX-License-Identifier: Apache-2.0
"""Datagrams of every protocol, numbered as their exporters do."""

from __future__ import annotations

from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from tests.builders.flow_messages import (
    PLAIN,
    PORT,
    SENDER,
    Sent,
    template_set,
)
from tests.builders.netflow5 import FIRST, PING, datagram, record
from tests.builders.sflow import INTERFACE, RAW, flow, part, words
from tests.builders.sflow import datagram as sflow_datagram

SFLOW = sflow_datagram(flow(RAW), part(2, words(5, 4, 1) + part(1, INTERFACE)), flow(RAW))
NETFLOW_5 = datagram(record(FIRST), record(PING)).data
DECLARED = {version: template_set(version, 300, PLAIN) for version in (NETFLOW_9, IPFIX)}


def sent(*contents: bytes, sender: bytes = SENDER, port: int = PORT) -> list[Sent]:
    """Return datagrams of one sender."""
    return [Sent(sender, port, content) for content in contents]
