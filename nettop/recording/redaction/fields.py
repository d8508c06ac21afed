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
    place: treatment
    for treatment, places in {
        texts.place: "connections.groups.group",
        texts.symbols: "cpu.stacks.stack drops.packets.place",
        texts.scrubbed: """
            cpu.categories.note findings.findings.kind findings.findings.peer findings.findings.finding
            findings.findings.view findings.findings.filter findings.findings.advice findings.findings.explains
            self.costs.name self.costs.note
        """,
        texts.declared: """
            bandwidth.interfaces.kind bandwidth.flows.protocol drops.packets.meaning drops.packets.protocol
            drops.packets.family drops.counters.counter drops.counters.name collector.ledger.of collector.ledger.term
            findings.limits.setting findings.limits.when_full findings.firewall.protocol findings.losses.lens
            findings.losses.what findings.losses.meaning self.costs.lens
        """,
        texts.service: "bandwidth.services.service",
        texts.tcp_flags: "bandwidth.flows.tcp_flags",
        texts.reason: "drops.packets.reason",
        texts.resource: "findings.limits.resource",
        texts.interface: "findings.cpus.queue",
        texts.nft: """
            findings.firewall.family findings.firewall.table findings.firewall.chain findings.firewall.hook
            findings.firewall.comment
        """,
    }.items()
    for place in places.split()
}  # fmt: skip
"""Texts of single tables; nettop.recording.redaction.findings knows more of those in findings."""

_PLAIN_IDS = frozenset({
    "connections.sockets.id", "connections.events.event_id", "connections.events.id", "connections.failures.id",
    "connections.groups.id",
    "cpu.cpus.cpu", "cpu.stacks.id", "cpu.categories.id", "cpu.processes.id",
    "latency.stages.id", "latency.protocols.id", "latency.buckets.id",
    "collector.ledger.id",
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
