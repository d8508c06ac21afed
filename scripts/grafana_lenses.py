# SPDX-License-Identifier: Apache-2.0
"""A dashboard for each lens over Prometheus: first what somebody on call asks, then every metric that it declares.

Rows of details follow from the declarations of the lenses, so that a new metric or a new lens is on a dashboard without
an edit. Overviews are chosen by hand: OVERVIEWS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from grafana_panels import (
    ANY_IS_BAD,
    ANY_IS_NOTABLE,
    GREEN,
    ORANGE,
    OTHERS_GREY,
    PROMETHEUS,
    RED,
    SENT_BELOW,
    Json,
    Query,
    Row,
    Steps,
    dashboard,
    heat_map,
    number,
    override,
    query_variable,
    source_variable,
    states,
    table,
    time_series,
)

from nettop.query.units import TIMES
from nettop.serve.metrics.families import NAMESPACE, Family, SeriesSet, count_families, series_sets
from nettop.serve.metrics.series import OTHERS, REPLACED
from nettop.snapshots import lenses, view_name
from nettop.snapshots.bandwidth import BACKINGS, UPLINK
from nettop.snapshots.connections import RETRANSMITS_WARN_ABOVE
from nettop.snapshots.cpu import ENTRIES, RX_SOFTIRQ
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Kind, Lens
from nettop.snapshots.services import SIDES, USED

HOST_VARIABLE = "host"
_HOST = f'instance=~"${HOST_VARIABLE}"'
_OF_ONE_HOST = frozenset({"cpu", "interface", "namespace", "exporter"})
"""Labels whose values mean something else on each host: their series are never added up over hosts."""
_CHOSEN = {"bandwidth": ("backing", "interface")}
"""Labels by whose values the details of a lens can be narrowed down, besides the first one of its histograms."""
_ON_INTERFACE = ('interface=~"$interface"',)
_QUANTILES = (0.5, 0.9, 0.99)
_CPU_LENSES = ("cpu", SELF.id)
"""The lenses whose times are those of CPUs."""
_OPEN_MOST = 20
"""Of how many series a row may be that is open: what is collapsed is not queried."""
_SHAPES = (": distribution", ": quantiles")
"""How the titles of the panels end that show a histogram."""
_WARN_SHARE, _BAD_SHARE = 0.7, 0.9
_BUSY: Steps = ((None, GREEN), (_WARN_SHARE, ORANGE), (_BAD_SHARE, RED))
_RETRANSMITS: Steps = ((None, GREEN), (RETRANSMITS_WARN_ABOVE, ORANGE), (5 * RETRANSMITS_WARN_ABOVE, RED))

# --- PromQL ---------------------------------------------------------------------------------------------------


def _of(name: str, *matchers: str) -> str:
    """The series of a metric, of the chosen hosts."""
    return f"{NAMESPACE}_{name}{{{', '.join((_HOST, *matchers))}}}"


def _rate(name: str, *matchers: str) -> str:
    return f"rate({_of(name, *matchers)}[$__rate_interval])"


def _sum(expr: str, *by: str) -> str:
    return f"sum by ({', '.join(by)}) ({expr})" if by else f"sum({expr})"


def _sum_rate(name: str, *by: str, only: Sequence[str] = ()) -> str:
    return _sum(_rate(name, *only), *by)


# --- details --------------------------------------------------------------------------------------------------


def _chosen(lens: Lens) -> tuple[str, ...]:
    """The labels for which a lens's dashboard has a variable each."""
    firsts = [
        declared.metrics.labels[0]
        for declared in series_sets(lens)
        if any(family.buckets for family in declared.families)
    ]
    return tuple(dict.fromkeys((*_CHOSEN.get(lens.id, ()), *firsts)))


def _detail_rows(lens: Lens) -> Iterator[Row]:
    # Histograms first, since a reader compares the shapes of these; then what is listed by name, then the rest.
    order = sorted(series_sets(lens), key=lambda each: (not _is_repeated(each), not each.metrics.top))
    has_open = False
    for declared in order:
        title = _row_title(lens, declared)
        panels = [panel for family in declared.all_families for panel in _details(lens, declared, family)]
        if _is_repeated(declared):
            label = declared.metrics.labels[0]
            shapes = [panel for panel in panels if panel["title"].endswith(_SHAPES)]
            yield Row(f"{label.capitalize()} ${label}", shapes, repeat=label)
            yield Row(title, [panel for panel in panels if panel not in shapes], collapsed=True)
            continue
        is_open = not has_open and bool(declared.metrics.top) and declared.metrics.most <= _OPEN_MOST
        has_open |= is_open
        yield Row(title, panels, collapsed=not is_open)


def _is_repeated(declared: SeriesSet) -> bool:
    """Whether each value of its first label has a row: histograms of all together would say nothing."""
    return not declared.metrics.top and any(family.buckets for family in declared.families)


def _row_title(lens: Lens, declared: SeriesSet) -> str:
    metrics, name = declared.metrics, declared.table.name
    is_said = declared.table is lens.main or any(name.startswith(label) for label in metrics.labels)
    table = "" if is_said else f": {name}"
    of_largest = f", of each host the {metrics.most} largest and {OTHERS}" if metrics.top else ""
    return f"{lens.title}{table} by {', '.join(metrics.labels)}{of_largest}"


def _details(lens: Lens, declared: SeriesSet, family: Family) -> list[Json]:
    """The panels of a metric."""
    labels = (*declared.metrics.labels, *filter(None, [family.label]))
    by = (*(["instance"] if _OF_ONE_HOST & set(labels) else []), *labels)
    matchers = _matchers(lens, declared)
    title, text = _title(lens, declared, family), family.help
    legend = _legend(by)
    if family.buckets:
        return _of_histogram(family, by, matchers, declared, title)
    name = family.sample_name.removeprefix(f"{NAMESPACE}_")
    unit, times = _unit(lens, declared, family)
    expr = (
        _sum_rate(name, *by, only=matchers)
        if family.kind is Kind.COUNTER
        else _sum(_of(name, *matchers), *by)
    )
    is_directed = family.label == "direction"
    is_stacked = bool(declared.metrics.top) or unit == "percentunit"
    return [
        time_series(
            title,
            [Query(f"{times}{expr}", legend)],
            unit,
            size=(12, 9),
            description=text + _of_rate(unit, family),
            stack="normal" if is_stacked else "none",
            overrides=[
                *([SENT_BELOW] if is_directed else []),
                *([OTHERS_GREY] if declared.metrics.top else []),
            ],
        )
    ]


def _legend(by: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)


def _matchers(lens: Lens, declared: SeriesSet) -> list[str]:
    labels, top = declared.metrics.labels, declared.metrics.top
    others = f"|{OTHERS}" if top else ""
    chosen = [f'{label}=~"${label}{others}"' for label in labels if label in _chosen(lens)]
    return [*chosen, *([f'{labels[0]}!="{REPLACED}"'] if top else [])]


def _title(lens: Lens, declared: SeriesSet, family: Family) -> str:
    """What a metric counts: its name without that of the set, and without the unit where the axis says it."""
    prefix = declared.metrics.prefix or view_name(lens, declared.table).replace(".", "_")
    words = family.name.removeprefix(f"{NAMESPACE}_{prefix}").lstrip("_")
    words = re.sub(r"(^|_)(seconds|bytes_per_second)$", "", words)
    is_time = family.kind is Kind.COUNTER and family.name.endswith("_seconds")
    return _words(words or ("time" if is_time else prefix))


def _unit(lens: Lens, declared: SeriesSet, family: Family) -> tuple[str, str]:
    """Grafana's unit of what is drawn of a metric, and by what that is multiplied."""
    field = declared.table.by_name.get(family.columns[0][1])
    return unit_of(lens, family, field.unit if field else "")


def unit_of(lens: Lens, family: Family, unit: str) -> tuple[str, str]:
    """As _unit, by the unit of the field."""
    is_rate = family.kind is Kind.COUNTER
    # What interfaces carry is said in bits, as their speeds are.
    if lens.id == "bandwidth" and unit in ("bytes", "bytes/s"):
        return "bps", "8 * "
    if unit in TIMES:
        if not is_rate:
            return "s", ""
        return ("percentunit" if lens.id in _CPU_LENSES else "short"), ""
    known = {"bytes": ("Bps", "bytes"), "bytes/s": ("Bps", "Bps"), "packets": ("pps", "short")}
    of_rate, of_value = known.get(unit, ("cps", "short"))
    return (of_rate if is_rate else of_value), ""


def _of_rate(unit: str, family: Family) -> str:
    """How the rate of a time is to be read."""
    if family.kind is not Kind.COUNTER or not family.name.endswith("_seconds"):
        return ""
    return (
        ". 100 % is one CPU."
        if unit == "percentunit"
        else ". Seconds in each second: how many at a time, on average."
    )


def _of_histogram(
    family: Family, by: Sequence[str], matchers: Sequence[str], declared: SeriesSet, title: str
) -> list[Json]:
    """Its distribution over time, where one is shown, its quantiles, and how many there were."""
    name = family.name.removeprefix(f"{NAMESPACE}_")
    unit = "s" if family.name.endswith("_seconds") else "short"
    is_top = bool(declared.metrics.top)
    legend = _legend(by)
    # Its shapes are shown for one value of the first label at a time.
    kept = tuple(by) if is_top else tuple(label for label in by if label != declared.metrics.labels[0])
    buckets = _rate(f"{name}_bucket", *matchers)
    overrides = [OTHERS_GREY] if is_top else []
    shape = heat_map(
        title + _SHAPES[0],
        [Query(_sum(buckets, "le"), "{{le}}", format="heatmap")],
        unit,
        size=(12, 9),
        description=f"{family.help}: how many per second in each bucket",
        value_unit="cps",
    )
    quantiles = time_series(
        title + _SHAPES[1],
        [
            Query(
                f"histogram_quantile({share}, {_sum(buckets, 'le', *kept)})",
                f"p{100 * share:g} {_legend(kept)}".strip(),
            )
            for share in ((0.5, 0.99) if is_top else _QUANTILES)
        ],
        unit,
        size=(12, 9),
        description=f"{family.help}: half, and so on, are no longer than this",
        is_logarithmic=True,
        overrides=overrides,
    )
    count = time_series(
        f"{title}: how many",
        [Query(_sum_rate(f"{name}_count", *by, only=matchers), legend)],
        "cps",
        size=(12, 9),
        description=f"{family.help}: how many were measured per second",
        stack="normal" if is_top else "none",
        overrides=overrides,
    )
    mean = time_series(
        f"{title}: mean",
        [
            Query(
                f"{_sum_rate(f'{name}_sum', *by, only=matchers)}"
                f" / ({_sum_rate(f'{name}_count', *by, only=matchers)} > 0)",
                legend,
            )
        ],
        unit,
        size=(12, 9),
        description=f"{family.help}: their mean",
        is_logarithmic=True,
        overrides=overrides,
    )
    return [quantiles, count, mean] if is_top else [shape, quantiles, count, mean]


# --- nettop itself --------------------------------------------------------------------------------------------

_UP = {0: ("not read", RED), 1: ("read", GREEN)}


def _own_row(lens: Lens) -> Row:
    """What nettop costs, what it lost, and how it reads this lens."""
    this = f'lens="{lens.id}"'
    panels = [
        states(
            "Read",
            [Query(_sum(_of("lens_up", this), "instance"), "{{instance}}")],
            _UP,
            description="Whether the lens is read",
        ),
        time_series(
            "CPU time",
            [
                Query(
                    _sum_rate("self_seconds_total", "instance", only=('kind="total"',)), "{{instance}} nettop"
                ),
                Query(_sum_rate("self_seconds_total", "instance", only=(this,)), "{{instance}} this lens"),
            ],
            "percentunit",
            description="Of the process, all lenses together, and what reading this one takes. 100 % is one CPU.",
        ),
        time_series(
            "Memory",
            [
                Query(_sum(_of("self_memory_bytes", 'kind="total"'), "instance"), "{{instance}} nettop"),
                Query(_sum(_of("self_memory_bytes", this), "instance"), "{{instance}} kernel, this lens"),
            ],
            "bytes",
            description="Resident memory of the process, and what its maps and programs take in the kernel",
        ),
        time_series(
            "Lost",
            [
                Query(_sum_rate("lost_total", "instance", "what", only=(this,)), "{{instance}} {{what}}"),
                Query(
                    _sum_rate("self_lost_total", "instance", "name", only=(this,)), "{{instance}} in {{name}}"
                ),
            ],
            "cps",
            description="What is missing from the numbers of this lens; docs/fields.md says what each loss is",
        ),
        time_series(
            "Readings",
            [
                Query(
                    f"time() - {_of('reading_timestamp_seconds', this)}", "{{instance}} age of the last one"
                ),
            ],
            "s",
            description="How old the numbers are. Prometheus sees them one scrape later.",
        ),
        time_series(
            "Late readings",
            [Query(_sum_rate("self_late_total", "instance"), "{{instance}}")],
            "cps",
            description="Readings that were skipped because the one before took too long",
        ),
        table(
            "Mechanisms",
            [Query(_of("hook_info", this), instant=True, format="table")],
            description="How each hook of this lens is provided on this kernel; n/a: what needs it has no numbers",
            columns=[("instance", "Host"), ("hook", "Hook"), ("mechanism", "Mechanism")],
            overrides=[
                override(
                    "Mechanism",
                    mappings=[{"type": "value", "options": {"n/a": {"text": "n/a", "color": ORANGE}}}],
                    custom__cellOptions={"type": "color-text"},
                )
            ],
        ),
        table(
            "Versions",
            [Query(_of("build_info"), instant=True, format="table")],
            columns=[("instance", "Host"), ("job", "Job"), ("version", "nettop")],
        ),
        time_series(
            "HTTP answers",
            [
                Query(_sum_rate("http_answers_total", "status"), "{{status}}"),
                Query(_sum_rate("http_refused_total", "reason"), "ended: {{reason}}"),
            ],
            "reqps",
            description="By class of their status, and requests and connections that were ended, by the limit",
        ),
        time_series(
            "HTTP connections",
            [Query(_sum(_of("http_connections"), "instance"), "{{instance}}")],
            "short",
            description="That are open",
        ),
    ]
    return Row("nettop itself", panels, collapsed=True)


def _host_numbers(lens: Lens) -> list[Json]:
    """What every overview begins with."""
    up = _of("lens_up", f'lens="{lens.id}"')
    return [
        number("Hosts", [Query(f"count({up})")], "short", size=(3, 4), description="That Prometheus scrapes"),
        number(
            "Not read",
            [Query(f"sum(1 - {up})")],
            "short",
            steps=ANY_IS_BAD,
            size=(3, 4),
            description="Hosts on which this lens cannot be read; the row “nettop itself” says which",
        ),
    ]


# --- overviews ------------------------------------------------------------------------------------------------


def _retransmitted(*by: str) -> str:
    sent = _sum_rate("connections_data_packets_total", *by, only=('direction="sent"',))
    return f"{_sum_rate('connections_retransmits_total', *by)} / ({sent} > 0)"


def _connections() -> list[Json]:
    return [
        number("Sockets", [Query(_sum(_of("connections_sockets")))], "short", size=(3, 4)),
        number(
            "Established",
            [Query(_sum(_of("connections_sockets", 'protocol="tcp"', 'state="ESTABLISHED"')))],
            "short",
            size=(3, 4),
        ),
        number("Opened here", [Query(_sum_rate("connections_connected_total"))], "cps", size=(3, 4)),
        number("Accepted", [Query(_sum_rate("connections_accepted_total"))], "cps", size=(3, 4)),
        number(
            "Failed",
            [Query(_sum_rate("connections_failed_total"))],
            "cps",
            steps=ANY_IS_NOTABLE,
            size=(3, 4),
            description="Connections that never opened",
        ),
        number(
            "Sent again",
            [Query(_retransmitted())],
            "percentunit",
            steps=_RETRANSMITS,
            size=(3, 4),
            description="Of the data segments of TCP, those that were sent more than once",
        ),
        time_series(
            "Payload",
            [
                Query(
                    _sum_rate("connections_bytes_total", "instance", "direction"),
                    "{{instance}} {{direction}}",
                )
            ],
            "Bps",
            description="Of TCP and UDP, each byte once. What is sent is below the axis.",
            overrides=[SENT_BELOW],
        ),
        time_series(
            "Connections",
            [
                Query(_sum_rate(f"connections_{name}_total"), text)
                for name, text in (
                    ("connected", "opened here"),
                    ("accepted", "accepted"),
                    ("closed", "closed"),
                    ("failed", "failed"),
                )
            ],
            "cps",
            overrides=[override("failed", color={"mode": "fixed", "fixedColor": RED})],
        ),
        time_series(
            "Failures by reason",
            [Query(_sum_rate("connections_failures_total", "reason"), "{{reason}}")],
            "cps",
            description="Connections that never opened, and those that were reset",
            stack="normal",
        ),
        time_series(
            "Segments sent again",
            [Query(_retransmitted("instance"), "{{instance}}")],
            "percentunit",
            description="Share of the data segments of TCP, by host",
        ),
        time_series(
            "Sockets by state",
            [
                Query(_sum(_of("connections_sockets"), "protocol", "state"), "{{protocol}} {{state}}"),
                Query(_sum(_of("connections_time_wait")), "tcp TIME_WAIT"),
            ],
            "short",
        ),
        time_series(
            "What keeps TCP from sending",
            [
                Query(_sum_rate("connections_busy_seconds_total"), "data under way"),
                Query(_sum_rate("connections_receiver_limited_seconds_total"), "receiver's window"),
                Query(_sum_rate("connections_send_buffer_limited_seconds_total"), "send buffer"),
            ],
            "short",
            description="How many sockets at a time, on average",
        ),
    ]


def _cpu() -> list[Json]:
    time = "cpu_network_seconds_total"
    cpus = f"count(count by (instance, cpu) ({_of(time)}))"
    cpus_by_host = f"count by (instance) (count by (instance, cpu) ({_of(time)}))"
    by_cpu = _sum_rate(time, "instance", "cpu")
    rx_softirq = f'entry="{ENTRIES[RX_SOFTIRQ]}"'
    received = _sum_rate(time, "instance", "cpu", only=(rx_softirq,))
    return [
        number(
            "Network",
            [Query(f"{_sum_rate(time)} / {cpus}")],
            "percentunit",
            steps=_BUSY,
            size=(6, 4),
            description="Share of all CPUs that the network stack takes",
        ),
        number(
            "Busiest CPU",
            [Query(f"max({by_cpu})")],
            "percentunit",
            steps=_BUSY,
            size=(6, 4),
            description="Network time of the CPU that has most of it",
        ),
        number(
            "RX softirq of the busiest CPU",
            [Query(f"max({received})")],
            "percentunit",
            steps=_BUSY,
            size=(6, 4),
            description="Near 100 % this CPU cannot take more packets, and the kernel drops them",
        ),
        time_series(
            "Network by entry point",
            [Query(f"{_sum_rate(time, 'entry')} / on () group_left () {cpus}", "{{entry}}")],
            "percentunit",
            size=(24, 9),
            description="Share of all CPUs, by where the network stack was entered",
            stack="normal",
            names_at_right=True,
        ),
        time_series(
            "Network by host",
            [Query(f"{_sum_rate(time, 'instance')} / {cpus_by_host}", "{{instance}}")],
            "percentunit",
            description="Share of the host's CPUs",
        ),
        time_series(
            "Network by CPU",
            [Query(by_cpu, "{{instance}} CPU {{cpu}}")],
            "percentunit",
            description="100 % is one CPU. One busy CPU beside idle ones: spread the queues of the interface, or RPS.",
        ),
        time_series(
            "RX softirq by part of the stack",
            [Query(_sum_rate("cpu_category_seconds_total", "category", only=(rx_softirq,)), "{{category}}")],
            "percentunit",
            description="Shares of its samples",
            stack="percent",
        ),
        time_series(
            "By process",
            [
                Query(
                    _sum_rate(
                        "cpu_by_process_network_seconds_total", "process", only=(f'process!="{REPLACED}"',)
                    ),
                    "{{process}}",
                )
            ],
            "percentunit",
            description="100 % is one CPU",
            stack="normal",
            overrides=[OTHERS_GREY],
        ),
    ]


def _bandwidth() -> list[Json]:
    uplink = f'backing="{BACKINGS[UPLINK]}"'
    names = ("instance", "namespace", "interface")
    sent, received = 'direction="sent"', 'direction="received"'
    speed = f"({_sum(_of('bandwidth_speed_bytes_per_second', uplink), *names)} > 0)"
    use = (
        f"{_sum_rate('bandwidth_bytes_total', *names, 'direction', only=(uplink,))}"
        f" / on ({', '.join(names)}) group_left () {speed}"
    )
    dropped, errors = (_sum_rate(f"bandwidth_{name}_total", only=(uplink,)) for name in ("drops", "errors"))
    of_uplinks = "Of uplinks only: what passes a bridge or a tunnel would be counted again on each interface."
    return [
        number(
            "Received",
            [Query(f"8 * {_sum_rate('bandwidth_bytes_total', only=(uplink, received))}")],
            "bps",
            size=(4, 4),
            description=of_uplinks,
        ),
        number(
            "Sent",
            [Query(f"8 * {_sum_rate('bandwidth_bytes_total', only=(uplink, sent))}")],
            "bps",
            size=(4, 4),
            description=of_uplinks,
        ),
        number(
            "Busiest link",
            [Query(f"max({use})")],
            "percentunit",
            steps=_BUSY,
            size=(5, 4),
            description="Of what it negotiated, in the busier direction; n/a where no uplink says its speed",
        ),
        number(
            "Dropped and errors",
            [Query(f"{dropped} + {errors}")],
            "pps",
            steps=ANY_IS_NOTABLE,
            size=(5, 4),
            description="By the own counters of the uplinks",
        ),
        time_series(
            "Uplinks",
            [
                Query(
                    f"8 * {_sum_rate('bandwidth_bytes_total', *names, 'direction', only=(uplink,))}",
                    "{{instance}} {{namespace}} {{interface}} {{direction}}",
                )
            ],
            "bps",
            size=(24, 9),
            description="What is sent is below the axis",
            overrides=[SENT_BELOW],
            names_at_right=True,
        ),
        time_series(
            "Use of uplinks",
            [Query(use, "{{instance}} {{namespace}} {{interface}} {{direction}}")],
            "percentunit",
            description="Share of the negotiated speed; nothing where the interface has none",
            maximum=1,
        ),
        time_series(
            "Drops and errors of all interfaces",
            [
                Query(
                    _sum_rate("bandwidth_drops_total", *names, "direction"),
                    "{{instance}} {{namespace}} {{interface}} dropped, {{direction}}",
                ),
                Query(
                    _sum_rate("bandwidth_errors_total", *names),
                    "{{instance}} {{namespace}} {{interface}} errors",
                ),
            ],
            "pps",
            description="By the interface's own counters",
        ),
        time_series(
            "By protocol",
            [
                Query(
                    f"8 * {_sum_rate('bandwidth_protocol_bytes_total', 'protocol', 'direction', only=_ON_INTERFACE)}",
                    "{{protocol}} {{direction}}",
                )
            ],
            "bps",
            description="On the chosen interfaces",
            stack="normal",
            overrides=[SENT_BELOW],
        ),
        time_series(
            "By service",
            [
                Query(
                    f"8 * {_sum_rate('bandwidth_service_bytes_total', 'service', 'direction', only=_ON_INTERFACE)}",
                    "{{service}} {{direction}}",
                )
            ],
            "bps",
            description="On the chosen interfaces, by the service of the port",
            stack="normal",
            overrides=[SENT_BELOW],
        ),
        time_series(
            "Mean size of packets",
            [
                Query(
                    f"{_sum_rate('bandwidth_bytes_total', 'instance', 'direction', only=(uplink,))} / "
                    f"({_sum_rate('bandwidth_packets_total', 'instance', 'direction', only=(uplink,))} > 0)",
                    "{{instance}} {{direction}}",
                )
            ],
            "decbytes",
            description="On uplinks",
        ),
    ]


def _latency() -> list[Json]:
    buckets = _sum_rate("latency_seconds_bucket", "le", "stage")
    without = "latency_unmatched_total"
    return [
        number(
            "Packets measured",
            [Query(_sum_rate("latency_matched_total"))],
            "pps",
            size=(5, 4),
            description="In all stages together: one packet passes several",
        ),
        number(
            "Without a duration",
            [Query(f"{_sum_rate(without)} / ({_sum_rate('latency_seen_total')} > 0)")],
            "percentunit",
            size=(5, 4),
            description="Of the packets that came to a stage: without a stamp, merged, cloned, or without room",
        ),
        number(
            "Dropped within a stage",
            [Query(_sum_rate("latency_dropped_total"))],
            "pps",
            steps=ANY_IS_NOTABLE,
            size=(4, 4),
        ),
        number(
            "One packet in",
            [Query(f"max({_of('latency_one_in')})")],
            "short",
            size=(4, 4),
            description="Is followed, on the host that follows the fewest",
        ),
        time_series(
            "99 % are no longer than",
            [Query(f"histogram_quantile(0.99, {buckets})", "{{stage}}")],
            "s",
            size=(12, 10),
            description="By stage: where packets wait",
            is_logarithmic=True,
        ),
        time_series(
            "Half are no longer than",
            [Query(f"histogram_quantile(0.5, {buckets})", "{{stage}}")],
            "s",
            size=(12, 10),
            description="By stage: where packets wait",
            is_logarithmic=True,
        ),
        time_series(
            "99 % are no longer than, by host",
            [
                Query(
                    "histogram_quantile(0.99, "
                    + _sum_rate(
                        "latency_seconds_bucket", "le", "instance", "stage", only=('stage=~"$stage"',)
                    )
                    + ")",
                    "{{instance}} {{stage}}",
                )
            ],
            "s",
            description="In the chosen stages",
            is_logarithmic=True,
        ),
        time_series(
            "Packets by stage",
            [Query(_sum_rate("latency_seen_total", "stage"), "{{stage}}")],
            "pps",
        ),
    ]


def _drops() -> list[Json]:
    by_reason = "drops_packets_total"
    kept = (f'reason!="{REPLACED}"',)
    counted = (f'name!="{REPLACED}"',)
    return [
        number(
            "Dropped",
            [Query(_sum_rate(by_reason, only=kept))],
            "pps",
            steps=ANY_IS_NOTABLE,
            size=(6, 4),
            description="Packets that the kernel dropped, for whatever reason: some are normal",
        ),
        number("Bytes", [Query(_sum_rate("drops_bytes_total", only=kept))], "Bps", size=(6, 4)),
        number(
            "By counters",
            [Query(_sum_rate("drops_by_name_packets_total", only=counted))],
            "pps",
            steps=ANY_IS_NOTABLE,
            size=(6, 4),
            description="Drops that the kernel's own counters know, some of them beside those by reason",
        ),
        time_series(
            "By reason",
            [Query(_sum_rate(by_reason, "reason", only=kept), "{{reason}}")],
            "pps",
            size=(24, 10),
            description="The kernel's names of reasons; `nettop --view drops` says what each means",
            stack="normal",
            overrides=[OTHERS_GREY],
            names_at_right=True,
        ),
        time_series(
            "By host",
            [Query(_sum_rate(by_reason, "instance", only=kept), "{{instance}}")],
            "pps",
        ),
        time_series(
            "By interface",
            [
                Query(
                    _sum_rate(by_reason, "instance", "namespace", "interface", only=kept),
                    "{{instance}} {{namespace}} {{interface}}",
                )
            ],
            "pps",
            overrides=[OTHERS_GREY],
        ),
        time_series(
            "By protocol",
            [Query(_sum_rate(by_reason, "protocol", only=kept), "{{protocol}}")],
            "pps",
            stack="normal",
            overrides=[OTHERS_GREY],
        ),
        time_series(
            "By counter",
            [Query(_sum_rate("drops_by_name_packets_total", "name", only=counted), "{{name}}")],
            "pps",
            description="The names of nstat and ip -s link, such as those of a full accept queue or receive buffer",
            overrides=[OTHERS_GREY],
        ),
        table(
            "Since the beginning of the time above",
            [
                Query(
                    f"sort_desc(sum by (reason, protocol) (increase({_of(by_reason, *kept)}[$__range])) > 0)",
                    instant=True,
                    format="table",
                )
            ],
            columns=[("reason", "Reason"), ("protocol", "Protocol"), ("Value", "Packets")],
            overrides=[override("Packets", unit="short", decimals=0)],
            sort="Packets",
        ),
    ]


def _flows() -> list[Json]:
    lost = f"clamp_min(deriv({_of('flows_lost')}[$__rate_interval]), 0)"
    bad = f"{_sum_rate('flows_malformed_total')} + {_sum_rate('flows_broken_total')}"
    of = ("instance", "exporter")
    return [
        number(
            "Exporters",
            [Query(f"count(count by (instance, exporter) ({_of('flows_total')}))")],
            "short",
            size=(3, 4),
        ),
        number("Datagrams", [Query(_sum_rate("flows_datagrams_total"))], "pps", size=(4, 4)),
        number("Flows", [Query(_sum_rate("flows_total"))], "cps", size=(4, 4)),
        number(
            "Lost on the way here",
            [Query(f"sum({lost})")],
            "cps",
            steps=ANY_IS_NOTABLE,
            size=(4, 4),
            description="Exports that never came, by their sequence numbers",
        ),
        number(
            "Cannot be read",
            [Query(bad)],
            "cps",
            steps=ANY_IS_NOTABLE,
            size=(3, 4),
            description="Datagrams whose header, or parts of which, cannot be read",
        ),
        time_series("Flows by exporter", [Query(_sum_rate("flows_total", *of), "{{exporter}}")], "cps"),
        time_series(
            "Datagrams by exporter",
            [Query(_sum_rate("flows_datagrams_total", *of), "{{exporter}}")],
            "pps",
            description="One that falls to 0 is silent",
        ),
        time_series(
            "Lost by exporter",
            [Query(_sum(lost, *of), "{{exporter}}")],
            "cps",
            description="Exports that never came, by their sequence numbers: the network, or the collector's host",
        ),
        time_series(
            "Sets that wait for their template",
            [Query(_sum(_of("flows_waiting"), *of), "{{exporter}}")],
            "short",
            description="They are decoded when it comes: exporters repeat templates every few minutes",
        ),
        table(
            "Exporters",
            [
                Query(
                    f"sum by (exporter, port, protocol, domain) ({_of('flows_sampling_rate')})",
                    instant=True,
                    format="table",
                )
            ],
            columns=[
                ("exporter", "Exporter"),
                ("port", "Port"),
                ("protocol", "Protocol"),
                ("domain", "Domain"),
                ("Value", "One packet in"),
            ],
        ),
        table(
            "Ledger",
            [Query(_sum(_of("flows_ledger_items"), "instance", "of", "term"), instant=True, format="table")],
            description="What became of all that arrived, since the collector began: the first term is the sum of the "
            "others",
            columns=[("instance", "Host"), ("of", "Of"), ("term", "Term"), ("Value", "Count")],
        ),
    ]


_FAILURES_OF_SERVICES = (
    ("Unanswered by service", "unanswered", "reqps", "Requests whose connection ended without an answer"),
    (
        "Closed by the service",
        "closed",
        "reqps",
        "Unanswered requests whose connection the service closed: it fails on them",
    ),
    ("Failed connects by service", "failed_connects", "cps", "Connects that were refused, or never answered"),
)
"""Title, counter, unit and description of each panel."""


def _services() -> list[Json]:
    kept = (f'process!="{REPLACED}"',)
    served = (f'side!="{SIDES[USED]}"', *kept)
    chosen = (f'process=~"$process|{OTHERS}"', *kept)
    of, legend = ("process", "side", "service"), "{{process}} {{side}} {{service}}"
    of_served = f"Of what is served here, and of {OTHERS}; what is used is below, by its service"

    def quantile(share: float, name: str, *by: str, only: Sequence[str]) -> str:
        buckets = _sum_rate(f"services_{name}_seconds_bucket", "le", *by, only=only)
        return f"histogram_quantile({share}, {buckets})"

    def durations(title: str, share: float, name: str, description: str) -> Json:
        query = Query(quantile(share, name, *of, only=chosen), legend)
        return time_series(
            title, [query], "s", description=description, is_logarithmic=True, overrides=[OTHERS_GREY]
        )

    return [
        number(
            "Answers",
            [Query(_sum_rate("services_response_seconds_count", only=served))],
            "reqps",
            size=(4, 4),
            description=of_served,
        ),
        number(
            "99 % answered within",
            [Query(quantile(0.99, "response", only=served))],
            "s",
            size=(4, 4),
            description=of_served,
        ),
        number(
            "Waiting now",
            [Query(_sum(_of("services_waiting", *served)))],
            "short",
            size=(3, 4),
            description=of_served,
        ),
        number(
            "Oldest wait",
            [Query(f"max({_of('services_oldest_seconds', *kept)})")],
            "s",
            size=(4, 4),
            description="How long the request has waited that waits for longest; n/a where none does",
        ),
        number(
            "Unanswered",
            [Query(_sum_rate("services_unanswered_total", only=served))],
            "reqps",
            steps=ANY_IS_NOTABLE,
            size=(3, 4),
            description="Requests whose connection ended without an answer",
        ),
        durations(
            "99 % are no longer than",
            0.99,
            "response",
            "Response times: from a request's first byte to its answer's first byte",
        ),
        durations(
            "Half are no longer than",
            0.5,
            "response",
            "Response times: from a request's first byte to its answer's first byte",
        ),
        durations(
            "Queued: 99 % are no longer than",
            0.99,
            "queued",
            "How long requests lay here before their process read them: it is busy, or has too few threads",
        ),
        durations(
            "Service: 99 % are no longer than",
            0.99,
            "service",
            "From there to the answer: its process, or what that waits for",
        ),
        time_series(
            "Answers by service",
            [Query(_sum_rate("services_response_seconds_count", *of, only=chosen), legend)],
            "reqps",
            stack="normal",
            overrides=[OTHERS_GREY],
        ),
        time_series(
            "Waiting by service",
            [Query(_sum(_of("services_waiting", *chosen), *of), legend)],
            "short",
            description="Requests that have no answer",
            overrides=[OTHERS_GREY],
        ),
        time_series(
            "Oldest wait by service",
            [Query(f"max by ({', '.join(of)}) ({_of('services_oldest_seconds', *chosen)})", legend)],
            "s",
            description="A line that rises as time passes is a request that is stuck",
            overrides=[OTHERS_GREY],
        ),
        *(
            time_series(
                title,
                [Query(_sum_rate(f"services_{counter}_total", *of, only=chosen), legend)],
                unit,
                description=description,
                overrides=[OTHERS_GREY],
            )
            for title, counter, unit, description in _FAILURES_OF_SERVICES
        ),
        time_series(
            "Overlaps and pushes by service",
            [
                Query(_sum_rate("services_overlaps_total", *of, only=chosen), f"{legend} overlaps"),
                Query(_sum_rate("services_pushes_total", *of, only=chosen), f"{legend} pushes"),
            ],
            "short",
            description="Where these are one in twenty, a service has no response times",
            overrides=[OTHERS_GREY],
        ),
    ]


OVERVIEWS: dict[str, Callable[[], list[Json]]] = {
    "connections": _connections,
    "cpu": _cpu,
    "bandwidth": _bandwidth,
    "latency": _latency,
    "drops": _drops,
    "flows": _flows,
    "services": _services,
}


def _counts(lens: Lens) -> Iterator[tuple[str, str, str, str]]:
    """The facts about a whole lens: what each is called, its PromQL by host, its unit, and what it means."""
    units = {field.name: field.unit for field in lens.counts}
    for family in count_families(lens):
        name = family.sample_name.removeprefix(f"{NAMESPACE}_")
        unit, times = unit_of(lens, family, units[family.columns[0][1]])
        by_host = _sum_rate(name, "instance") if family.kind is Kind.COUNTER else _sum(_of(name), "instance")
        text = _words(name.removeprefix(f"{lens.id}_").removesuffix("_total"))
        yield text, times + by_host, unit, family.help


def _count_rows(lens: Lens) -> Iterator[Row]:
    panels = [
        time_series(text, [Query(expr, "{{instance}}")], unit, size=(8, 8), description=help_)
        for text, expr, unit, help_ in _counts(lens)
    ]
    if panels:
        yield Row(f"{lens.title} in all, by host", panels, collapsed=True)


def _default_overview(lens: Lens) -> list[Json]:
    """That of a lens for which nobody has chosen one: its counts, and its first counters in all."""
    panels = [
        number(text, [Query(f"sum({expr})")], unit, size=(3, 4), description=help_)
        for text, expr, unit, help_ in _counts(lens)
    ]
    for declared in series_sets(lens)[:1]:
        for family in declared.families:
            if family.kind is Kind.COUNTER:
                name = family.sample_name.removeprefix(f"{NAMESPACE}_")
                unit, times = _unit(lens, declared, family)
                query = Query(times + _sum_rate(name, "instance"), "{{instance}}")
                panels.append(
                    time_series(_title(lens, declared, family), [query], unit, description=family.help)
                )
    return panels


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[0].upper() + text[1:]


# --- the dashboards -------------------------------------------------------------------------------------------


def lens_dashboard(lens: Lens) -> Json:
    """The dashboard of a lens."""
    overview = OVERVIEWS[lens.id]() if lens.id in OVERVIEWS else _default_overview(lens)
    rows = [
        Row("", [*_host_numbers(lens), *overview]),
        *_detail_rows(lens),
        *_count_rows(lens),
        _own_row(lens),
    ]
    hosts = query_variable(
        HOST_VARIABLE, "Host", f"label_values({NAMESPACE}_build_info, instance)", PROMETHEUS
    )
    chosen = [
        query_variable(
            label,
            label.capitalize(),
            f"label_values({_example(lens, label)}{{{_HOST}}}, {label})",
            PROMETHEUS,
        )
        for label in _chosen(lens)
    ]
    question = lens.question[0].upper() + lens.question[1:]
    variables = [source_variable(PROMETHEUS, "Prometheus"), hosts, *chosen]
    return dashboard(f"nettop-{lens.id}", f"nettop / {lens.title}", question, rows=rows, variables=variables)


def _example(lens: Lens, label: str) -> str:
    """A metric that has this label."""
    having = (each for each in series_sets(lens) if label in each.metrics.labels)
    # Of a bounded set not every value has a series of its own.
    declared = min(having, key=lambda each: bool(each.metrics.top))
    family = declared.all_families[0]
    return f"{family.name}_count" if family.buckets else family.sample_name


def lens_dashboards() -> dict[str, Json]:
    """Those of all lenses, by the names of their files."""
    return {f"{lens.id}.json": lens_dashboard(lens) for lens in lenses()}
