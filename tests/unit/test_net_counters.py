# SPDX-License-Identifier: Apache-2.0
"""The counters of /proc/net, read from a directory made by the test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.net.net_counters import read_backlog_drops, read_counters

NETSTAT = (
    "TcpExt: SyncookiesSent ListenOverflows ListenDrops\n"
    "TcpExt: 0 31 37\n"
    "IpExt: InNoRoutes InOctets\n"
    "IpExt: 3 18446744073709551615\n"
)
SNMP = (
    "Ip: Forwarding DefaultTTL InDiscards\n"
    "Ip: 1 64 5\n"
    "Tcp: RtoAlgorithm MaxConn InErrs\n"
    "Tcp: 1 -1 7\n"
    "Udp: InDatagrams NoPorts InErrors RcvbufErrors SndbufErrors\n"
    "Udp: 11 13 17 19 23\n"
)
SNMP6 = "Ip6InReceives                   \t29\nIp6OutNoRoutes                  \t41\nUdp6RcvbufErrors\t43\n"
SOFTNET = (
    "0013d2f8 00000002 00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001 00000000"
    " 00000000 00000000 00000000\n"
    "00135a70 0000000a 00000005 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000"
    " 00000003 00000000 00000000\n"
)


def put(proc: Path, **files: str) -> Path:
    """Write files of the calling thread's namespace."""
    here = proc / "thread-self/net"
    here.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (here / name).write_text(text)
    return proc


def test_counters_have_the_names_of_nstat(tmp_path: Path) -> None:
    """Group and name are one word; values are unchanged, including the largest and negative ones."""
    counters = read_counters(put(tmp_path, netstat=NETSTAT, snmp=SNMP, snmp6=SNMP6))
    assert counters == {
        "TcpExtSyncookiesSent": 0,
        "TcpExtListenOverflows": 31,
        "TcpExtListenDrops": 37,
        "IpExtInNoRoutes": 3,
        "IpExtInOctets": 2**64 - 1,
        "IpForwarding": 1,
        "IpDefaultTTL": 64,
        "IpInDiscards": 5,
        "TcpRtoAlgorithm": 1,
        "TcpMaxConn": -1,
        "TcpInErrs": 7,
        "UdpInDatagrams": 11,
        "UdpNoPorts": 13,
        "UdpInErrors": 17,
        "UdpRcvbufErrors": 19,
        "UdpSndbufErrors": 23,
        "Ip6InReceives": 29,
        "Ip6OutNoRoutes": 41,
        "Udp6RcvbufErrors": 43,
    }


def test_missing_files_are_missing_counters(tmp_path: Path) -> None:
    """Without IPv6, or without any file, there are fewer counters."""
    assert read_counters(tmp_path) == {}
    assert read_backlog_drops(tmp_path) == {}
    assert read_counters(put(tmp_path, netstat="IpExt: InNoRoutes\nIpExt: 3\n")) == {"IpExtInNoRoutes": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        "TcpExt: A B\nTcpExt: 1\n",
        "TcpExt: A\nIpExt: 1\n",
        "TcpExt: A\nTcpExt: one\n",
        "TcpExt: A\n",
        "TcpExt: A\n\n",
    ],
)
def test_counters_without_a_match_are_left_out(tmp_path: Path, wrong: str) -> None:
    """A heading with a wrong, short, long or non-numeric line counts nothing; the next one does."""
    assert read_counters(put(tmp_path, snmp=wrong)) == {}
    if wrong.count("\n") == 2:
        assert read_counters(put(tmp_path, snmp=wrong + "Udp: NoPorts\nUdp: 5\n")) == {"UdpNoPorts": 5}


def test_backlog_drops(tmp_path: Path) -> None:
    """Columns are hexadecimal, and the line names the CPU; unreadable lines are skipped."""
    text = SOFTNET + "nonsense\n00000004\n"
    assert read_backlog_drops(put(tmp_path, softnet_stat=text)) == {0: 2, 3: 10}


@given(text=st.text(alphabet="TcpExt: 019-\nA\t\udcff", max_size=80))
def test_nothing_in_a_file_raises(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Reading any contents gives numbers or nothing."""
    proc = tmp_path_factory.getbasetemp() / "any"
    here = proc / "thread-self/net"
    here.mkdir(parents=True, exist_ok=True)
    for name in ("netstat", "snmp", "snmp6", "softnet_stat"):
        (here / name).write_bytes(text.encode(errors="surrogateescape"))
    assert all(isinstance(value, int) for value in read_counters(proc).values())
    read_backlog_drops(proc)
