# SPDX-License-Identifier: Apache-2.0
"""The numbers that two spans of time are compared by."""

from __future__ import annotations

from dataclasses import dataclass

ROWS = "rows"
"""In place of a column: the number of rows."""
PRESENCE = "presence"
"""In place of a column: the share of readings with such a row."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number of a table's rows, for each combination of values in the columns `by`, which survive restarts.

    - `column`: a counter or a sum, compared by its growth per second; a quantile, of what was counted in a span; ROWS
      or PRESENCE.
    - `says`: the sentence. `{now}` and `{before}` are the numbers, `{column}` is a value of `by`. What is between
      square brackets is left out if a value in it is unknown. `began` is the sentence if there was nothing before,
      `ended` if there is nothing now; without them, `says`. Without `says`, only these two are changes.
    - `least`: the smallest number that matters, in base units per second: differences far below it are none.
    - `topic`: changes of the same topic and the same values of `by` are one, the greatest.
    - `is_bad`: more of it is worse.
    - `comes_and_goes`: only rows that are not there at all count as nothing, and those that come and go anyway are
      compared with.
    """

    topic: str
    view: str
    by: tuple[str, ...]
    column: str
    least: float
    says: str = ""
    began: str = ""
    ended: str = ""
    filter: str = ""
    is_bad: bool = False
    comes_and_goes: bool = False


_SERVICE = ("process", "port")
_DROP = ("reason", "process", "port")
_TALKS = "[{process} ]talks to {target}: {now}, {before} before"
_TALKED = "[{process} ]no longer talks to {target}: {now}, {before} before"
_CALLED = "[{process}] :{local_port} has a new client {remote_address}: {now}, {before} before"
_LEFT = "[{process}] :{local_port} has lost its client {remote_address}: {now}, {before} before"

MEASURES = (
    Measure("services", "services", _SERVICE, "p99", 20_000,
            "{process} :{port} answers in {now} (p99), {before} before", filter="side=served", is_bad=True),
    Measure("services", "services", _SERVICE, "p50", 20_000,
            "{process} :{port} answers in {now} (median), {before} before", filter="side=served", is_bad=True),
    Measure("services", "services", _SERVICE, "answers", 0.5,
            "{process} :{port} answers {now} requests/s, {before}/s before", filter="side=served"),
    Measure("services", "services", _SERVICE, "unanswered", 0.2,
            "{process} :{port} leaves {now} requests/s unanswered, {before}/s before", filter="side=served",
            is_bad=True),
    Measure("used services", "services", _SERVICE, "p99", 20_000,
            "{process} gets answers of port {port} in {now} (p99), {before} before", filter="side=used", is_bad=True),
    Measure("used services", "services", _SERVICE, "p50", 20_000,
            "{process} gets answers of port {port} in {now} (median), {before} before", filter="side=used",
            is_bad=True),
    Measure("used services", "services", _SERVICE, "unanswered", 0.2,
            "{process} gets no answer of port {port}: {now} requests/s, {before}/s before", filter="side=used",
            is_bad=True),
    Measure("drops", "drops", _DROP, "packets", 1,
            "{reason} drops {now} packets/s[ for {process}][ :{port}], {before}/s before",
            filter="not severity=ordinary", is_bad=True),
    # The same drops as the kernel counts them, and those that only it counts.
    Measure("drops", "drops.counters", ("counter", "name", "interface"), "packets", 1,
            "{counter}[ on {interface}] ({name}): {now} packets/s, {before}/s before", is_bad=True),
    Measure("failures", "connections.failures", ("reason", "process", "port"), "failures", 0.2,
            "{now} connections/s fail[ for {process}][ at port {port}]: {reason}, {before}/s before", is_bad=True),
    Measure("traffic", "connections", ("process",), "bytes_sent", 2_000,
            "{process} sends {now}, {before} before"),
    Measure("traffic", "connections", ("process",), "bytes_received", 2_000,
            "{process} receives {now}, {before} before"),
    Measure("traffic", "connections", ("process",), ROWS, 5,
            "{process} has {now} connections, {before} before", filter="state=ESTABLISHED"),
    Measure("traffic", "connections", ("process", "remote_address", "remote_port"), "bytes", 2_000,
            began=_TALKS, ended=_TALKED, filter="remote_port>0 not direction~inbound", comes_and_goes=True),
    Measure("traffic", "connections", ("process", "local_port", "remote_address"), "bytes", 2_000,
            began=_CALLED, ended=_LEFT, filter="direction~inbound", comes_and_goes=True),
    Measure("retransmits", "connections", ("process",), "retransmits", 1,
            "{process} sends {now} segments/s again, {before}/s before", is_bad=True),
    Measure("CPU", "cpu.categories", ("category",), "time_ns", 5e6,
            "{category} takes {now} of a CPU, {before} before"),
    Measure("CPU of processes", "cpu.processes", ("process",), "network_ns", 5e6,
            "the network stack takes {now} of a CPU for {process}, {before} before"),
    Measure("interfaces", "bandwidth", ("interface",), "bytes_sent", 10_000,
            "{interface} sends {now}, {before} before"),
    Measure("interfaces", "bandwidth", ("interface",), "bytes_received", 10_000,
            "{interface} receives {now}, {before} before"),
    Measure("interface errors", "bandwidth", ("interface",), "errors", 0.2,
            "{interface} has {now} errors/s, {before}/s before", is_bad=True),
    Measure("latency", "latency", ("stage",), "p99", 50_000,
            "{stage} takes {now} (p99), {before} before", is_bad=True),
    Measure("findings", "findings", ("kind", "process"), PRESENCE, 0.1,
            began="[{process}: ]{kind}, found {now} of the time, {before} before",
            ended="[{process}: ]{kind} no longer found: {now} of the time, {before} before", filter="unseen=0"),
)  # fmt: skip
