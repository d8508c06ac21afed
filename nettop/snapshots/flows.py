# SPDX-License-Identifier: Apache-2.0
"""The flows lens: which routers and switches report flows to the collector on this host, and what became of them."""

from __future__ import annotations

from nettop.snapshots.schema import Field, Hook, Kind, Lens, Metrics, Option, Table

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
"""By the version in flows; that of datagrams which cannot be read is 0."""

COUNTINGS = {0: "unknown", 1: "datagrams", 2: "flows", 3: "records"}
"""What sequence numbers count, as the collector says it; records are flows and those of options."""

# fmt: off
EXPORTERS = Table(
    name="exporters",
    fields=(
        Field("id", Kind.KEY, "ID", "a number for address, port, protocol and domain", "u8", width=20, importance=1),
        Field("exporter", Kind.ADDRESS, "EXPORTER", "who sends datagrams; of sFlow the agent", "(2,)>u8", width=22,
              importance=100),
        Field("port", Kind.LABEL, "PORT", "UDP port that it sends from; of sFlow 0", "u4", width=5, importance=40),
        Field("protocol", Kind.ENUM, "PROTOCOL", "protocol of its datagrams", "u1", width=9, importance=90,
              labels=PROTOCOLS),
        Field("domain", Kind.LABEL, "DOMAIN", "observation domain, source ID, engine, or sub-agent of sFlow", "u4",
              width=8, importance=50),
        Field("datagrams", Kind.COUNTER, "DATAGRAMS", "datagrams received", "u8", "packets", 10, 80),
        Field("bytes", Kind.COUNTER, "BYTES", "their bytes", "u8", "bytes", 10, 45, rate_title="RATE"),
        Field("flows", Kind.COUNTER, "FLOWS", "flows that they gave", "u8", "flows", 10, 95, rate_title="FLOWS/s"),
        Field("lost", Kind.GAUGE, "LOST", "exports that never came, by their sequence numbers: datagrams, flows or "
              "records, as `counting` says", "u8", "exports", 8, 85, tone="warn"),
        Field("numbered", Kind.COUNTER, "NUMBERED", "exports that came, in the same unit", "u8", "exports", 9, 14),
        Field("counting", Kind.ENUM, "COUNTING", "what its sequence numbers count; unknown if nothing explains them",
              "u1", width=9, importance=28, labels=COUNTINGS),
        Field("restarts", Kind.COUNTER, "RESTARTS", "how often its sequence numbers began anew", "u8", "restarts", 8,
              30),
        Field("unchecked", Kind.COUNTER, "UNCHECKED", "datagrams of which nobody can say what was lost before them",
              "u8", "packets", 9, 15),
        Field("malformed", Kind.COUNTER, "MALFORMED", "datagrams whose header cannot be read", "u8", "packets", 9, 60,
              tone="warn"),
        Field("broken", Kind.COUNTER, "BROKEN", "parts of datagrams that cannot be read", "u8", "parts", 8, 55,
              tone="warn"),
        Field("options", Kind.COUNTER, "OPTIONS", "records that say something of the exporter", "u8", "records", 8, 20),
        Field("templates", Kind.GAUGE, "TEMPLATES", "templates that are known", "u8", "templates", 9, 35),
        Field("waiting", Kind.GAUGE, "WAITING", "sets that wait for their template", "u8", "sets", 8, 58, tone="warn"),
        Field("forgotten", Kind.COUNTER, "FORGOTTEN", "sets that were dropped before their template came, as too many "
              "waited", "u8", "sets", 9, 57, tone="warn"),
        Field("sampling_rate", Kind.GAUGE, "SAMPLING", "it looks at one packet in so many", "u8", "", 8, 65),
        Field("first_seen", Kind.TIME, "FIRST", "its first datagram since the collector began", "u8", "ns", 19, 10),
        Field("last_seen", Kind.TIME, "LAST", "its last datagram", "u8", "ns", 19, 70),
    ),
    key="id",
    screen=("exporter", "protocol", "domain", "flows", "flows_per_s", "datagrams_per_s", "lost", "broken", "waiting",
            "sampling_rate", "last_seen"),
    text=("exporter", "port", "protocol", "domain", "datagrams", "flows", "lost", "malformed", "broken", "templates",
          "waiting", "forgotten", "sampling_rate", "last_seen"),
    sort="-flows_per_s",
    text_sort="-flows",
    hooks=("collector",),
    # Without `counting`, which may change as more is known: totals would begin anew.
    metrics=(
        Metrics(
            ("exporter", "port", "protocol", "domain"),
            ("datagrams", "bytes", "flows", "lost", "numbered", "restarts", "unchecked", "malformed", "broken",
             "options", "templates", "waiting", "forgotten", "sampling_rate"),
        ),
    ),
)

LEDGER = Table(
    name="ledger",
    fields=(
        Field("id", Kind.KEY, "ID", "position in the ledger", "u8", width=4, importance=1),
        Field("of", Kind.TEXT, "OF", "what is counted", "u4", width=22, importance=90),
        Field("term", Kind.TEXT, "TERM", "what became of it; the first term is the sum of the others", "u4", width=18,
              importance=100),
        # Not `count`: metrics whose name ends so belong to a histogram or summary.
        Field("items", Kind.GAUGE, "COUNT", "how many, since the collector began", "u8", width=14, importance=95),
    ),
    key="id",
    screen=("of", "term", "items"),
    text=("of", "term", "items"),
    sort="id",
    text_sort="id",
    hooks=("collector",),
    adds_up=False,
)
# fmt: on

HOOK_COLLECTOR = Hook(
    "collector",
    "what nettop collect says of itself",
    tuple(field.name for table in (EXPORTERS, LEDGER) for field in table.fields if field.name != "id"),
    remedy="start nettop collect, or name another one by --collector URL",
)

COLLECTOR = Option(
    "collector",
    "collector to show: http://HOST:PORT or unix:PATH (the one on this host)",
    default="",
    metavar="URL",
)

LENS = Lens(
    id="flows",
    title="Flows",
    order=6,
    digit="6",
    question="which routers report flows, and do all of them arrive?",
    tables=(EXPORTERS, LEDGER),
    hooks=(HOOK_COLLECTOR,),
    options=(COLLECTOR,),
)
