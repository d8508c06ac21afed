# SPDX-License-Identifier: Apache-2.0
"""What is done with each text and each id in a recording. What is not declared here is replaced."""

from __future__ import annotations

from nettop.recording.redaction import texts
from nettop.recording.redaction.texts import Treatment
from nettop.snapshots.schema import Field, Kind

_BY_NAME: dict[str, Treatment] = {
    "process": texts.process,
    "container": texts.container,
    "cgroup": texts.cgroup,
    "namespace": texts.namespace,
    "interface": texts.interface,
    "device": texts.interface,
}
"""Names in any table."""

_BY_PLACE: dict[str, Treatment] = {
    "connections.groups.group": texts.group,
    "cpu.stacks.stack": texts.symbols,
    "cpu.categories.note": texts.scrubbed,
    "bandwidth.interfaces.kind": texts.declared,
    "bandwidth.services.service": texts.service,
    "bandwidth.flows.protocol": texts.declared,
    "bandwidth.flows.tcp_flags": texts.tcp_flags,
    "drops.packets.reason": texts.reason,
    "drops.packets.meaning": texts.declared,
    "drops.packets.place": texts.symbols,
    "drops.packets.protocol": texts.declared,
    "drops.packets.family": texts.declared,
    "drops.counters.counter": texts.declared,
    "drops.counters.name": texts.declared,
    "flows.ledger.of": texts.declared,
    "flows.ledger.term": texts.declared,
    "findings.findings.kind": texts.scrubbed,
    "findings.findings.peer": texts.scrubbed,
    "findings.findings.finding": texts.scrubbed,
    "findings.findings.view": texts.scrubbed,
    "findings.findings.filter": texts.scrubbed,
    "findings.findings.advice": texts.scrubbed,
    "findings.findings.explains": texts.scrubbed,
    "findings.limits.resource": texts.resource,
    "findings.limits.setting": texts.declared,
    "findings.limits.when_full": texts.declared,
    "findings.cpus.queue": texts.interface,
    "findings.firewall.family": texts.nft,
    "findings.firewall.table": texts.nft,
    "findings.firewall.chain": texts.nft,
    "findings.firewall.hook": texts.nft,
    "findings.firewall.protocol": texts.declared,
    "findings.firewall.comment": texts.nft,
    "findings.losses.lens": texts.declared,
    "findings.losses.what": texts.declared,
    "findings.losses.meaning": texts.declared,
    "self.costs.name": texts.scrubbed,
    "self.costs.lens": texts.declared,
    "self.costs.note": texts.scrubbed,
}
"""Texts of single tables; nettop.recording.redaction.findings knows more of those in findings."""

_PLAIN_IDS = frozenset({
    "connections.sockets.id", "connections.events.event_id", "connections.events.id", "connections.failures.id",
    "connections.groups.id",
    "cpu.cpus.cpu", "cpu.stacks.id", "cpu.categories.id", "cpu.processes.id",
    "latency.stages.id", "latency.protocols.id", "latency.buckets.id",
    "flows.ledger.id",
    "services.connections.id", "services.waiting.id",
    "findings.cpus.id", "findings.firewall.handle",
    "self.costs.id",
})  # fmt: skip
"""Ids that are counted, or the kernel's. All others may be hashes of what is replaced, which could be guessed."""


def treatment_of(lens: str, table: str, field: Field) -> Treatment:
    """Return what is done with a text."""
    return _BY_PLACE.get(f"{lens}.{table}.{field.name}") or _BY_NAME.get(field.name, texts.name)


def is_replaced_id(lens: str, table: str, field: Field) -> bool:
    """Return whether a number is an id that is replaced: a row's, or that of a row that it refers to."""
    is_id = field.kind is Kind.KEY or (field.kind is Kind.LABEL and field.dtype == "u8")
    return is_id and f"{lens}.{table}.{field.name}" not in _PLAIN_IDS
