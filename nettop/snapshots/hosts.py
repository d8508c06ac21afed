# SPDX-License-Identifier: Apache-2.0
"""Lenses whose rows come from several hosts: every table has the column `host`."""

from __future__ import annotations

from dataclasses import replace

from nettop.snapshots.schema import Field, Kind, Lens, Table

HOST = Field("host", Kind.TEXT, "HOST", "the host of the row, as named by --host", importance=98)
LOST_HOST = "lost: "
"""Begins the gap that is named by a host without readings; the cause follows."""
_ID = Field("id", Kind.KEY, "ID", "number made of the host and the row", importance=1)
"""The key of tables whose own key is no number of 64 bits, and so cannot tell hosts apart."""


def with_host(lens: Lens) -> Lens:
    """Return a lens whose tables have the column `host`. It has no options: they belong to the sources, which are on
    other hosts."""
    tables = tuple(map(_with_host, lens.tables))
    common = tuple((HOST.name, *names) for names in lens.common)
    return replace(lens, tables=tables, options=(), common=common)


def _with_host(table: Table) -> Table:
    has_room = table.by_name[table.key].dtype == _ID.dtype
    # Keys that are numbered as rows come have no order among hosts.
    in_order = "time" if table.append else table.text_sort
    (heading, names), *sections = table.details or (("", ()),)
    return replace(
        table,
        fields=(HOST, *(() if has_room else (_ID,)), *table.fields),
        key=table.key if has_room else _ID.name,
        screen=table.screen
        if table.name == "findings"
        else (HOST.name, *table.screen),  # its sentences name it
        text=(HOST.name, *table.text),
        text_sort=in_order,
        details=((heading, (HOST.name, *names)), *sections) if names else (),
    )


# --- the hosts themselves -----------------------------------------------------------------------------------------

LIVE, LOST = 1, 2
STATES = {LIVE: "live", LOST: "lost"}
HOSTS = Table(
    name="hosts",
    fields=(
        HOST,
        replace(_ID, help="number made of the host's name"),
        Field("state", Kind.ENUM, "STATE", "live: it sends readings; lost: it does not, see CAUSE", width=6,
              importance=95, labels=STATES),
        Field("findings", Kind.GAUGE, "FINDINGS", "findings that no other one explains", "u4", "findings",
              importance=94),
        Field("worst", Kind.TEXT, "WORST", "the worst finding; of a lost host, why it is lost", width=60,
              importance=70),
        Field("connections", Kind.GAUGE, "CONNS", "TCP connections", "u4", "connections", importance=90),
        Field("bytes_sent", Kind.COUNTER, "SENT", "bytes sent by TCP and UDP sockets since they were opened",
              unit="bytes", width=9, importance=88, tone="sent", rate_title="SENT/s"),
        Field("bytes_received", Kind.COUNTER, "RECEIVED", "bytes received by TCP and UDP sockets since they were "
              "opened", unit="bytes", width=9, importance=87, tone="received", rate_title="RECEIVED/s"),
        Field("bytes_total", Kind.SUM, "BYTES", "bytes sent and received", width=9, importance=40,
              parts=("bytes_sent", "bytes_received"), rate_title="BYTES/s"),
        Field("connected", Kind.COUNTER, "CONNECTED", "connections that it opened, since nettop started there",
              unit="connections", importance=60, rate_title="CONN/s"),
        Field("accepted", Kind.COUNTER, "ACCEPTED", "connections that it accepted, since nettop started there",
              unit="connections", width=9, importance=59, rate_title="ACCEPT/s"),
        Field("failed", Kind.COUNTER, "FAILED", "connects that failed, since nettop started there", unit="connects",
              importance=62, tone="warn", rate_title="FAILED/s"),
        Field("time_wait", Kind.GAUGE, "TIME_WAIT", "sockets in TIME_WAIT", "u4", "sockets"),
        Field("read", Kind.TIME, "READ", "when it was read last, by its own clock", importance=30),
    ),
    screen=("host", "state", "findings", "connections", "bytes_sent_per_s", "bytes_received_per_s", "connected_per_s",
            "accepted_per_s", "failed_per_s", "worst"),
    text=("host", "state", "findings", "connections", "bytes_sent", "bytes_received", "connected", "accepted", "failed",
          "worst"),
    sort="-findings",
    watched="bytes_total",
)  # fmt: skip
HOSTS_LENS = Lens(
    id="hosts",
    title="Hosts",
    order=8,
    digit="8",
    question="which host is in trouble",
    tables=(HOSTS,),
)
"""A line for each host; only with --host."""
