# SPDX-License-Identifier: Apache-2.0
"""The collector lens: exporters of flows to the collector on this host, and the fate of these flows."""

from __future__ import annotations

from nettop.snapshots.schema import Field, FieldRole, Hook, Kind, Lens, Metrics, Option, Table

PROTOCOLS = {
    0: "unknown",
    5: "NetFlow 5",
    9: "NetFlow 9",
    10: "IPFIX",
    105: "sFlow 5",
    201: "conntrack",
    202: "NFLOG",
    203: "mirrored port",
    204: "producer",
}
"""Protocols by the version number in flows; 0 for unreadable datagrams. 201 and 202 are only in earlier stores."""

COUNTINGS = {0: "unknown", 1: "datagrams", 2: "flows", 3: "records"}
"""Units of sequence numbers, according to the collector; records are flow and options records."""

# fmt: off
EXPORTERS = Table(
    name="exporters",
    fields=(
        Field("id", Kind.KEY, "ID", "number made of address, port, protocol and domain", "u8", width=20, importance=1),
        Field("exporter", Kind.ADDRESS, "EXPORTER", "sender of the datagrams; for sFlow the agent", "(2,)>u8", width=22,
              importance=100),
        Field("port", Kind.LABEL, "PORT", "its UDP source port; 0 for sFlow", "u4", width=5, importance=40),
        Field("protocol", Kind.ENUM, "PROTOCOL", "protocol of its datagrams", "u1", width=9, importance=90,
              labels=PROTOCOLS),
        Field("domain", Kind.LABEL, "DOMAIN", "observation domain, source ID, engine, or sFlow sub-agent", "u4",
              width=8),
        Field("datagrams", Kind.COUNTER, "DATAGRAMS", "datagrams received", "u8", "packets", 10, 80),
        Field("bytes", Kind.COUNTER, "BYTES", "bytes of these datagrams", "u8", "bytes", 10, 45, rate_title="RATE"),
        Field("flows", Kind.COUNTER, "FLOWS", "flows in these datagrams", "u8", "flows", 10, 95, rate_title="FLOWS/s"),
        Field("lost", Kind.GAUGE, "LOST", "exports that never arrived, by sequence number: datagrams, flows or "
              "records, as in `counting`", "u8", "exports", 8, 85, tone="warn"),
        Field("numbered", Kind.COUNTER, "NUMBERED", "exports that arrived, in the same unit", "u8", "exports", 9, 14),
        Field("counting", Kind.ENUM, "COUNTING", "unit of sequence numbers; unknown if they contradict the protocol",
              "u1", width=9, importance=28, labels=COUNTINGS),
        Field("restarts", Kind.COUNTER, "RESTARTS", "how often its sequence numbers restarted", "u8", "restarts", 8,
              30),
        Field("unchecked", Kind.COUNTER, "UNCHECKED", "datagrams before which losses cannot be determined",
              "u8", "packets", 9, 15),
        Field("malformed", Kind.COUNTER, "MALFORMED", "datagrams with an unreadable header", "u8", "packets", 9, 60,
              tone="warn"),
        Field("broken", Kind.COUNTER, "BROKEN", "unreadable parts of datagrams", "u8", "parts", 8, 55,
              tone="warn"),
        Field("options", Kind.COUNTER, "OPTIONS", "options records, on the exporter itself", "u8", "records", 8, 20),
        Field("templates", Kind.GAUGE, "TEMPLATES", "known templates", "u8", "templates", 9, 35),
        Field("waiting", Kind.GAUGE, "WAITING", "sets waiting for their template", "u8", "sets", 8, 58, tone="warn"),
        Field("forgotten", Kind.COUNTER, "FORGOTTEN", "sets dropped before their template arrived, because too many "
              "were waiting", "u8", "sets", 9, 57, tone="warn"),
        Field("sampling_rate", Kind.GAUGE, "SAMPLING", "N if it samples one packet in N", "u8", "", 8, 65),
        Field("first_seen", Kind.TIME, "FIRST", "its first datagram since the collector started", "u8", "ns", 19, 10),
        Field("last_seen", Kind.TIME, "LAST", "its last datagram", "u8", "ns", 19, 70),
    ),
    screen=("exporter", "protocol", "domain", "flows", "flows_per_s", "datagrams_per_s", "lost", "broken", "waiting",
            "sampling_rate", "last_seen"),
    text=("exporter", "port", "protocol", "domain", "datagrams", "flows", "lost", "malformed", "broken", "templates",
          "waiting", "forgotten", "sampling_rate", "last_seen"),
    sort="-flows_per_s",
    hooks=("collector",),
    # Without `counting`: the collector may revise it, and totals would restart.
    metrics=(
        Metrics(
            ("exporter", "port", "protocol", "domain"),
            ("datagrams", "bytes", "flows", "lost", "numbered", "restarts", "unchecked", "malformed", "broken",
             "options", "templates", "waiting", "forgotten", "sampling_rate"),
            prefix="flows",
        ),
    ),
)

LEDGER = Table(
    name="ledger",
    fields=(
        Field("id", Kind.KEY, "ID", "position in the ledger", "u8", width=4, importance=1, role=FieldRole.NUMBER),
        Field("of", Kind.TEXT, "OF", "what is counted", "u4", width=22, importance=90, role=FieldRole.DECLARED),
        Field("term", Kind.TEXT, "TERM", "its fate; the first term is the sum of the others", "u4", width=18,
              importance=100, role=FieldRole.DECLARED),
        # Not `count`: metric names with that ending belong to histograms and summaries.
        Field("items", Kind.GAUGE, "COUNT", "items since the collector started", "u8", width=14, importance=95),
    ),
    screen=("of", "term", "items"),
    text=("of", "term", "items"),
    sort="id",
    hooks=("collector",),
    adds_up=False,
    metrics=(Metrics(("of", "term"), ("items",), prefix="flows_ledger"),),
)
# fmt: on

HOOK_COLLECTOR = Hook(
    "collector",
    "the statistics of nettop collect",
    tuple(field.name for table in (EXPORTERS, LEDGER) for field in table.fields if field.name != "id"),
    remedy="start nettop collect, or name another collector with --collector URL",
)

COLLECTOR = Option(
    "collector",
    "Collector to show: http://HOST:PORT or unix:PATH (the one on this host)",
    default="",
    metavar="URL",
)

LENS = Lens(
    id="collector",
    title="Collector",
    order=6,
    digit="6",
    question="which routers report flows, and whether all of them arrive",
    tables=(EXPORTERS, LEDGER),
    hooks=(HOOK_COLLECTOR,),
    options=(COLLECTOR,),
    of_hosts=False,
)
