# SPDX-License-Identifier: Apache-2.0
"""Grafana's dashboards: what generates them wrote them, and they ask only for what nettop has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import dashboards
import grafana_flows
import grafana_lenses
import pytest
import yaml

from nettop.flows.pipeline import LEDGER
from nettop.flows.spool import DROPPED
from nettop.flows.store.schema import DATABASE, TABLES
from nettop.flows.top import ROLLUPS
from nettop.serve.metrics.families import EDGES_MAX, count_families, series_sets
from nettop.settings import DEFAULT_QUERY_LISTEN
from nettop.snapshots import lenses
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Field, Kind, Lens, Metrics, Table

from .compose import SERVICES
from .grafana import CLICKHOUSE, FILES, GRAFANA, PROMETHEUS, Json, dashboard, panels, targets, variables

EACH = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
OF_SERVER = {
    "nettop_build_info": {"version"},
    "nettop_lens_up": {"lens"},
    "nettop_reading_timestamp_seconds": {"lens"},
    "nettop_hook_info": {"lens", "hook", "mechanism"},
    "nettop_lost_total": {"lens", "what"},
    "nettop_http_connections": set[str](),
    "nettop_http_answers_total": {"status"},
    "nettop_http_refused_total": {"reason"},
}
"""The metrics that are of no lens, as docs/metrics.md lists them."""
OF_TARGET = {"instance", "job"}
"""Labels that Prometheus adds."""


def metrics() -> dict[str, set[str]]:
    """The labels of every metric by its name."""
    known = {name: set(labels) for name, labels in OF_SERVER.items()}
    for lens in (*lenses(), SELF):
        for declared in series_sets(lens):
            for family in declared.all_families:
                labels = {*declared.metrics.labels, *filter(None, [family.label])}
                if family.buckets:
                    known[f"{family.name}_bucket"] = labels | {"le"}
                    known[f"{family.name}_sum"] = known[f"{family.name}_count"] = labels
                else:
                    known[family.sample_name] = labels
        known |= {family.sample_name: set() for family in count_families(lens)}
    return known


KNOWN = metrics()


# --- all of them ----------------------------------------------------------------------------------------------


def test_dashboards_are_as_generated() -> None:
    """What `make generate` writes is committed, and no other file."""
    assert {file.name: file.read_text() for file in FILES} == dashboards.dashboards()


def test_each_lens_has_a_dashboard() -> None:
    """So has what routers report."""
    names = {file.name for file in FILES}
    assert names == {*(f"{lens.id}.json" for lens in lenses()), grafana_flows.FILE}


def test_dashboards_differ_in_names() -> None:
    """Their uids and titles; a uid has at most 40 characters."""
    made = [dashboard(file) for file in FILES]
    for name in ("uid", "title"):
        values = [each[name] for each in made]
        assert len(set(values)) == len(values)
    assert all(len(each["uid"]) <= 40 for each in made)
    assert all(each["tags"] == each["links"][0]["tags"] for each in made)


@EACH
def test_panels_have_their_own_ids_and_places(file: Path) -> None:
    """Nothing overlaps; what a row has collapsed lies apart from the rest."""
    made = dashboard(file)
    ids = [panel["id"] for panel in panels(made)]
    assert len(set(ids)) == len(ids)
    assert_apart(made["panels"])
    for row in made["panels"]:
        assert_apart(row.get("panels", []))
        assert bool(row.get("panels")) is row.get("collapsed", False)


def assert_apart(placed: list[Json]) -> None:
    """No two of these panels cover a place of the grid, none leaves it, and every line is full."""
    covered = set[tuple[int, int]]()
    for panel in placed:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not covered & cells, panel["title"]
        covered |= cells
    assert len(covered) == 24 * len({y for _, y in covered})


@EACH
def test_each_panel_says_what_it_shows(file: Path) -> None:
    """A title, a unit where there are numbers over time, and queries of the chosen data source."""
    for panel in panels(dashboard(file)):
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        if panel["type"] == "timeseries":
            assert panel["fieldConfig"]["defaults"]["unit"]


# --- Prometheus -----------------------------------------------------------------------------------------------

_SELECTOR = re.compile(r"\b(nettop_\w+)(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\b(?:by|on|group_left) \(([^)]*)\)")


def promql() -> Iterator[tuple[str, str]]:
    """Each PromQL of each dashboard, and where it stands."""
    for made in map(dashboard, FILES):
        yield from ((each.place, each.text) for each in targets(made) if each.plugin == PROMETHEUS)
        for variable in variables(made):
            if variable["datasource"]["type"] == PROMETHEUS:
                yield f"{made['title']} ${variable['name']}", variable["query"]


def test_metrics_and_labels_exist() -> None:
    """Each metric is one of nettop's, and has the labels by which its series are chosen and added up."""
    for place, text in promql():
        names = _SELECTOR.findall(text)
        assert names
        for name, matchers in names:
            assert name in KNOWN, place
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", re.sub(r'"[^"]*"', '""', matchers)))
            assert labels <= KNOWN[name] | OF_TARGET, place
            assert 'instance=~"$host"' in matchers or "label_values(nettop_build_info," in text
        for group in _GROUPING.finditer(text):
            labels = set(filter(None, re.split(r",\s*", group[1])))
            # That of what follows; of an operator between two, that of both.
            nearest = _SELECTOR.findall(text[group.end() :])[:1] if group[0].startswith("by") else names
            assert all(labels <= KNOWN[name] | OF_TARGET for name, _ in nearest), place


def test_every_metric_is_on_a_dashboard() -> None:
    """A new one comes by itself; nettop's own are in the last row of each dashboard."""
    shown = {name for _, text in promql() for name, _ in _SELECTOR.findall(text)}
    own = {f"nettop_self_{name}" for name in ("runs_total",)}
    assert KNOWN.keys() - shown == own


@EACH
def test_legends_name_labels_that_are_there(file: Path) -> None:
    """A label in a legend is one by which the query adds up, or one of its metric."""
    for panel in panels(dashboard(file)):
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            text = target.get("expr", "")
            groups = _GROUPING.findall(text)
            kept = set(re.split(r",\s*", groups[0])) if groups else OF_TARGET
            assert named <= kept, target


@EACH
def test_variables_are_declared(file: Path) -> None:
    """Each one that a query, a title or another variable names is declared before."""
    made = dashboard(file)
    declared = [each["name"] for each in made["templating"]["list"]]
    own = {"datasource", "__field"}
    texts = [each.text for each in targets(made)]
    texts += [panel.get("title", "") for panel in panels(made)]
    for text in texts:
        used = set(re.findall(r"\$\{?(\w+)", text))
        assert {name for name in used if not name.startswith("__")} <= {*declared, *own}
    for place, variable in enumerate(made["templating"]["list"]):
        used = set(re.findall(r"\$\{?([a-z]\w+)", variable.get("query", "")))
        assert used <= set(declared[:place])
    for panel in panels(made):
        assert panel.get("repeat", "datasource") in declared


LATENCIES = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
UNKNOWN = Lens(
    "caches",
    "Caches",
    9,
    "9",
    "how fast does each cache answer?",
    (
        Table(
            "caches",
            (
                Field("id", Kind.KEY, "ID", "number", "u8"),
                Field("cache", Kind.TEXT, "CACHE", "the cache", "u4"),
                Field("requests", Kind.COUNTER, "REQ", "requests", "u8"),
                Field("time_ns", Kind.COUNTER, "TIME", "time that they took", "u8", "ns"),
                Field("open", Kind.GAUGE, "OPEN", "requests under way", "u8"),
                Field(
                    "latency", Kind.HISTOGRAM, "LAT", "durations", LATENCIES.dtype, "ns", buckets=LATENCIES
                ),
            ),
            key="id",
            screen=("cache",),
            text=("cache",),
            sort="id",
            text_sort="id",
            metrics=(
                Metrics(("cache",), ("latency", "requests", "time_ns", "open"), rows="rows"),
                Metrics(("cache",), ("requests",), prefix="caches_by_name", top="name", most=5),
            ),
        ),
    ),
    counts=(Field("known", Kind.GAUGE, "KNOWN", "caches that are known", "u8"),),
)
"""A lens of which the generator has never heard."""


def test_a_new_lens_needs_no_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its metrics are shown: histograms for each value of their first label, in a row of its own."""
    assert LATENCIES.count > EDGES_MAX
    monkeypatch.setattr(grafana_lenses, "lenses", lambda: (UNKNOWN,))
    (made,) = grafana_lenses.lens_dashboards().values()
    shown = {name for each in targets(made) for name, _ in _SELECTOR.findall(each.text)}
    assert shown >= {
        *("nettop_caches_latency_seconds_bucket", "nettop_caches_latency_seconds_sum"),
        *("nettop_caches_requests_total", "nettop_caches_open", "nettop_caches_rows"),
        *("nettop_caches_by_name_requests_total", "nettop_caches_known", "nettop_lens_up"),
    }
    repeated = [panel["title"] for panel in made["panels"] if panel.get("repeat") == "cache"]
    assert repeated == ["Cache $cache"]
    assert [variable["name"] for variable in variables(made)] == ["host", "cache"]
    assert 'name!="evicted"' not in str(made) and 'cache!="evicted"' in str(made)


# --- ClickHouse -----------------------------------------------------------------------------------------------

COLUMNS = {name: set(table.types) for name, table in TABLES.items()}
_WORD = re.compile(r"(?<![\"'$\w.])([a-z_][a-z0-9_]*)\b(?!\()")
_TEXT = re.compile(r"'[^']*'|\"[^\"]*\"|\$\{[^}]*\}|\$\w+")
_ALIAS = re.compile(r"\bAS (\w+)")
_NAMES_OF_AS = re.compile(r"\(SELECT tuple\(.*?FROM as_names GROUP BY as_number\)\)")
"""What a query has of another table: the names of autonomous systems."""
_SQL_WORDS = {"x", "second", "name", "bit"}
SYSTEM = {"bytes_on_disk", "active", "database"}


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (each.place, each.text)
        for made in map(dashboard, FILES)
        for each in targets(made)
        if each.plugin == CLICKHOUSE
    ],
)
def test_columns_exist(place: str, text: str) -> None:
    """Each word of a query that stands for a column is one of its table; of each of the tables of sums."""
    text = _NAMES_OF_AS.sub("", text)
    (source,) = set(re.findall(r"\bFROM (\S+)", text))
    names = {"$table": [name for _, name in ROLLUPS]}.get(source, [source])
    plain = _TEXT.sub("", text)
    words = (
        set(_WORD.findall(plain)) - _SQL_WORDS - set(_ALIAS.findall(plain)) - {source, source.split(".")[0]}
    )
    assert words or source == "system.parts", place
    for name in names:
        known = SYSTEM if name == "system.parts" else COLUMNS[name]
        assert words - {"parts"} <= known, (place, words - known)


def test_terms_of_the_ledger_exist() -> None:
    """Each counter that a query reads is one that the collector writes."""
    (made,) = (each for each in map(dashboard, FILES) if each["uid"] == "nettop-flows-from-routers")
    read = {term for each in targets(made) for term in re.findall(r"counters\['(\w+)'\]", each.text)}
    assert read
    assert read <= LEDGER.keys() | {f"{table}{DROPPED}" for table in TABLES}


# --- provisioning ---------------------------------------------------------------------------------------------


def provisioned(kind: str) -> Json:
    """The file of data sources or of dashboards."""
    loaded: Json = yaml.safe_load((GRAFANA / "provisioning" / kind / "nettop.yaml").read_text())
    return loaded


def test_data_sources_are_those_of_the_dashboards() -> None:
    """Of both kinds, at the ports and in the database of nettop, if nothing else is said."""
    sources = {source["type"]: source for source in provisioned("datasources")["datasources"]}
    assert set(sources) == {PROMETHEUS, CLICKHOUSE}
    assert sources[CLICKHOUSE]["jsonData"]["defaultDatabase"] == DATABASE
    assert sources[CLICKHOUSE]["jsonData"]["protocol"] == "http"
    environment = SERVICES["grafana"]["environment"]
    host, _, port = DEFAULT_QUERY_LISTEN.rpartition(":")
    assert environment["NETTOP_COLLECT_HOST"] == f"${{NETTOP_COLLECT_HOST:-{host}}}"
    assert environment["NETTOP_COLLECT_PORT"] == f"${{NETTOP_COLLECT_PORT:-{port}}}"


def test_compose_gives_grafana_what_it_takes() -> None:
    """Each variable of the data sources, the folder of the dashboards, and the plugins."""
    grafana = SERVICES["grafana"]
    taken = set(re.findall(r"\$(NETTOP_\w+)", (GRAFANA / "provisioning/datasources/nettop.yaml").read_text()))
    assert taken <= grafana["environment"].keys()
    (provider,) = provisioned("dashboards")["providers"]
    mounted = [volume.split(":")[:2] for volume in grafana["volumes"]]
    assert ["../grafana/dashboards", provider["options"]["path"]] in mounted
    used = {panel["type"] for made in map(dashboard, FILES) for panel in panels(made)} | {CLICKHOUSE}
    foreign = {name for name in used if name.count("-") == 2}
    plugins = grafana["environment"]["GF_PLUGINS_PREINSTALL"].split(",")
    assert foreign == {plugin.partition("@")[0] for plugin in plugins}
