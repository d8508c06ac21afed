# SPDX-License-Identifier: Apache-2.0
"""Grafana's dashboards query only what nettop provides, and all of it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import dashboards
import pytest
import yaml

from nettop.collector.columns import PROTOCOL_NAMES
from nettop.collector.store.schema import DATABASE, as_names_query
from nettop.collector.top import REST, ROLLUPS, key_expression
from nettop.serve.metrics.exposition import OWN
from nettop.serve.metrics.families import count_families, series_sets
from nettop.serve.metrics.series import EVICTED
from nettop.settings import DEFAULT_QUERY_LISTEN
from nettop.snapshots import lenses
from nettop.snapshots.bandwidth import BACKINGS
from nettop.snapshots.collector import PROTOCOLS
from nettop.snapshots.connections import RETRANSMITS_WARN_ABOVE
from nettop.snapshots.cpu import ENTRIES
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.services import SIDES

from .compose import SERVICES
from .grafana import (
    CLICKHOUSE,
    DETAILS,
    FILES,
    GRAFANA,
    KEPT,
    PROMETHEUS,
    Json,
    dashboard,
    options,
    panels,
    promql,
    targets,
    variables,
)

EACH = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
OF_SERVER = {
    family.sample_name: set(labels) for name, (family, labels) in OWN.items() if name != "namespace_info"
}
"""Metrics of nettop itself with their labels, besides the one by which queries may translate names."""
OF_FLOWS = "flows-from-routers.json"
OF_TARGET = {"instance", "job"}
"""Labels that Prometheus adds."""


def metrics() -> dict[str, set[str]]:
    """Return the labels of every metric by name."""
    known = {name: set(labels) for name, labels in OF_SERVER.items()}
    for lens in (*lenses(), SELF):
        for declared in series_sets(lens):
            for family in declared.all_families:
                labels = {*declared.metrics.labels, *filter(None, [family.label])}
                if family.has_quantiles:
                    known[f"{family.name}_bucket"] = labels | {"le"}
                if family.buckets:
                    known[f"{family.name}_sum"] = known[f"{family.name}_count"] = labels
                else:
                    known[family.sample_name] = labels
        known |= {family.sample_name: set() for family in count_families(lens)}
    return known


KNOWN = metrics()


# --- all of them ----------------------------------------------------------------------------------------------


def test_overviews_are_as_generated() -> None:
    """`make generate` changes nothing in the committed overviews; each lens has one."""
    others = {"details.json", "itself.json", OF_FLOWS}
    committed = {file.name: file.read_text() for file in FILES if file.name not in others}
    assert committed == dashboards.overviews()


def test_a_new_lens_gets_an_overview() -> None:
    """The overview of a new lens has the common panels and links, about that lens."""
    made = dashboards.overview(dataclasses.replace(lenses()[0], id="caches"))
    assert [panel["title"] for panel in made["panels"]] == ["Hosts", "Not read"]
    assert all('lens="caches"' in target.text for target in targets(made))
    assert made["links"][-1]["url"] == "/d/nettop-itself?var-lens=caches"


def test_dashboards_have_unique_names() -> None:
    """Uids and titles are unique, and a uid has at most 40 characters."""
    made = [dashboard(file) for file in FILES]
    for name in ("uid", "title"):
        values = [overview[name] for overview in made]
        assert len(set(values)) == len(values)
    assert all(len(overview["uid"]) <= 40 for overview in made)
    assert all(overview["tags"] == overview["links"][0]["tags"] for overview in made)


@EACH
def test_panels_have_their_own_ids_and_places(file: Path) -> None:
    """Ids are unique and no panels overlap; a collapsed row's panels are laid out separately."""
    made = dashboard(file)
    ids = [panel["id"] for panel in panels(made)]
    assert len(set(ids)) == len(ids)
    assert_apart(made["panels"])
    for row in made["panels"]:
        assert_apart(row.get("panels", []))
        assert bool(row.get("panels")) is row.get("collapsed", False)


def assert_apart(placed: list[Json]) -> None:
    """Assert that these panels do not overlap, stay in the grid, and fill every line."""
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
    """Each panel has a title, a unit if it is a time series, and queries to the chosen data source."""
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


def queries() -> Iterator[tuple[str, str]]:
    """Yield the location and text of each PromQL query that names its metrics."""
    for made in map(dashboard, FILES):
        if made == DETAILS:
            continue
        yield from ((target.place, target.text) for target in targets(made) if target.plugin == PROMETHEUS)
        for variable in variables(made):
            if variable["datasource"]["type"] == PROMETHEUS:
                yield f"{made['title']} ${variable['name']}", variable["query"]


def test_metrics_and_labels_exist() -> None:
    """Each metric exists, and has the labels used to select and aggregate it."""
    for place, text in queries():
        names = _SELECTOR.findall(text)
        assert names
        for name, matchers in names:
            assert name in KNOWN, place
            labels = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", re.sub(r'"[^"]*"', '""', matchers)))
            assert labels <= KNOWN[name] | OF_TARGET, place
            assert 'instance=~"$host"' in matchers or "label_values(nettop_build_info," in text
        for group in _GROUPING.finditer(text):
            labels = set(filter(None, re.split(r",\s*", group[1])))
            # `by` concerns the metric that follows; `on`, both operands.
            nearest = _SELECTOR.findall(text[group.end() :])[:1] if group[0].startswith("by") else names
            assert all(labels <= KNOWN[name] | OF_TARGET for name, _ in nearest), place


LABEL_VALUES = {
    "lens": {lens.id for lens in lenses()},
    "entry": set(ENTRIES.values()),
    "backing": set(BACKINGS.values()),
    "side": set(SIDES.values()),
    "direction": {"received", "sent"},
    "protocol": {"tcp", "udp"},
    "state": {"ESTABLISHED"},
    "kind": {"total"},
}
"""Values of labels, besides the one of series that were replaced."""


def test_values_of_labels_exist() -> None:
    """Each value that a query asks for can occur; a lens's dashboard asks for no other lens."""
    for place, text in queries():
        for label, value in re.findall(r'(\w+)!?="([^"]*)"', text):
            assert value in LABEL_VALUES.get(label, set()) | {EVICTED}, place
    for file in FILES:
        asked = set(re.findall(r'lens=\\"(\w+)', file.read_text()))
        assert asked <= {file.stem}


def test_retransmits_turn_orange_where_nettop_warns() -> None:
    """The number on the dashboard changes colour at the share at which the screens do."""
    (file,) = (file for file in FILES if file.stem == "connections")
    (ratio,) = (panel for panel in panels(dashboard(file)) if panel["title"] == "Retransmit ratio")
    steps = ratio["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in steps] == [None, RETRANSMITS_WARN_ABOVE, 5 * RETRANSMITS_WARN_ABOVE]


@EACH
def test_legends_name_labels_that_are_there(file: Path) -> None:
    """A label in a legend is kept by the query's aggregation; without one, it is a target label."""
    for panel in panels(dashboard(file)):
        for target in panel.get("targets", ()):
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            text = target.get("expr", "")
            groups = _GROUPING.findall(text)
            kept = set(re.split(r",\s*", groups[0])) if groups else OF_TARGET
            assert named <= kept, target


@EACH
def test_variables_are_declared(file: Path) -> None:
    """Each variable used in a query, a title or another variable is declared before it."""
    made = dashboard(file)
    declared = [variable["name"] for variable in made["templating"]["list"]]
    own = {"datasource", "__field"}
    texts = [target.text for target in targets(made)]
    texts += [panel.get("title", "") for panel in panels(made)]
    for text in texts:
        used = set(re.findall(r"\$\{?(\w+)", text))
        assert {name for name in used if not name.startswith("__")} <= {*declared, *own}
    for place, variable in enumerate(made["templating"]["list"]):
        used = set(re.findall(r"\$\{?([a-z]\w+)", variable.get("query", "")))
        assert used <= set(declared[:place])
    for panel in panels(made):
        assert panel.get("repeat", "datasource") in declared


# --- details --------------------------------------------------------------------------------------------------

PLUGIN = {
    *("nettop_caches_requests_total", "nettop_caches_open", "nettop_caches_by_name_requests_total"),
    *(f"nettop_caches_latency_seconds_{part}" for part in ("bucket", "sum", "count")),
}
"""Metrics of a lens that is not one of nettop's."""
STORED = KNOWN.keys() | PLUGIN


def selected(text: str, **chosen: str) -> list[str]:
    """Return the stored metrics that each selector by name in a query or variable matches."""
    return [
        name
        for selector in re.findall(r"\{(__name__[^}]*)\}", promql(text, chosen))
        for name in sorted(STORED)
        if all(
            bool(re.fullmatch(value, name)) is not operator.startswith("!")
            for operator, value in re.findall(r'__name__(=~|!~|=)"([^"]*)"', selector)
        )
    ]


def offered(name: str, **chosen: str) -> list[str]:
    """Return the options of a variable of the details."""
    (variable,) = (declared for declared in variables(DETAILS) if declared["name"] == name)
    return options(variable, selected(variable["query"], **chosen))


def shown(repeated: str) -> list[str]:
    """Return the metrics that the panels repeated by a variable show, with every table chosen in turn."""
    (panel,) = (panel for panel in DETAILS["panels"] if panel["repeat"] == repeated)
    return [
        name
        for table in offered("table")
        for value in offered(repeated, table=table)
        for part in panel.get("panels", [panel])
        for target in part["targets"]
        for name in selected(target["expr"], **{repeated: value})
    ]


def test_details_show_every_metric_once() -> None:
    """Each metric of a lens, also of a new one, belongs to one table, and to one query of it or to its histograms."""
    metrics, histograms = shown("metric"), set(shown("histogram"))
    assert len(metrics) == len(set(metrics))
    assert {f"nettop_latency_by_pair_seconds_{part}" for part in ("sum", "count")} < histograms
    assert STORED - {*metrics, *histograms} == OF_SERVER.keys()
    assert OF_SERVER.keys() <= {name for _, text in queries() for name, _ in _SELECTOR.findall(text)}


def test_details_hide_evicted_series() -> None:
    """Whatever labels a bounded set has, the series of those replaced is not shown."""
    excluded = set(re.findall(rf'(\w+)!="{EVICTED}"', KEPT["kept"]))
    bounded = [set_ for lens in lenses() for set_ in series_sets(lens) if set_.metrics.top]
    assert bounded
    assert all(excluded & set(series.metrics.labels) for series in bounded)
    selectors = [selector for target in targets(DETAILS) for selector in target.text.split("{__name__")[1:]]
    assert all("${kept:raw}}" in selector for selector in selectors)


def test_overviews_link_to_every_table() -> None:
    """A link selects a table of Details, or a lens of nettop itself; each table is linked to."""
    urls = [link["url"] for file in FILES for link in dashboard(file)["links"] if link["type"] == "link"]
    linked = {tuple(re.split(r"\?var-|=", url)) for url in urls}
    known = set(offered("table")) - {"self", "caches", "caches_by_name"}
    assert len(urls) == len(linked)
    assert linked == {
        *(("/d/nettop-details", "table", table) for table in known),
        *(("/d/nettop-itself", "lens", lens.id) for lens in lenses()),
    }


# --- ClickHouse -----------------------------------------------------------------------------------------------


def test_flows_are_named_as_in_nettop() -> None:
    """Addresses, protocols and autonomous systems have the forms and names that nettop gives them."""
    (made,) = (dashboard(file) for file in FILES if file.name == OF_FLOWS)
    text = " ".join(
        [target.text for target in targets(made)] + [variable["query"] for variable in variables(made)]
    )
    wanted = {as_names_query(), f"toIPv6('{REST}')", key_expression("src", "talkers_1m")}
    wanted |= {key_expression(key, "flows_raw") for key in ("exporter", "src", "dst", "next_hop")}
    for names in (PROTOCOL_NAMES, PROTOCOLS):
        numbers, words = ", ".join(map(str, names)), ", ".join(map(repr, names.values()))
        wanted.add(f"[{numbers}], [{words}]")
    wanted |= {f"<= {longest}, '{table}'" for longest, table in ROLLUPS[:-1]}
    assert {name for name in wanted if name not in text} == set()


# --- provisioning ---------------------------------------------------------------------------------------------


def provisioned(kind: str) -> Json:
    """Load the provisioning file of data sources or dashboards."""
    loaded: Json = yaml.safe_load((GRAFANA / "provisioning" / kind / "nettop.yaml").read_text())
    return loaded


def test_data_sources_are_those_of_the_dashboards() -> None:
    """Both kinds of data source default to nettop's ports and database."""
    sources = {source["type"]: source for source in provisioned("datasources")["datasources"]}
    assert set(sources) == {PROMETHEUS, CLICKHOUSE}
    assert sources[CLICKHOUSE]["jsonData"]["defaultDatabase"] == DATABASE
    assert sources[CLICKHOUSE]["jsonData"]["protocol"] == "http"
    environment = SERVICES["grafana"]["environment"]
    host, _, port = DEFAULT_QUERY_LISTEN.rpartition(":")
    assert environment["NETTOP_COLLECT_HOST"] == f"${{NETTOP_COLLECT_HOST:-{host}}}"
    assert environment["NETTOP_COLLECT_PORT"] == f"${{NETTOP_COLLECT_PORT:-{port}}}"


def test_compose_gives_grafana_what_it_needs() -> None:
    """Compose sets the data sources' variables, mounts the dashboards, and installs the plugins."""
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
