# SPDX-License-Identifier: Apache-2.0
"""Packets of an interface become flows."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nettop.collector.inputs import MIRRORED

from . import traffic
from .lab import Lab, Namespace
from .traffic import Memory

pytest.importorskip("chdb")

from tests.collecting import Running

pytestmark = pytest.mark.kernel

SIZES = [*range(1, 1400, 14)]
PORT = 9999


def inside(namespace: Namespace) -> tuple[str, ...]:
    """Return words that start a command in that namespace."""
    return "ip", "netns", "exec", namespace.name


def send(memory: Memory, to: tuple[str, int], sizes: list[int]) -> int:
    """Send a datagram of each size, with or without a listener; return the source port."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        for size in sizes:
            sender.sendto(b"n" * size, to)
        port: int = sender.getsockname()[1]
        return port


@pytest.mark.parametrize("version", [4, 6])
def test_packets_of_an_interface(lab: Lab, flows_dir: Path, version: int) -> None:
    """With --sampling 1 each incoming packet is a flow of its length; outgoing packets are not."""
    near, far = lab.pair()
    here, there = lab.worker(near.namespace), lab.worker(far.namespace)
    address = far.v4 if version == 4 else far.v6
    port = there.call(traffic.udp, "in", address)
    options = ("--interface", far.device, "--sampling", "1")
    with Running(flows_dir, *options, around=inside(far.namespace)) as running:
        source = here.call(send, (address, port), SIZES)
        there.call(send, (near.v4, PORT), SIZES)
        running.stored_at_least(len(SIZES))
        headers = 14 + (20 if version == 4 else 40) + 8
        assert running.rows(
            f"SELECT count(), sum(bytes), sum(packets), any(sampling_rate) FROM flows_raw WHERE dst_port = {port}"
        ) == [[len(SIZES), sum(SIZES) + headers * len(SIZES), len(SIZES), 1]]
        assert running.rows(
            f"SELECT DISTINCT protocol_version, protocol, src_port, in_if > 0 FROM flows_raw WHERE dst_port = {port}"
        ) == [[MIRRORED, 17, source, 1]]
        assert running.rows(f"SELECT count() FROM flows_raw WHERE dst_port = {PORT}") == [[0]]
        assert running.state()["ledger"]["mirrored_packets"] >= len(SIZES)
