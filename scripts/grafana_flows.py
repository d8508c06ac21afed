# SPDX-License-Identifier: Apache-2.0
"""The dashboard of what routers report, over ClickHouse's data source on the collector's query interface.

Each query reads the coarsest table that has what it asks for: `flows_1m`, `flows_5m` or `flows_1h` by the time that is
chosen, `talkers_1m` for addresses, and `flows_raw` for what only single flows have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_panels import (
    ANY_IS_BAD,
    ANY_IS_NOTABLE,
    CLICKHOUSE,
    OTHERS_GREY,
    SENT_BELOW,
    Json,
    Row,
    Sql,
    computed_variable,
    dashboard,
    gauge_column,
    heat_map,
    number,
    override,
    query_variable,
    sankey,
    source_variable,
    table,
    text_variable,
    time_series,
)

from nettop.flows.columns import PROTOCOL_NAMES
from nettop.flows.spool import DROPPED
from nettop.flows.store.schema import as_names_query
from nettop.flows.top import REST, ROLLUPS, key_expression
from nettop.snapshots.flows import PROTOCOLS

FILE, UID = "flows-from-routers.json", "nettop-flows-from-routers"
_SERIES = 10
"""How many have a colour of their own over time."""
_ROWS = 50
_BANDS = 30
_MOMENTS = 300
"""How many moments a graph has, at most twice as many."""
_RESOLUTIONS = {"flows_1m": 60, "flows_5m": 300, "flows_1h": 3600}
_SPAN = "($__toTime - $__fromTime)"
"""The seconds that are chosen."""

TABLE_VARIABLE, STEP_VARIABLE = "table", "step"
EXPORTER_VARIABLE, SIDE_VARIABLE = "exporter", "side"
_ROLLUP = f"${TABLE_VARIABLE}"
_STEP = f"${STEP_VARIABLE}"


def _by_span(values: Mapping[str, object]) -> str:
    """The value of the table of sums that is used for the time that is chosen."""
    *shorter, (_, longest) = ROLLUPS
    chosen = ", ".join(f"{_SPAN} <= {span:.0f}, {values[name]}" for span, name in shorter)
    return f"multiIf({chosen}, {values[longest]})"


_TABLE_SQL = f"SELECT {_by_span({name: repr(name) for name in _RESOLUTIONS})}"
_STEP_SQL = (
    f"WITH {_by_span(_RESOLUTIONS)} AS resolution "
    f"SELECT toString(resolution * greatest(1, intDiv({_SPAN}, resolution * {_MOMENTS})))"
)


# --- parts of queries -----------------------------------------------------------------------------------------


def _if_chosen(variable: str, condition: str) -> str:
    """A condition that holds for every row while all values of the variable are chosen, or none is typed."""
    return f"$__conditionalAll({condition}, ${variable})"


_OF_EXPORTER = _if_chosen(EXPORTER_VARIABLE, f"exporter IN (${{{EXPORTER_VARIABLE}:singlequote}})")
_OF_SIDE = _if_chosen(SIDE_VARIABLE, f"side IN (${{{SIDE_VARIABLE}:singlequote}})")
_OF_ADDRESS = _if_chosen(
    "address", "(src = toIPv6OrDefault('$address') OR dst = toIPv6OrDefault('$address'))"
)
_OF_AS = _if_chosen("as", "(src_as = toUInt32OrZero('$as') OR dst_as = toUInt32OrZero('$as'))")
_OF_COUNTRY = _if_chosen("country", "(src_country = '$country' OR dst_country = '$country')")
_OF_SERVICE = _if_chosen("port", "service_port = toUInt16OrZero('$port')")
_OF_PORT = _if_chosen("port", "(src_port = toUInt16OrZero('$port') OR dst_port = toUInt16OrZero('$port'))")
_TYPED = (
    text_variable("address", "Address", "Source or destination; not of networks, services and interfaces"),
    text_variable(
        "as", "AS", "Number of the autonomous system of the source or destination; not of top talkers"
    ),
    text_variable("country", "Country", "Of the source or destination, as DE; not of top talkers"),
    text_variable("port", "Port", "Of the service, of single flows either port; not of top talkers"),
)
"""What the reader may type, and of what it has no effect: tables lack columns that others have."""


@dataclass(frozen=True, slots=True)
class _From:
    """A table with a name for it, the column of its time, what its sums are, and by what its rows can be chosen."""

    name: str
    table: str
    time: str
    bytes: str
    packets: str
    flows: str
    filters: tuple[str, ...]

    def where(self, *more: str) -> str:
        """The rows that are chosen."""
        conditions = (f"$__timeFilter({self.time})", _OF_EXPORTER, *self.filters, *more)
        return f"FROM {self.table}\nWHERE " + "\n  AND ".join(conditions)

    @property
    def moment(self) -> str:
        """The moment of a graph to which a row belongs."""
        return f"toStartOfInterval({self.time}, INTERVAL {_STEP} second)"

    @property
    def covered(self) -> str:
        """The variable of the seconds that are chosen of which there are rows: mean rates are over these."""
        return f"${self.name}_seconds"

    @property
    def covered_sql(self) -> str:
        """The query for its value."""
        oldest, source = f"toDateTime(min({self.time}))", f"FROM {self.table}"
        seconds = f"greatest(1, least($__toTime, now()) - greatest($__fromTime, {oldest}))"
        return f"SELECT toString({seconds}) {source}"


_SUMS = ("sum(toFloat64(estimated_bytes))", "sum(toFloat64(estimated_packets))", "sum(flows)")
SUMS = _From("sums", _ROLLUP, "time", *_SUMS, filters=(_OF_SIDE, _OF_AS, _OF_COUNTRY, _OF_SERVICE))
TALKERS = _From("talkers", "talkers_1m", "time", *_SUMS, filters=(_OF_ADDRESS,))
RAW = _From(
    "raw",
    "flows_raw",
    "received",
    "sum(toFloat64(bytes) * greatest(sampling_rate, 1))",
    "sum(toFloat64(packets) * greatest(sampling_rate, 1))",
    "count()",
    filters=(_OF_SIDE, _OF_ADDRESS, _OF_AS, _OF_COUNTRY, _OF_PORT),
)
_RATES = {"bps": "{bytes} * 8", "pps": "{packets}", "cps": "{flows}"}
"""What is drawn per second, by Grafana's unit."""


def _rate(source: _From, unit: str) -> str:
    total = _RATES[unit].format(bytes=source.bytes, packets=source.packets, flows=source.flows)
    return f"{total} / {_STEP}"


def _named(column: str, names: Mapping[int, str]) -> str:
    numbers, texts = ", ".join(map(str, names)), ", ".join(map(repr, names.values()))
    return f"transform({column}, [{numbers}], [{texts}], toString({column}))"


_NAMED_AS = f"FROM ({as_names_query()})"
_AS_NAMES = f"(SELECT tuple(groupArray(as_number), groupArray(as_name)) {_NAMED_AS})"
"""All numbers of autonomous systems that have a name, and the names: constants of a query, computed once."""


def _as(column: str) -> str:
    """The number of an autonomous system, and its name where a file of --networks had one."""
    name = f"transform({column}, tupleElement({_AS_NAMES}, 1), tupleElement({_AS_NAMES}, 2), '')"
    return f"if({column} = 0, 'not known', trim(concat('AS', toString({column}), ' ', {name})))"


def _country(column: str) -> str:
    return f"if({column} = '', 'not known', {column})"


def _address(column: str) -> str:
    """An address as people read it; in talkers_1m one stands for all that are not among the largest."""
    return f"if({column} = toIPv6('{REST}'), 'other', {key_expression(column, TALKERS.table)})"


def _exporter() -> str:
    return key_expression("exporter", "flows_raw")


PROTOCOL = _named("protocol", PROTOCOL_NAMES)
ETYPE = _named("etype", {0x0800: "IPv4", 0x86DD: "IPv6"})
_VERSION = _named("protocol_version", PROTOCOLS)
PORT = "if(service_port = 0, 'none', toString(service_port))"
IN_IF, OUT_IF = (f"concat({_exporter()}, ' ', toString({column}))" for column in ("in_if", "out_if"))
IN_NAME, OUT_NAME = (
    f"concat({_exporter()}, ' ', if({column}_name = '', toString({column}), {column}_name))"
    for column in ("in_if", "out_if")
)


# --- panels ---------------------------------------------------------------------------------------------------

_KEY_NAME = "${__field.labels.key}"


def _over_time(
    title: str,
    source: _From,
    key: str,
    unit: str = "bps",
    *more: str,
    size: tuple[int, int] = (12, 9),
    **how: object,
) -> Json:
    """Rates by key, all of them."""
    sql = (
        f"SELECT {source.moment} AS at, {key} AS key, {_rate(source, unit)} AS rate\n"
        f"{source.where(*more)}\nGROUP BY at, key\nORDER BY at"
    )
    options = {"stack": "normal", "name": _KEY_NAME} | how
    return time_series(title, [Sql(sql, is_series=True)], unit, size=size, **options)  # type: ignore[arg-type]


def _largest_over_time(
    title: str, source: _From, column: str, key: str, *more: str, unit: str = "bps", description: str = ""
) -> Json:
    """Rates of the largest keys, and of all others together."""
    largest = (
        (
            f"SELECT {column} {source.where(*more)}\n"
            f"GROUP BY {column} ORDER BY {source.bytes} DESC LIMIT {_SERIES}"
        )
        .replace("\n", " ")
        .replace("   ", " ")
    )
    sql = (
        f"SELECT {source.moment} AS at, if({column} IN ({largest}), {key}, 'other') AS key,\n"
        f"  {_rate(source, unit)} AS rate\n"
        f"{source.where(*more)}\nGROUP BY at, key\nORDER BY at"
    )
    return time_series(
        title,
        [Sql(sql, is_series=True)],
        unit,
        size=(12, 9),
        description=description,
        stack="normal",
        name=_KEY_NAME,
        overrides=[OTHERS_GREY],
    )


def _largest(
    title: str,
    source: _From,
    keys: Mapping[str, str],
    *more: str,
    size: tuple[int, int] = (12, 9),
    description: str = "",
) -> Json:
    """A table of the largest keys."""
    columns = ", ".join(f'{expression} AS "{name}"' for name, expression in keys.items())
    groups = ", ".join(f'"{name}"' for name in keys)
    sql = (
        f"SELECT {columns},\n"
        f'  {source.bytes} AS "Bytes", {source.packets} AS "Packets", {source.flows} AS "Flows",\n'
        f'  "Bytes" * 8 / {source.covered} AS "Mean rate"\n'
        f'{source.where(*more)}\nGROUP BY {groups}\nORDER BY "Bytes" DESC\nLIMIT {_ROWS}'
    )
    return table(
        title,
        [Sql(sql)],
        size=size,
        description=description,
        overrides=[
            gauge_column("Bytes", "decbytes"),
            override("Packets", unit="short"),
            override("Flows", unit="short"),
            override("Mean rate", unit="bps"),
            *(_linked(name) for name in keys if name in ("Source", "Destination")),
        ],
    )


def _linked(column: str) -> Json:
    """A column of addresses, each of which leads to its own traffic."""
    url = f"/d/{UID}?${{__url_time_range}}&var-address=${{__value.raw}}"
    return override(column, links=[{"title": "Only ${__value.text}", "url": url}])


def _bands(title: str, source: _From, keys: Mapping[str, str], *more: str, description: str = "") -> Json:
    columns = ", ".join(f'{expression} AS "{name}"' for name, expression in keys.items())
    groups = ", ".join(f'"{name}"' for name in keys)
    sql = (
        f'SELECT {columns}, {source.bytes} AS "Bytes"\n'
        f'{source.where(*more)}\nGROUP BY {groups}\nORDER BY "Bytes" DESC\nLIMIT {_BANDS}'
    )
    return sankey(title, Sql(sql), "decbytes", description=description)


def _total(title: str, expression: str, unit: str, source: _From = SUMS, description: str = "") -> Json:
    return number(
        title, [Sql(f"SELECT {expression}\n{source.where()}")], unit, description=description, size=(4, 4)
    )


# --- rows -----------------------------------------------------------------------------------------------------

_NAMED_ONLY = (f"src != toIPv6('{REST}')",)
_ESTIMATED = "Multiplied by the sampling rate, where that is known"
_MEAN = f"{_ESTIMATED}; since the first flow that is stored, if that is in the time that is chosen"


def _overview() -> list[Json]:
    stored = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'nettop'"
    oldest = "SELECT toUnixTimestamp(min(received)) * 1000 FROM flows_raw"
    return [
        _total("Mean rate", f"{SUMS.bytes} * 8 / {SUMS.covered}", "bps", description=_MEAN),
        _total("Bytes", SUMS.bytes, "decbytes", description=_ESTIMATED),
        _total("Packets", SUMS.packets, "short", description=_ESTIMATED),
        _total("Flows", SUMS.flows, "short", description="As stored, after --filter"),
        number(
            "Disk",
            [Sql(stored)],
            "bytes",
            description="What the tables take; those of a cluster are on other hosts",
        ),
        number(
            "Flows are kept since",
            [Sql(oldest)],
            "dateTimeFromNow",
            description="The oldest row of flows_raw",
        ),
        _over_time(
            "Traffic by side",
            SUMS,
            "toString(side)",
            size=(24, 9),
            description="What enters your networks is above the axis, what leaves them below it; `unknown` without "
            "--own-network",
            overrides=[SENT_BELOW],
            names_at_right=True,
        ),
        _over_time("Packets by side", SUMS, "toString(side)", "pps", overrides=[SENT_BELOW]),
        _over_time("Flows by exporter", SUMS, _exporter(), "cps"),
        _over_time("By protocol", SUMS, PROTOCOL),
        _over_time("By IP version", SUMS, ETYPE),
    ]


def _talkers() -> list[Json]:
    about = "Of each minute and block the 1,000 largest pairs are named; the others are `other`"
    return [
        _largest_over_time("Sources", TALKERS, "src", _address("src"), description=about),
        _largest_over_time("Destinations", TALKERS, "dst", _address("dst"), description=about),
        _largest("Largest sources", TALKERS, {"Source": _address("src")}, *_NAMED_ONLY, description=about),
        _largest(
            "Largest destinations", TALKERS, {"Destination": _address("dst")}, *_NAMED_ONLY, description=about
        ),
        _largest(
            "Largest pairs",
            TALKERS,
            {"Exporter": _exporter(), "Source": _address("src"), "Destination": _address("dst")},
            *_NAMED_ONLY,
            size=(24, 9),
            description=about,
        ),
    ]


def _networks() -> list[Json]:
    known = "Autonomous systems that exporters report, or --networks knows"
    return [
        _largest_over_time("Source AS", SUMS, "src_as", _as("src_as"), description=known),
        _largest_over_time("Destination AS", SUMS, "dst_as", _as("dst_as"), description=known),
        _largest("Largest source AS", SUMS, {"AS": _as("src_as"), "Country": _country("src_country")}),
        _largest("Largest destination AS", SUMS, {"AS": _as("dst_as"), "Country": _country("dst_country")}),
        _largest_over_time("Source country", SUMS, "src_country", _country("src_country")),
        _largest_over_time("Destination country", SUMS, "dst_country", _country("dst_country")),
    ]


def _services() -> list[Json]:
    about = "The lower one of both ports that is below 1024 or known by a service"
    return [
        _largest_over_time("Service ports", SUMS, "service_port", PORT, description=about),
        _largest("Largest service ports", SUMS, {"Protocol": PROTOCOL, "Port": PORT}, description=about),
        _largest("Protocols", SUMS, {"Protocol": PROTOCOL}),
        _largest(
            "Interfaces in",
            SUMS,
            {"Interface": IN_IF},
            description="The exporter, and the index of its interface",
        ),
    ]


def _relations() -> list[Json]:
    return [
        _bands(
            "Source and destination",
            TALKERS,
            {"Source": _address("src"), "Destination": _address("dst")},
            *_NAMED_ONLY,
        ),
        _bands(
            "AS and AS",
            SUMS,
            {"Source": _as("src_as"), "Exporter": _exporter(), "Destination": _as("dst_as")},
        ),
        _bands(
            "Interface and interface",
            SUMS,
            {"In": IN_IF, "Out": OUT_IF},
            description="What comes in by an interface, and by which one it leaves",
        ),
        _bands(
            "AS and service", SUMS, {"Source": _as("src_as"), "Service": f"concat({PROTOCOL}, ' ', {PORT})"}
        ),
    ]


_SIZES = (64, 128, 256, 512, 1024, 1280, 1500, 9216, 65536)
"""The upper edges of classes of packets' sizes, in bytes."""
_TTLS = (8, 16, 32, 64, 128, 192, 255)


def _classes(value: str, edges: Sequence[int], weight: str) -> str:
    lowers = (-1, *edges)
    return ",\n  ".join(
        f'sumIf({weight}, {value} > {lower} AND {value} <= {edge}) / {_STEP} AS "{edge}"'
        for lower, edge in zip(lowers, edges, strict=False)
    )


def _packet_sizes() -> list[Json]:
    size = "bytes / greatest(packets, 1)"
    classes = _classes(f"({size})", _SIZES, "toFloat64(packets) * greatest(sampling_rate, 1)")
    sql = f"SELECT {RAW.moment} AS at,\n  {classes}\n{RAW.where()}\nGROUP BY at\nORDER BY at"
    mean = (
        f"SELECT {SUMS.moment} AS at, {PROTOCOL} AS key, {SUMS.bytes} / greatest({SUMS.packets}, 1) AS size\n"
        f"{SUMS.where()}\nGROUP BY at, key\nORDER BY at"
    )
    return [
        heat_map(
            "Sizes of packets",
            [Sql(sql, is_series=True)],
            "decbytes",
            description="Packets per second by the mean size of their flow",
            value_unit="pps",
        ),
        time_series(
            "Mean size of packets", [Sql(mean, is_series=True)], "decbytes", size=(12, 9), name=_KEY_NAME
        ),
    ]


def _single_flows() -> list[Json]:
    """What only flows_raw has: these queries read every flow."""
    classes = _classes("ttl", _TTLS, "toFloat64(packets) * greatest(sampling_rate, 1)")
    ttl = f"SELECT {RAW.moment} AS at,\n  {classes}\n{RAW.where('ttl > 0')}\nGROUP BY at\nORDER BY at"
    flags = (
        "arrayStringConcat(arrayFilter((name, bit) -> bitTest(tcp_flags, bit), "
        "['FIN', 'SYN', 'RST', 'PSH', 'ACK', 'URG', 'ECE', 'CWR'], [0, 1, 2, 3, 4, 5, 6, 7]), ' ')"
    )
    reports = (
        f'SELECT {_exporter()} AS "Exporter", count() AS "Flows",\n'
        '  max(sampling_rate) AS "One packet in", uniqExact(domain) AS "Domains",\n'
        f"  arrayStringConcat(arraySort(groupUniqArray({_VERSION})), ', ') AS \"Protocol\"\n"
        f'{RAW.where()}\nGROUP BY "Exporter"\nORDER BY "Flows" DESC'
    )
    next_hop = "next_hop != toIPv6('::')"
    return [
        _largest(
            "Largest flows",
            RAW,
            {
                "Exporter": _exporter(),
                "Source": key_expression("src", RAW.table),
                "Source port": "src_port",
                "Destination": key_expression("dst", RAW.table),
                "Destination port": "dst_port",
                "Protocol": PROTOCOL,
            },
            size=(24, 10),
        ),
        _largest_over_time("Source ports", RAW, "src_port", "toString(src_port)"),
        _largest_over_time("Destination ports", RAW, "dst_port", "toString(dst_port)"),
        _largest_over_time("TCP flags", RAW, "tcp_flags", flags, "protocol = 6"),
        _largest_over_time("VLANs", RAW, "src_vlan", "toString(src_vlan)"),
        _largest_over_time("Next hops", RAW, "next_hop", key_expression("next_hop", RAW.table), next_hop),
        heat_map(
            "Time to live",
            [Sql(ttl, is_series=True)],
            "short",
            description="Packets per second by their TTL or hop limit, where exporters report it",
            value_unit="pps",
        ),
        table(
            "What exporters report",
            [Sql(reports)],
            size=(12, 9),
            description="By which protocol, and of how many packets one is looked at; 0 is not known",
        ),
        _over_time("In by interface", RAW, IN_NAME),
        _over_time("Out by interface", RAW, OUT_NAME),
    ]


def _ledger(*terms: str) -> str:
    return " + ".join(f"counters['{term}']" for term in terms)


def _exporters() -> list[Json]:
    exporters = (
        f'SELECT {_exporter()} AS "Exporter", max(time) AS "Last flow",\n'
        f'  {SUMS.flows} AS "Flows", {SUMS.packets} AS "Packets", {SUMS.bytes} AS "Bytes"\n'
        f'{SUMS.where()}\nGROUP BY "Exporter"\nORDER BY "Flows" DESC'
    )
    when = "FROM ledger\nWHERE $__timeFilter(time)"
    at = f"toStartOfInterval(time, INTERVAL {_STEP} second) AS at"
    lost = _ledger("kernel_drops", "own_drops", f"{RAW.table}{DROPPED}")
    unreadable = _ledger("unknown_version", "bad_header", "broken")
    became = (
        f"SELECT {at},\n"
        f'  sum({_ledger("datagrams")}) / {_STEP} AS "datagrams", sum({_ledger("rows")}) / {_STEP} AS "flows",\n'
        f'  sum({_ledger("filtered")}) / {_STEP} AS "filtered"\n'
        f"{when}\nGROUP BY at\nORDER BY at"
    )
    amiss = (
        f"SELECT {at},\n"
        f'  sum({_ledger("kernel_drops")}) / {_STEP} AS "dropped by the kernel",\n'
        f'  sum({_ledger("unknown_version", "bad_header")}) / {_STEP} AS "malformed",\n'
        f'  sum({_ledger("broken")}) / {_STEP} AS "broken parts",\n'
        f'  sum({_ledger("forgotten")}) / {_STEP} AS "without a template"\n'
        f"{when}\nGROUP BY at\nORDER BY at"
    )
    return [
        number(
            "Exporters",
            [Sql(f"SELECT uniqExact(exporter)\n{SUMS.where()}")],
            "short",
            size=(6, 4),
            description="That reported flows",
        ),
        number(
            "Newest flow",
            [Sql("SELECT toUnixTimestamp(max(received)) * 1000 FROM flows_raw")],
            "dateTimeFromNow",
            size=(6, 4),
            description="Blocks are stored some seconds after they were received",
        ),
        number(
            "Dropped",
            [Sql(f"SELECT sum({lost})\n{when}")],
            "short",
            steps=ANY_IS_BAD,
            size=(6, 4),
            description="Datagrams and packets that the kernel dropped before they were read, and flows for which the "
            "spool had no room",
        ),
        number(
            "Cannot be read",
            [Sql(f"SELECT sum({unreadable})\n{when}")],
            "short",
            steps=ANY_IS_NOTABLE,
            size=(6, 4),
            description="Datagrams of no known protocol, with an impossible header, and parts that are broken",
        ),
        table(
            "Exporters",
            [Sql(exporters)],
            size=(24, 8),
            description="What they lose on the way here is on the dashboard nettop / Flows",
            overrides=[
                override("Last flow", unit="dateTimeFromNow"),
                override("Flows", unit="short"),
                override("Packets", unit="short"),
                gauge_column("Bytes", "decbytes"),
            ],
        ),
        time_series(
            "Received", [Sql(became, is_series=True)], "cps", description="By the ledger of the collector"
        ),
        time_series(
            "What went wrong",
            [Sql(amiss, is_series=True)],
            "cps",
            description="By the ledger of the collector",
        ),
    ]


_EXPORTERS_SQL = (
    f"SELECT toString(exporter) AS value, {_exporter()} AS text FROM flows_1h "  # noqa: S608 - of constants
    "WHERE time >= toStartOfHour($__fromTime, 'UTC') AND time <= $__toTime GROUP BY value, text ORDER BY text"
)
_SIDES_SQL = "SELECT arrayJoin(['in', 'out', 'internal', 'through', 'unknown'])"


def flows_dashboard() -> Json:
    """The dashboard."""
    rows = [
        Row("", _overview()),
        Row("Top talkers", _talkers()),
        Row("Networks and countries", _networks()),
        Row("Services, protocols and interfaces", _services()),
        Row("Relations", _relations()),
        Row("Sizes of packets", _packet_sizes(), collapsed=True),
        Row("Single flows (reads every flow of the time above)", _single_flows(), collapsed=True),
        Row("Exporters and the collector", _exporters()),
    ]
    variables = [
        source_variable(CLICKHOUSE, "Collector"),
        query_variable(EXPORTER_VARIABLE, "Exporter", _EXPORTERS_SQL, CLICKHOUSE, with_all=""),
        query_variable(SIDE_VARIABLE, "Side", _SIDES_SQL, CLICKHOUSE, with_all=""),
        *_TYPED,
        computed_variable(TABLE_VARIABLE, _TABLE_SQL),
        computed_variable(STEP_VARIABLE, _STEP_SQL),
        *(computed_variable(source.covered[1:], source.covered_sql) for source in (SUMS, TALKERS, RAW)),
    ]
    return dashboard(
        UID,
        "nettop / Flows from routers",
        "What routers report: who moved how much to whom, over which interfaces, and whether all of it is stored",
        rows=rows,
        variables=variables,
        time_from="now-6h",
    )
