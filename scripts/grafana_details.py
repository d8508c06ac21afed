# SPDX-License-Identifier: Apache-2.0
"""The rows of a lens's dashboard with every metric that the lens declares (schema: @grafana/schema)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from nettop.query.units import TIMES
from nettop.serve.metrics.families import NAMESPACE, Family, SeriesSet, count_families, series_sets
from nettop.serve.metrics.series import EVICTED, OTHERS
from nettop.snapshots import view_name
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Kind, Lens

Json = dict[str, Any]
Row = tuple[Json, list[Json]]
"""A row's headline, and its panels, which are sized but not placed."""

_HOST = 'instance=~"$host"'
_OF_ONE_HOST = frozenset({"cpu", "interface", "namespace", "exporter"})
"""Labels whose values differ in meaning between hosts: their series are never summed over hosts."""
_CHOSEN = {"bandwidth": ("backing", "interface")}
"""Labels that filter the details of a lens, besides the first label of its histograms."""
_CPU_LENSES = ("cpu", SELF.id)
"""The lenses whose times are CPU times."""
_OPEN_MOST = 20
"""Most series of an expanded row: collapsed rows are not queried."""
_SHAPES = (": distribution", ": quantiles")
"""Title suffixes of panels that show a histogram."""
_PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
_SENT_BELOW = {
    "matcher": {"id": "byRegexp", "options": "/(^| )(sent|out)$/"},
    "properties": [{"id": "custom.transform", "value": "negative-Y"}],
}
"""Draws sent values below the axis and received ones above."""
_OTHERS_GREY = {
    "matcher": {"id": "byRegexp", "options": f"/^{OTHERS}\\b/"},
    "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": "#8e8e8e"}}],
}


# --- rows and variables ---------------------------------------------------------------------------------------


def rows(lens: Lens) -> Iterator[Row]:
    """Yield a row for each set of series, and one for the facts about the whole lens."""
    # Histograms first, since readers compare their shapes; then what is listed by name, then the rest.
    order = sorted(series_sets(lens), key=lambda each: (not _is_repeated(each), not each.metrics.top))
    has_open = False
    for declared in order:
        title = _row_title(lens, declared)
        panels = [panel for family in declared.all_families for panel in _details(lens, declared, family)]
        if _is_repeated(declared):
            label = declared.metrics.labels[0]
            shapes = [panel for panel in panels if panel["title"].endswith(_SHAPES)]
            headline = _headline(f"{label.capitalize()} ${label}", is_collapsed=False)
            yield headline | {"repeat": label}, shapes
            yield _headline(title), [panel for panel in panels if panel not in shapes]
            continue
        is_open = not has_open and bool(declared.metrics.top) and declared.metrics.limit <= _OPEN_MOST
        has_open |= is_open
        yield _headline(title, is_collapsed=not is_open), panels
    if totals := [_total(lens, family) for family in count_families(lens)]:
        yield _headline(f"{lens.title} totals by host"), totals


def _headline(title: str, *, is_collapsed: bool = True) -> Json:
    # Members in Grafana's order; the place, the number and the panels are filled in later.
    return {"type": "row", "id": 0, "title": title, "collapsed": is_collapsed, "gridPos": {}, "panels": []}


def _is_repeated(declared: SeriesSet) -> bool:
    """Return whether each value of the first label gets a row: combined histograms would be meaningless."""
    return not declared.metrics.top and any(family.buckets for family in declared.families)


def _row_title(lens: Lens, declared: SeriesSet) -> str:
    metrics, name = declared.metrics, declared.table.name
    is_said = declared.table is lens.main or any(name.startswith(label) for label in metrics.labels)
    table = "" if is_said else f": {name}"
    of_largest = f": the {metrics.limit} largest of each host and {OTHERS}" if metrics.top else ""
    return f"{lens.title}{table} by {', '.join(metrics.labels)}{of_largest}"


def variables(lens: Lens) -> list[Json]:
    """Return the variables that select values of labels in the details."""
    return [
        {
            "type": "query",
            "name": label,
            "label": label.capitalize(),
            "datasource": _PROMETHEUS,
            "query": f"label_values({_example(lens, label)}{{{_HOST}}}, {label})",
            "refresh": 2,  # when the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }
        for label in _chosen(lens)
    ]


def _chosen(lens: Lens) -> tuple[str, ...]:
    """Return the labels that have variables on the lens's dashboard."""
    firsts = [
        each.metrics.labels[0]
        for each in series_sets(lens)
        if any(family.buckets for family in each.families)
    ]
    return tuple(dict.fromkeys((*_CHOSEN.get(lens.id, ()), *firsts)))


def _example(lens: Lens, label: str) -> str:
    """Return a metric that has this label."""
    having = (each for each in series_sets(lens) if label in each.metrics.labels)
    # In a bounded set, not every value has its own series.
    family = min(having, key=lambda each: bool(each.metrics.top)).all_families[0]
    return f"{family.name}_count" if family.buckets else family.sample_name


# --- the panels of a metric -----------------------------------------------------------------------------------


def _total(lens: Lens, family: Family) -> Json:
    """Return the panel of a fact about a whole lens."""
    units = {field.name: field.unit for field in lens.counts}
    unit, times = _unit(lens, family, units[family.columns[0][1]])
    title = family.sample_name.removeprefix(f"{NAMESPACE}_{lens.id}_").removesuffix("_total")
    query = (times + _sum(_value(family, ()), ["instance"]), "{{instance}}")
    return _time_series(_words(title), [query], unit, family.help, size=(8, 8))


def _details(lens: Lens, declared: SeriesSet, family: Family) -> list[Json]:
    """Return the panels of a metric."""
    labels = (*declared.metrics.labels, *filter(None, [family.label]))
    by = (*(["instance"] if _OF_ONE_HOST & set(labels) else []), *labels)
    matchers = _matchers(lens, declared)
    title = _title(lens, declared, family)
    if family.buckets:
        return _of_histogram(family, by, matchers, declared, title)
    field = declared.table.by_name.get(family.columns[0][1])
    unit, times = _unit(lens, family, field.unit if field else "")
    is_top = bool(declared.metrics.top)
    overrides = [_SENT_BELOW] * (family.label == "direction") + [_OTHERS_GREY] * is_top
    return [
        _time_series(
            title,
            [(times + _sum(_value(family, matchers), by), _legend(by))],
            unit,
            family.help + _how_to_read(unit, family),
            is_stacked=is_top or unit == "percentunit",
            overrides=overrides,
        )
    ]


def _of_histogram(
    family: Family, by: Sequence[str], matchers: Sequence[str], declared: SeriesSet, title: str
) -> list[Json]:
    """Return panels for a histogram: its distribution over time (if shown), quantiles, count and mean."""
    unit = "s" if family.name.endswith("_seconds") else "short"
    is_top = bool(declared.metrics.top)
    # Show its shapes for one value of the first label at a time.
    kept = tuple(by) if is_top else tuple(label for label in by if label != declared.metrics.labels[0])
    buckets = _rate(f"{family.name}_bucket", matchers)
    count, total = (_sum(_rate(f"{family.name}_{part}", matchers), by) for part in ("count", "sum"))
    buckets_by = _sum(buckets, ("le", *kept))
    quantiles: list[tuple[str, str]] = [
        (f"histogram_quantile({share}, {buckets_by})", f"p{100 * share:g} {_legend(kept)}".strip())
        for share in ((0.5, 0.99) if is_top else (0.5, 0.9, 0.99))
    ]
    legend = _legend(by)
    parts = (
        *(
            [(_SHAPES[1], quantiles, unit, "quantiles", {"is_logarithmic": True})]
            if family.has_quantiles
            else []
        ),
        (": count", [(count, legend)], "cps", "measurements per second", {"is_stacked": is_top}),
        (": mean", [(f"{total} / ({count} > 0)", legend)], unit, "mean", {"is_logarithmic": True}),
    )
    panels = [
        _time_series(
            title + ends, queries, each, f"{family.help}: {shows}", overrides=[_OTHERS_GREY] * is_top, **how
        )
        for ends, queries, each, shows, how in parts
    ]
    if is_top:
        return panels
    what = f"{family.help}: count per second in each bucket"
    return [_heat_map(title + _SHAPES[0], _sum(buckets, ["le"]), unit, what), *panels]


def _title(lens: Lens, declared: SeriesSet, family: Family) -> str:
    """Return the panel's title: the metric's name without the set's name, and without the unit if the axis shows it."""
    prefix = declared.metrics.prefix or view_name(lens, declared.table).replace(".", "_")
    words = family.name.removeprefix(f"{NAMESPACE}_{prefix}").lstrip("_")
    words = re.sub(r"(^|_)(seconds|bytes_per_second)$", "", words)
    is_time = family.kind is Kind.COUNTER and family.name.endswith("_seconds")
    return _words(words or ("time" if is_time else prefix))


def _words(name: str) -> str:
    text = name.replace("_", " ")
    return text[0].upper() + text[1:]


def _legend(by: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in by)


def _unit(lens: Lens, family: Family, unit: str) -> tuple[str, str]:
    """Return Grafana's unit for the plotted values of a field with this unit, and the multiplier."""
    is_rate = family.kind is Kind.COUNTER
    # Interface traffic is shown in bits, like link speeds.
    if lens.id == "bandwidth" and unit in ("bytes", "bytes/s"):
        return "bps", "8 * "
    if unit in TIMES:
        if not is_rate:
            return "s", ""
        return ("percentunit" if lens.id in _CPU_LENSES else "short"), ""
    known = {"bytes": ("Bps", "bytes"), "bytes/s": ("Bps", "Bps"), "packets": ("pps", "short")}
    of_rate, of_value = known.get(unit, ("cps", "short"))
    return (of_rate if is_rate else of_value), ""


def _how_to_read(unit: str, family: Family) -> str:
    """Return the note on how to read the rate of a time."""
    if family.kind is not Kind.COUNTER or not family.name.endswith("_seconds"):
        return ""
    return (
        ". 100 % is one CPU."
        if unit == "percentunit"
        else ". Seconds per second: the average number at a time."
    )


# --- PromQL ---------------------------------------------------------------------------------------------------


def _matchers(lens: Lens, declared: SeriesSet) -> list[str]:
    labels, top = declared.metrics.labels, declared.metrics.top
    others = f"|{OTHERS}" if top else ""
    chosen = [f'{label}=~"${label}{others}"' for label in labels if label in _chosen(lens)]
    return [*chosen, *([f'{labels[0]}!="{EVICTED}"'] if top else [])]


def _value(family: Family, matchers: Sequence[str]) -> str:
    """Return the plotted PromQL expression of a metric: for a counter, its rate."""
    select = _rate if family.kind is Kind.COUNTER else _of
    return select(family.sample_name, matchers)


def _rate(name: str, matchers: Sequence[str]) -> str:
    return f"rate({_of(name, matchers)}[$__rate_interval])"


def _of(name: str, matchers: Sequence[str]) -> str:
    """Return the selector of a metric on the selected hosts."""
    return f"{name}{{{', '.join((_HOST, *matchers))}}}"


def _sum(expr: str, by: Sequence[str]) -> str:
    return f"sum by ({', '.join(by)}) ({expr})"


# --- panels ---------------------------------------------------------------------------------------------------


def _time_series(
    title: str,
    queries: Sequence[tuple[str, str]],
    unit: str,
    description: str,
    *,
    size: tuple[int, int] = (12, 9),
    is_stacked: bool = False,
    is_logarithmic: bool = False,
    overrides: Sequence[Json] = (),
) -> Json:
    """Return a panel of lines over time, or of stacked areas. Each query has its PromQL and legend."""
    is_mirrored = _SENT_BELOW in overrides
    drawing: Json = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 40 if is_stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
        "scaleDistribution": {"type": "log", "log": 10} if is_logarithmic else {"type": "linear"},
        "axisCenteredZero": is_mirrored,
    }
    defaults: Json = {"unit": unit, "color": {"mode": "palette-classic"}, "custom": drawing}
    if not is_logarithmic and not is_mirrored:
        defaults["min"] = 0
    targets = [_target(letter, *query) for letter, query in zip("ABC", queries, strict=False)]
    legend = {
        "showLegend": True,
        "displayMode": "table",
        "placement": "bottom",
        "calcs": ["mean", "max", "lastNotNull"],
        "sortBy": "Mean",
        "sortDesc": True,
    }
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    config = {"defaults": defaults, "overrides": overrides}
    return _panel("timeseries", title, description, size) | {
        "targets": targets,
        "fieldConfig": config,
        "options": options,
    }


def _heat_map(title: str, expr: str, unit: str, description: str) -> Json:
    """Return a heat map of counts by bucket over time. Each bucket is a series named after its upper edge."""
    options: Json = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": "cps"},
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
    }
    defaults = {"custom": {"scaleDistribution": {"type": "linear"}}}
    return _panel("heatmap", title, description, (12, 9)) | {
        "targets": [_target("A", expr, "{{le}}", form="heatmap")],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _target(letter: str, expr: str, legend: str, form: str = "time_series") -> Json:
    return {
        "refId": letter,
        "datasource": _PROMETHEUS,
        "editorMode": "code",
        "expr": expr,
        "format": form,
        "instant": False,
        "range": True,
        "legendFormat": legend,
    }


def _panel(kind: str, title: str, description: str, size: tuple[int, int]) -> Json:
    width, height = size
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": _PROMETHEUS,
        "gridPos": {"w": width, "h": height},
    }
