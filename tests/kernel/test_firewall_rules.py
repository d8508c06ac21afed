# SPDX-License-Identifier: Apache-2.0
"""Real rules of nftables and iptables are listed, and named as the cause of connects that nobody answers."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from .command import Row, nettop, rows
from .fault_programs import every
from .lab import Lab, Namespace, until
from .terminal import Terminal
from .traffic import Memory, send_datagrams

pytestmark = [pytest.mark.kernel, pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")]

PORT = 7008
RULES = """
table inet filter {
    chain input {
        type filter hook input priority 0; policy accept;
        tcp dport 7008 counter drop comment "no pay"
        udp dport 7009 log counter reject
        tcp dport 7010 drop
        counter ip saddr 10.9.9.9 drop
        tcp dport { 7011, 7012 } counter drop
        tcp dport 7013 accept
        counter drop
    }
    chain forward { type filter hook forward priority 0; policy drop; }
}
"""
IPTABLES = (
    "-P FORWARD DROP",
    "-A INPUT -p tcp --dport 7008 -m comment --comment old -j DROP",
    "-A INPUT -p udp --dport 7009 -j REJECT",
)


def with_rules(lab: Lab, rules: str) -> Namespace:
    """Return a namespace with these rules of nftables."""
    namespace = lab.namespace()
    words = ["ip", "netns", "exec", namespace.name, "nft", "-f", "-"]
    subprocess.run(words, input=rules, text=True, check=True)
    return namespace


def listed(namespace: Namespace) -> list[Row]:
    """Return the rules in this namespace that nettop lists."""
    return rows("--view", "findings.firewall", "--filter", f"netns={namespace.inode}", everything=False)


def essence(row: Row) -> tuple[object, ...]:
    """Return what a test compares."""
    names = ("family", "chain", "action", "affects", "protocol", "port", "comment", "packets")
    return tuple(row[name] for name in names)


def connect_again_and_again(memory: Memory, port: int) -> None:
    """Listen at a port of loopback, and send SYNs to it until killed."""
    with socket.create_server(("127.0.0.1", port)):
        for number in every(0.1):
            client = memory[number] = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))


def test_rules_of_nftables_are_listed(lab: Lab) -> None:
    """Only those that drop or reject, with their counters, which reading does not reset."""
    namespace = with_rules(lab, RULES)
    lab.worker(namespace).call(send_datagrams, ("127.0.0.1", 7009), 3)
    expected = [
        ("inet", "forward", "drop", "all", None, None, "policy", None),
        ("inet", "input", "drop", "all", None, None, None, 3),  # ICMP that rejected
        ("inet", "input", "drop", "port", "tcp", 7008, "no pay", 0),
        ("inet", "input", "drop", "port", "tcp", 7010, None, None),
        ("inet", "input", "drop", "some", "tcp", None, None, 0),
        ("inet", "input", "drop", "some", None, None, None, None),
        ("inet", "input", "reject", "port", "udp", 7009, None, 3),
    ]
    for _ in range(2):
        found = sorted(map(essence, listed(namespace)), key=str)
        assert found == expected
    handles = {row["handle"] for row in listed(namespace)} - {None}
    ruleset = json.loads(namespace.run("nft", "-j", "list", "ruleset"))["nftables"]
    by_nft = {entry["rule"]["handle"]: entry["rule"] for entry in ruleset if "rule" in entry}
    assert handles < by_nft.keys()
    assert len(by_nft) == len(handles) + 1  # the one that accepts


@pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="needs iptables-nft")
def test_rules_of_iptables_are_listed(lab: Lab) -> None:
    """They are rules of nf_tables, with matches, targets and comments of their own."""
    namespace = lab.namespace()
    for rule in IPTABLES:
        namespace.run("iptables-nft", *rule.split())
    assert sorted(map(essence, listed(namespace)), key=str) == [
        ("ip", "FORWARD", "drop", "all", None, None, "policy", 0),
        ("ip", "INPUT", "drop", "port", "tcp", 7008, "old", 0),
        ("ip", "INPUT", "reject", "port", "udp", 7009, None, 0),
    ]


@pytest.mark.parametrize(
    ("rule", "policy", "kind", "sentence"),
    [
        ('tcp dport 7008 counter drop comment "no pay"', "accept", "firewall rule drops",
         "packets/s for payapi :7008 in table filter, chain input (no pay)"),
        ("tcp dport 7008 drop", "accept", "firewall rule may drop",
         "nftables drops packets for payapi :7008, without counting them, in table filter, chain input"),
        ("udp dport 53 accept; counter drop", "accept", "firewall drops others",
         "packets/s in table filter, chain input"),
        ("udp dport 53 accept", "drop", "firewall may drop others",
         "nftables drops what no rule accepted, without counting it, in table filter, chain input (policy)"),
    ],
    ids=["counter", "no counter", "the rest", "policy"],
)  # fmt: skip
def test_check_names_the_rule(rule: str, policy: str, kind: str, sentence: str, lab: Lab) -> None:
    """It explains the packets that a firewall drops, and the connects that nobody answers."""
    head = f"type filter hook input priority 0; policy {policy};"
    namespace = with_rules(lab, f"table inet filter {{ chain input {{ {head} {rule}\n}}\n}}")
    lab.worker(namespace, "payapi").start(connect_again_and_again, PORT)

    def named() -> Mapping[str, Row]:
        done = nettop("check", "--for", "4", "--format", "jsonl", "--follow-namespaces")
        found = map(json.loads, done.stdout.splitlines())
        by_kind = {row["kind"]: row for row in found if row["netns"] == namespace.inode}
        return by_kind if kind in by_kind else {}

    found = until(named, f"{kind} is found", 60)
    assert sentence in found[kind]["finding"]
    assert "are dropped on this host by a rule of nftables or iptables" in found[kind]["explains"]
    assert f"gets no answer to connects to 127.0.0.1:{PORT}" in found[kind]["explains"]
    assert found.keys() == {kind}


def test_the_screens_name_the_rule(lab: Lab) -> None:
    """They read rules only once there is something to explain, and need no other lens for a rule with a counter."""
    namespace = with_rules(lab, RULES)
    lab.worker(namespace, "payapi").start(connect_again_and_again, PORT)
    with Terminal("--filter", f"netns={namespace.inode}") as terminal:
        terminal.shows(b"nftables drops")
        terminal.shows(b"for payapi :7008 in table filter, chain input (no pay)")
        terminal.type(b"q")
        assert terminal.wait() == 0


def test_a_recording_names_the_rule(lab: Lab, tmp_path: Path) -> None:
    """Later, nobody can ask for the rules."""
    namespace = with_rules(lab, RULES)
    lab.worker(namespace, "payapi").start(connect_again_and_again, PORT)

    def recorded() -> str:
        path = tmp_path / f"{time.monotonic_ns()}.nettop"
        nettop("record", str(path), "--for", "5", "--follow-namespaces")
        return nettop("check", "--from", str(path)).stdout

    sentence = "for payapi :7008 in table filter, chain input (no pay)"
    until(lambda: sentence in recorded(), "the rule is named", 60)


def test_a_healthy_host_has_no_finding(lab: Lab) -> None:
    """Dropped packets for a port where nobody listens are no finding, but the rule is listed."""
    namespace = with_rules(lab, RULES)
    lab.worker(namespace).start(send_datagrams, ("127.0.0.1", 9999), 200_000)
    until(lambda: any((row["packets"] or 0) > 0 for row in listed(namespace)), "packets are dropped")
    done = nettop("check", "--for", "3", "--format", "jsonl")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kind"] for row in found if row["netns"] == namespace.inode] == []
