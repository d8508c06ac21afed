# SPDX-License-Identifier: Apache-2.0
"""Rules of nftables that drop or reject packets, parsed from messages that a kernel sent."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.facts import Host
from nettop.kernel.net import nf_rules
from nettop.kernel.net.nf_rules import DropRule, DropRules, is_loaded, read_drop_rules
from nettop.probes.findings.firewall import firewall_rows
from nettop.selftest.rows import rows_of
from nettop.snapshots.findings import FIREWALL
from tests.builders.netlink import ERROR, end, open_each
from tests.unit.build import make_rows

ACCEPTING_CHAIN = (
    "70000000030a020001000000dd130000010000020b00010066696c74657200000a000300696e7075740000000c00020000000000"
    "00000001140004000800010000000001080002000000000008000500000000010b00070066696c746572000008000a0000000001"
    "0800060000000004"
)
DROPPING_CHAIN = (
    "70000000030a020001000000dd130000010000020b00010066696c74657200000c000300666f7277617264000c00020000000000"
    "00000002140004000800010000000002080002000000000008000500000000000b00070066696c746572000008000a0000000001"
    "0800060000000000"
)
COUNTED_DROP = (
    "58010000060a020801000000dd130000010000020b00010066696c74657200000a000200696e7075740000000c00030000000000"
    "000000031001040024000100090001006d6574610000000014000200080002000000001008000100000000012c00010008000100"
    "636d700020000200080001000000000108000200000000000c0003000500010006000000340001000c0001007061796c6f616400"
    "2400020008000100000000010800020000000002080003000000000208000400000000022c00010008000100636d700020000200"
    "080001000000000108000200000000000c000300060001001b6000002c0001000c000100636f756e746572001c0002000c000100"
    "000000000000012c0c0002000000000000000005300001000e000100696d6d6564696174650000001c0002000800010000000000"
    "100002000c00020008000100000000000d00070000076e6f2070617900000000"
)
"""`tcp dport 7008 counter packets 5 bytes 300 drop comment "no pay"`"""
REJECT_AFTER_COUNTER = (
    "48010000060a020801000000dd130000010000020b00010066696c74657200000a000200696e7075740000000c00030000000000"
    "000000040c0006000000000000000003040104002c0001000c000100636f756e746572001c0002000c0001000000000000000384"
    "0c000200000000000000000924000100090001006d6574610000000014000200080002000000000f08000100000000012c000100"
    "08000100636d700020000200080001000000000108000200000000000c0003000500010002000000340001000c0001007061796c"
    "6f6164002400020008000100000000010800020000000001080003000000000c08000400000000042c00010008000100636d7000"
    "20000200080001000000000108000200000000000c000300080001000a090909240001000b00010072656a656374000014000200"
    "08000100000000000500020003000000"
)
"""`counter packets 9 bytes 900 ip saddr 10.9.9.9 reject`"""
ACCEPT = (
    "78000000060a020801000000dd130000010000020b00010066696c74657200000a000200696e7075740000000c00030000000000"
    "000000050c000600000000000000000434000400300001000e000100696d6d6564696174650000001c0002000800010000000000"
    "100002000c0002000800010000000001"
)
DROP_THE_REST = (
    "bc000000060a020801000000dd130000010000020b00010066696c74657200000a000200696e7075740000000c00030000000000"
    "000000060c0006000000000000000005780004002c0001000c000100636f756e746572001c0002000c0001000000000000000028"
    "0c000200000000000000000118000100080001006c6f67000c0002000800050000000004300001000e000100696d6d6564696174"
    "650000001c0002000800010000000000100002000c0002000800010000000000"
)
"""`counter packets 1 bytes 40 log drop`"""
MESSAGES = [
    bytes.fromhex(text)
    for text in (ACCEPTING_CHAIN, DROPPING_CHAIN, COUNTED_DROP, REJECT_AFTER_COUNTER, ACCEPT, DROP_THE_REST)
]
POLICY = DropRule("inet", "filter", "forward", hook="forward")
RULES = [
    POLICY,
    DropRule("inet", "filter", "input", 3, comment="no pay", protocol="tcp", port=7008, conditional=True, packets=5,
             bytes=300, hook="input"),
    # The counter is before the condition: it counts packets that are not rejected, too.
    DropRule("inet", "filter", "input", 4, is_reject=True, conditional=True, hook="input"),
    DropRule("inet", "filter", "input", 6, packets=1, bytes=40, hook="input"),
]  # fmt: skip


def read(*messages: bytes) -> DropRules:
    """Read a namespace whose chains come with these rules; both requests are answered by the same socket."""
    with open_each([*messages[:2], end()], [*messages[2:], end()]):
        return read_drop_rules(lambda channel, request: channel.send(request))


def test_rules_that_drop_are_parsed() -> None:
    """Rules and policies that drop are found, others skipped; a counter counts if it is behind the conditions."""
    assert read(*MESSAGES) == DropRules(tuple(RULES))


def test_a_refusal_is_raised() -> None:
    """Reading without CAP_NET_ADMIN raises the kernel's error."""
    with open_each([end(errno.EPERM, ERROR)]), pytest.raises(PermissionError):
        read_drop_rules(lambda channel, request: channel.send(request))


@given(st.integers(0, len(MESSAGES) - 1), st.data())
def test_damaged_messages_do_no_harm(number: int, data: st.DataObject) -> None:
    """Names in damaged messages are safe to show."""
    message = bytearray(MESSAGES[number])
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(16, len(message) - 1))] = data.draw(st.integers(0, 255))
    for rule in read(bytes(message)).rules:
        assert (rule.table + rule.chain + (rule.comment or "")).isprintable()


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many rules the first ones are read, and the result is not whole."""
    monkeypatch.setattr(nf_rules, "RULES_MAX", 2)
    assert read(*MESSAGES[:5]) == DropRules(tuple(RULES[:3]), is_whole=False)
    assert read(*MESSAGES[:4]).is_whole


@pytest.mark.parametrize(
    ("modules", "built_in", "loaded"),
    [("", "", True), ("nf_tables 1 2 - Live 0\n", "", True), ("veth 1 0 - Live 0\n", "", False),
     ("veth 1 0 - Live 0\n", "kernel/net/netfilter/nf_tables.ko\n", True)],
)  # fmt: skip
def test_no_module_is_loaded(
    modules: str, built_in: str, *, loaded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nf_tables counts as loaded if its module is, or is built in, or if modules are unknown."""
    host = Host(tmp_path)
    folder = tmp_path / "lib/modules/6.1"
    folder.mkdir(parents=True)
    host.proc.mkdir()
    monkeypatch.setattr(
        nf_rules.os, "uname", lambda: create_autospec(nf_rules.os.uname_result, release="6.1")
    )
    (host.proc / "modules").write_text(modules)
    (folder / "modules.builtin").write_text(built_in)
    assert is_loaded(host) == loaded


def test_rows_of_rules() -> None:
    """A row says whom a rule affects and whether it has a counter; the rest is unknown."""
    listener = {"netns": 7, "local_port": 7008, "state": "LISTEN", "process": "payapi", "pid": 9}
    sockets = make_rows([listener, listener | {"netns": 8, "process": "other"}])
    rows = firewall_rows({7: DropRules(tuple(RULES))}, sockets, 1)
    names = (
        "chain",
        "handle",
        "action",
        "affects",
        "port",
        "process",
        "pid",
        "counted",
        "packets",
        "comment",
    )
    labels = {name: FIREWALL.by_name[name].labels or {} for name in names}
    listed = [
        tuple(labels[name].get(row[name], row[name]) for name in names)
        for row in rows_of(rows, np.ones(len(rows.array), bool))
    ]
    assert sorted(listed, key=str) == [
        ("forward", None, "drop", "all", None, None, None, "no", None, "policy"),
        ("input", 3, "drop", "port", 7008, "payapi", 9, "yes", 5, "no pay"),
        ("input", 4, "reject", "some", None, None, None, "no", None, None),
        ("input", 6, "drop", "all", None, None, None, "yes", 1, None),
    ]
