# SPDX-License-Identifier: Apache-2.0
"""The parts of a Grafana dashboard as its JSON has them, by the schema of @grafana/schema."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SCHEMA_VERSION = 39
"""That of Grafana 11; later ones convert it when they load it."""
PROMETHEUS, CLICKHOUSE = "prometheus", "grafana-clickhouse-datasource"
SANKEY = "netsage-sankey-panel"
"""Plugins, by their ids in Grafana's catalogue; all but `prometheus` have to be installed."""
DATASOURCE = "datasource"
"""The name of the variable by which a dashboard's data source is chosen."""
WIDTH = 24
"""Of a dashboard, in columns of its grid."""
_TABLE, _TIME_SERIES = 1, 0
"""How ClickHouse's data source calls the shapes of its answers."""


def source(plugin: str) -> Json:
    """A reference to the data source that is chosen."""
    return {"type": plugin, "uid": f"${{{DATASOURCE}}}"}


# --- queries --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what the legend calls its series; `instant` is one value, for tables and numbers."""

    expr: str
    legend: str = ""
    instant: bool = False
    format: str = "time_series"

    def target(self, letter: str) -> Json:
        """As a panel has it."""
        return {
            "refId": letter,
            "datasource": source(PROMETHEUS),
            "editorMode": "code",
            "expr": self.expr,
            "format": self.format,
            "instant": self.instant,
            "range": not self.instant,
            **({"legendFormat": self.legend} if self.legend else {}),
        }


@dataclass(frozen=True, slots=True)
class Sql:
    """A query of ClickHouse: its rows, or series of what follows the columns `time` and texts."""

    text: str
    is_series: bool = False

    def target(self, letter: str) -> Json:
        """As a panel has it."""
        return {
            "refId": letter,
            "datasource": source(CLICKHOUSE),
            "editorType": "sql",
            "queryType": "timeseries" if self.is_series else "table",
            "format": _TIME_SERIES if self.is_series else _TABLE,
            "rawSql": self.text,
        }


AnyQuery = Query | Sql


def _targets(queries: Iterable[AnyQuery]) -> list[Json]:
    return [query.target(letter) for letter, query in zip("ABCDEFGH", queries, strict=False)]


# --- how numbers look -----------------------------------------------------------------------------------------

GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "#8e8e8e"
Steps = tuple[tuple[float | None, str], ...]
"""From which value on a number has a colour; None is from the least on."""
PLAIN: Steps = ((None, "text"),)
ANY_IS_BAD: Steps = ((None, GREEN), (1e-9, RED))
ANY_IS_NOTABLE: Steps = ((None, GREEN), (1e-9, ORANGE))


def _thresholds(steps: Steps) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}


def override(name: str, **properties: Any) -> Json:
    """Properties of the fields with a name; in those of `custom`, __ stands for a period."""
    return _override("byName", name, properties)


def override_matching(pattern: str, **properties: Any) -> Json:
    """Properties of the fields whose names match a regular expression, as in JavaScript."""
    return _override("byRegexp", pattern, properties)


def _override(matcher: str, options: str, properties: Json) -> Json:
    return {
        "matcher": {"id": matcher, "options": options},
        "properties": [{"id": name.replace("__", "."), "value": value} for name, value in properties.items()],
    }


SENT_BELOW = override_matching("/(^| )(sent|out)$/", custom__transform="negative-Y")
"""What is sent is drawn below the axis, what is received above it."""
OTHERS_GREY = override_matching("/^other\\b/", color={"mode": "fixed", "fixedColor": GREY})


# --- panels ---------------------------------------------------------------------------------------------------


def _panel(kind: str, title: str, queries: Sequence[AnyQuery], size: tuple[int, int], **more: Any) -> Json:
    first = next(iter(queries), None)
    plugin = CLICKHOUSE if isinstance(first, Sql) else PROMETHEUS
    width, height = size
    described = {"description": text} if (text := more.pop("description", "")) else {}
    return {
        "type": kind,
        "title": title,
        **described,
        "datasource": source(plugin),
        "gridPos": {"w": width, "h": height},
        "targets": _targets(queries),
        **more,
    }


def time_series(
    title: str,
    queries: Sequence[AnyQuery],
    unit: str,
    *,
    size: tuple[int, int] = (12, 8),
    description: str = "",
    stack: str = "none",
    is_logarithmic: bool = False,
    overrides: Sequence[Json] = (),
    maximum: float | None = None,
    name: str = "",
    names_at_right: bool = False,
) -> Json:
    """Lines over time, or areas that are stacked (`normal`, or as shares: `percent`)."""
    is_stacked = stack != "none"
    scale = {"type": "log", "log": 10} if is_logarithmic else {"type": "linear"}
    is_mirrored = SENT_BELOW in overrides
    defaults: Json = {
        "unit": unit,
        "color": {"mode": "palette-classic"},
        "custom": {
            "drawStyle": "line",
            "lineInterpolation": "linear",
            "lineWidth": 1,
            "fillOpacity": 40 if is_stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": stack, "group": "A"},
            "scaleDistribution": scale,
            "axisCenteredZero": is_mirrored,
        },
    }
    if not is_logarithmic and not is_mirrored:
        defaults["min"] = 0
    if maximum is not None:
        defaults["max"] = maximum
    if name:
        defaults["displayName"] = name
    return _panel(
        "timeseries",
        title,
        queries,
        size,
        description=description,
        fieldConfig={"defaults": defaults, "overrides": list(overrides)},
        options={
            "legend": {
                "showLegend": True,
                "displayMode": "table",
                "placement": "right" if names_at_right else "bottom",
                "calcs": ["mean", "max", "lastNotNull"],
                "sortBy": "Mean",
                "sortDesc": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def number(
    title: str,
    queries: Sequence[AnyQuery],
    unit: str,
    *,
    steps: Steps = PLAIN,
    description: str = "",
    size: tuple[int, int] = (4, 4),
) -> Json:
    """The newest value, in large, over a line of the earlier ones where the query has them."""
    return _panel(
        "stat",
        title,
        queries,
        size,
        description=description,
        fieldConfig={
            "defaults": {
                "unit": unit,
                "color": {"mode": "thresholds"},
                "thresholds": _thresholds(steps),
                "noValue": "n/a",
            },
            "overrides": [],
        },
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "orientation": "auto",
            "textMode": "auto",
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        },
    )


def table(
    title: str,
    queries: Sequence[AnyQuery],
    *,
    size: tuple[int, int] = (12, 8),
    description: str = "",
    overrides: Sequence[Json] = (),
    columns: Sequence[tuple[str, str]] = (),
    sort: str = "",
) -> Json:
    """Rows. `columns` are the fields to show, in this order, each with its title; none: all of them."""
    arranged = (
        [
            {
                "id": "organize",
                "options": {
                    "includeByName": {name: True for name, _ in columns},
                    "indexByName": {name: place for place, (name, _) in enumerate(columns)},
                    "renameByName": {name: text for name, text in columns if text != name},
                },
            }
        ]
        if columns
        else []
    )
    return _panel(
        "table",
        title,
        queries,
        size,
        description=description,
        fieldConfig={
            "defaults": {
                "custom": {
                    "align": "auto",
                    "cellOptions": {"type": "auto"},
                    "filterable": True,
                    "inspect": False,
                }
            },
            "overrides": list(overrides),
        },
        options={
            "frameIndex": 0,
            "showHeader": True,
            "cellHeight": "sm",
            **({"sortBy": [{"displayName": sort, "desc": True}]} if sort else {}),
        },
        **({"transformations": arranged} if arranged else {}),
    )


def gauge_column(name: str, unit: str) -> Json:
    """A column of a table as bars."""
    return override(
        name,
        unit=unit,
        custom__cellOptions={"type": "gauge", "mode": "basic", "valueDisplayMode": "text"},
        color={"mode": "continuous-blues"},
        min=0,
    )


def heat_map(
    title: str,
    queries: Sequence[AnyQuery],
    unit: str,
    *,
    size: tuple[int, int] = (12, 9),
    description: str = "",
    value_unit: str = "short",
) -> Json:
    """Counts by bucket over time. Each bucket is a series, named by its upper edge."""
    return _panel(
        "heatmap",
        title,
        queries,
        size,
        description=description,
        fieldConfig={"defaults": {"custom": {"scaleDistribution": {"type": "linear"}}}, "overrides": []},
        options={
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": value_unit},
            "color": {
                "mode": "scheme",
                "scheme": "Spectral",
                "scale": "exponential",
                "exponent": 0.5,
                "steps": 64,
                "reverse": True,
                "fill": "dark-orange",
            },
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False},
        },
    )


def states(
    title: str,
    queries: Sequence[AnyQuery],
    words: dict[int, tuple[str, str]],
    *,
    size: tuple[int, int] = (12, 8),
    description: str = "",
) -> Json:
    """States over time: each value has a word and a colour."""
    mapping = {str(value): {"text": text, "color": color} for value, (text, color) in words.items()}
    return _panel(
        "state-timeline",
        title,
        queries,
        size,
        description=description,
        fieldConfig={
            "defaults": {
                "mappings": [{"type": "value", "options": mapping}],
                "color": {"mode": "thresholds"},
                "thresholds": _thresholds(((None, GREY),)),
                "custom": {"lineWidth": 0, "fillOpacity": 70},
            },
            "overrides": [],
        },
        options={
            "legend": {"showLegend": False, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
            "mergeValues": True,
            "rowHeight": 0.85,
            "showValue": "auto",
        },
    )


def sankey(
    title: str, query: Sql, unit: str, *, size: tuple[int, int] = (12, 14), description: str = ""
) -> Json:
    """Bands from each value of a column to those of the next one, as wide as the last column says."""
    return _panel(
        SANKEY,
        title,
        [query],
        size,
        description=description,
        fieldConfig={"defaults": {"unit": unit}, "overrides": []},
        options={
            "monochrome": False,
            "color": "blue",
            "nodeColor": "grey",
            "textColor": "text",
            "nodeWidth": 20,
            "nodePadding": 12,
        },
    )


# --- dashboards -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below a headline, which is left out where there is no title; a collapsed one queries nothing.

    The row comes once for each value of the variable `repeat`, if there is one.
    """

    title: str
    panels: list[Json] = field(default_factory=list)
    collapsed: bool = False
    repeat: str = ""


def dashboard(
    uid: str,
    title: str,
    description: str,
    *,
    rows: Sequence[Row],
    variables: Sequence[Json],
    time_from: str = "now-1h",
) -> Json:
    """A dashboard, with links to the others of nettop."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["nettop"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": time_from, "to": "now"},
        "timepicker": {},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "nettop",
                "tags": ["nettop"],
                "asDropdown": True,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "dashboard",
                "tooltip": "The other dashboards of nettop",
            }
        ],
        "templating": {"list": list(variables)},
        "panels": list(_placed(rows)),
    }


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    """The panels of rows with ids and places: left to right, and below each other where a line is full."""
    next_id, y = 1, 0
    for row in rows:
        panels, bottom = _in_lines(row.panels, y + bool(row.title), next_id + 1)
        if row.title:
            headline: Json = {
                "type": "row",
                "id": next_id,
                "title": row.title,
                "collapsed": row.collapsed,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": panels if row.collapsed else [],
                **({"repeat": row.repeat} if row.repeat else {}),
            }
            yield headline
        if not row.collapsed:
            yield from panels
        next_id += 1 + len(panels)
        y = y + 1 if row.collapsed else bottom


def _in_lines(panels: Sequence[Json], y: int, next_id: int) -> tuple[list[Json], int]:
    """The panels in lines from y on, the last of each line as wide as there is room; and where they end."""
    x = height = 0
    placed: list[Json] = []
    for panel in panels:
        size = panel["gridPos"]
        if x + size["w"] > WIDTH:
            _fill_line(placed)
            x, y, height = 0, y + height, 0
        placed.append({**panel, "id": next_id + len(placed), "gridPos": {"x": x, "y": y, **size}})
        x, height = x + size["w"], max(height, size["h"])
    _fill_line(placed)
    return placed, y + height


def _fill_line(placed: Sequence[Json]) -> None:
    for last in placed[-1:]:
        last["gridPos"]["w"] = WIDTH - last["gridPos"]["x"]


# --- variables ------------------------------------------------------------------------------------------------

_ON_TIME_RANGE, _ON_LOAD = 2, 1
_HIDDEN = 2


def source_variable(plugin: str, label: str) -> Json:
    """The choice of a data source of this kind."""
    return {"type": "datasource", "name": DATASOURCE, "label": label, "query": plugin, "refresh": _ON_LOAD}


def query_variable(name: str, label: str, query: str | Json, plugin: str, *, with_all: str = ".*") -> Json:
    """A choice of one, several or all of the values that a query gives; all are written as `with_all`, if given."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": source(plugin),
        "query": query,
        "refresh": _ON_TIME_RANGE,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        **({"allValue": with_all} if with_all else {}),
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def computed_variable(name: str, sql: str) -> Json:
    """A value that a query makes of the time that is chosen; nobody sees it."""
    return {
        "type": "query",
        "name": name,
        "datasource": source(CLICKHOUSE),
        "query": sql,
        "refresh": _ON_TIME_RANGE,
        "hide": _HIDDEN,
    }


def text_variable(name: str, label: str, description: str) -> Json:
    """A text that the reader may type."""
    return {
        "type": "textbox",
        "name": name,
        "label": label,
        "description": description,
        "query": "",
        "current": {"selected": False, "text": "", "value": ""},
        "options": [],
    }
