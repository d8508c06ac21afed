# SPDX-License-Identifier: Apache-2.0
"""Commands that show a socket in ss, and its packets in tcpdump."""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Mapping
from typing import Any

from nettop.snapshots.schema import OWN_NAMESPACE

_SS_OPTIONS = {"tcp": "-tinpa", "udp": "-uinpa", "mptcp": "-Minpa"}
COLUMNS = ("protocol", "local_address", "local_port", "remote_address", "remote_port", "pid", "namespace")
"""The columns needed from a row."""


def commands_for(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the commands for a row by the tools' names, or {} if they cannot express it, or if it is in a network
    namespace in which no process is known."""
    ends = [
        (row[f"{end}_address"], row[f"{end}_port"])
        for end in ("local", "remote")
        if row[f"{end}_port"] is not None
    ]
    if not ends or row["protocol"] not in _SS_OPTIONS:
        return {}
    entering = ""
    if row["namespace"] not in (OWN_NAMESPACE, None):
        if row["pid"] is None:
            return {}
        entering = f"nsenter -t {row['pid']} -n "
    matches = [
        _ss_match(*words, *end)
        for words, end in zip((("src", "sport"), ("dst", "dport")), ends, strict=False)
    ]
    packets = " and ".join(["udp" if row["protocol"] == "udp" else "tcp", *(_packets(*end) for end in ends)])
    return {
        "ss": f"{entering}ss {_SS_OPTIONS[row['protocol']]} {shlex.quote(' and '.join(matches))}",
        "tcpdump": f"{entering}tcpdump -ni any {shlex.quote(packets)}",
    }


def _is_any(address: str | None) -> bool:
    return address is None or ipaddress.ip_address(address).is_unspecified


def _ss_match(end: str, port_of_end: str, address: str | None, port: int) -> str:
    if _is_any(address):
        return f"{port_of_end} = :{port}"
    host = f"[{address}]" if ":" in str(address) else address
    return f"{end} {host}:{port}"


def _packets(address: str | None, port: int) -> str:
    return f"port {port}" if _is_any(address) else f"host {address} and port {port}"
