# SPDX-License-Identifier: Apache-2.0
"""The rules of nftables that drop or reject packets, as rows."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

import numpy as np

from nettop.errors import PermissionMissing
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism
from nettop.kernel.host.facts import Host
from nettop.kernel.net.nf_rules import PROTOCOLS, Ask, DropRule, DropRules, read_drop_rules
from nettop.probes.drops.ports import find_owners
from nettop.snapshots.findings import FIREWALL, HOOK_FIREWALL
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Rows, rows_from

FIREWALL_FALLBACKS = Fallbacks(HOOK_FIREWALL, (Mechanism("nf_tables"),))
_POLICY = "policy"
_PORT = np.dtype([("netns", "u4"), ("port", "u4"), ("protocol", "u1"), ("has_owner", "u1")])
_PROTOCOLS = {name: number for number, name in PROTOCOLS.items()}
_NOT_KEPT = "only the screens, check, record and the views of findings keep CAP_NET_ADMIN"


def require_asker(host: Host) -> None:
    """Raise PermissionMissing if no thread may ask for the rules."""
    if host.kept.ask_firewall is None:
        raise host.kept.no_firewall or PermissionMissing(_NOT_KEPT, "run nettop check")


def read_firewall(ask: Ask) -> DropRules:
    """Read the rules of the calling thread's namespace; none, and not whole, if the kernel refuses."""
    try:
        return read_drop_rules(ask)
    except OSError:
        return DropRules(is_whole=False)


def firewall_rows(by_namespace: Mapping[int, DropRules], sockets: Rows | None, taken_ns: int) -> Rows:
    """Return the rows of the table, without names of namespaces; `sockets` tell the processes."""
    found = [(netns, rule) for netns, read in by_namespace.items() for rule in read.rules]
    values = (
        {
            "id": row_id(netns, rule.family, rule.table, rule.chain, rule.handle),
            "netns": netns,
            "family": rule.family,
            "table": rule.table,
            "chain": rule.chain,
            "handle": rule.handle,
            "hook": rule.hook,
            "action": "reject" if rule.is_reject else "drop",
            "affects": "port" if rule.port is not None else "some" if rule.conditional else "all",
            "protocol": rule.protocol,
            "port": rule.port,
            "process": process,
            "pid": pid,
            "comment": _POLICY if rule.handle is None else rule.comment,
            "counted": "no" if rule.packets is None else "yes",
            "packets": rule.packets,
            "bytes": rule.bytes,
        }
        for (netns, rule), (process, pid) in zip(found, _processes(found, sockets), strict=True)
    )
    return rows_from(FIREWALL, list(values), taken_ns)


def _processes(
    found: Sequence[tuple[int, DropRule]], sockets: Rows | None
) -> Sequence[tuple[str | None, int | None]]:
    """Return the name and PID of the process at each rule's port."""
    if sockets is None:
        return [(None, None)] * len(found)
    keys = np.zeros(len(found), _PORT)
    for key, (netns, rule) in zip(keys, found, strict=True):
        protocol = _PROTOCOLS.get(rule.protocol or "", socket.IPPROTO_TCP)
        key["netns"], key["protocol"], key["port"] = netns, protocol, rule.port or 0
        key["has_owner"] = rule.port is not None
    owners, _, _ = find_owners(keys, sockets.array)
    names, rows = sockets.texts["process"], sockets.array
    return [(names[rows["process"][at]], int(rows["pid"][at])) if at >= 0 else (None, None) for at in owners]
