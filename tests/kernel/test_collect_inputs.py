# SPDX-License-Identifier: Apache-2.0
"""Packets of an interface, packets logged by the firewall, and ended connections of this host become flows."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from nettop.flows.inputs.input import CONNTRACK, MIRRORED, NFLOG

from . import traffic
from .lab import Lab, Namespace
from .traffic import Memory

pytest.importorskip("chdb")

from tests.collecting import Running, until

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


def list_tracked(_memory: Memory) -> None:
    """Have the kernel remove timed-out connections now rather than within a minute."""
    with contextlib.suppress(FileNotFoundError):
        Path("/proc/net/nf_conntrack").read_text()


def nft(namespace: Namespace, *rules: str) -> None:
    """Add rules to an input chain; skip the test if the kernel has no nftables."""
    try:
        namespace.run(
            "nft", "add table inet nettop; add chain inet nettop in { type filter hook input priority 0; }"
        )
        for rule in rules:
            namespace.run("nft", f"add rule inet nettop in {rule}")
    except (RuntimeError, FileNotFoundError) as error:
        pytest.skip(f"this machine has no nftables: {error}")


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


def test_some_of_the_packets_of_an_interface(lab: Lab, flows_dir: Path) -> None:
    """nettop samples one packet in four, and counts it as four."""
    near, far = lab.pair()
    here = lab.worker(near.namespace)
    options = ("--interface", far.device, "--sampling", "4")
    with Running(flows_dir, *options, around=inside(far.namespace)) as running:
        here.call(send, (far.v4, PORT), [100] * 4000)
        running.stored_at_least(800)
        assert running.end() == 0
    with Running(flows_dir) as running:
        ((taken, rate),) = running.rows(
            f"SELECT count(), any(sampling_rate) FROM flows_raw WHERE dst_port = {PORT}"
        )
        # Of a binomial distribution with 4000 and 1/4 the deviation is 27.
        assert 800 < int(taken) < 1200
        assert rate == 4


def test_packets_that_the_firewall_logs(lab: Lab, flows_dir: Path) -> None:
    """Each packet that a rule logs is a flow of the length in its IP header."""
    near, far = lab.pair()
    nft(far.namespace, f"udp dport {PORT} log group 5")
    here = lab.worker(near.namespace)
    with Running(flows_dir, "--nflog", "5", around=inside(far.namespace)) as running:
        here.call(send, (far.v4, PORT), SIZES)
        here.call(send, (far.v6, PORT), SIZES)
        here.call(send, (far.v4, PORT + 1), SIZES)
        running.stored(2 * len(SIZES))
        assert running.rows(
            "SELECT protocol_version, etype, count(), sum(bytes) FROM flows_raw GROUP BY 1, 2 ORDER BY 2"
        ) == [
            [NFLOG, 0x0800, len(SIZES), sum(SIZES) + 28 * len(SIZES)],
            [NFLOG, 0x86DD, len(SIZES), sum(SIZES) + 48 * len(SIZES)],
        ]
        assert running.state()["ledger"]["logged_packets"] == 2 * len(SIZES)


def test_connections_that_have_ended(lab: Lab, flows_dir: Path) -> None:
    """Ended connections have both directions with bytes and packets, and the translated addresses."""
    near, far = lab.pair()
    nft(far.namespace, "ct state new accept")
    far.namespace.sysctls(
        {
            "net.netfilter.nf_conntrack_acct": 1,
            "net.netfilter.nf_conntrack_udp_timeout": 1,
            "net.netfilter.nf_conntrack_udp_timeout_stream": 1,
        }
    )
    here, there = lab.worker(near.namespace), lab.worker(far.namespace)
    with Running(flows_dir, "--conntrack", around=inside(far.namespace)) as running:
        source = here.call(send, (far.v4, PORT), SIZES)

        def is_stored() -> bool:
            there.call(list_tracked)
            return bool(running.state()["flows"]["stored"])

        until(is_stored, "the connection is stored")
        assert running.rows(
            "SELECT protocol_version, protocol, dst_port, bytes, packets, biflow_direction FROM flows_raw "
            f"WHERE src_port = {source}"
        ) == [[CONNTRACK, 17, PORT, sum(SIZES) + 28 * len(SIZES), len(SIZES), 1]]
