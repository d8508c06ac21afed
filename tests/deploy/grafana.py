# SPDX-License-Identifier: Apache-2.0
"""The dashboards in deploy/grafana, and expansion of their queries as Grafana does it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tools import DEPLOY

GRAFANA = DEPLOY / "grafana"
FILES = sorted((GRAFANA / "dashboards").glob("*.json"))
PROMETHEUS, CLICKHOUSE = "prometheus", "grafana-clickhouse-datasource"

Json = dict[str, Any]


def dashboard(file: Path) -> Json:
    """Load a dashboard."""
    loaded: Json = json.loads(file.read_text())
    return loaded


DETAILS = dashboard(GRAFANA / "dashboards" / "details.json")
KEPT = {
    detail["name"]: detail["query"]
    for detail in DETAILS["templating"]["list"]
    if detail["type"] == "constant"
}
"""The variable by which the details leave out the series of those that were evicted."""


def panels(made: Json) -> Iterator[Json]:
    """Yield all panels, including rows and their collapsed panels."""
    for panel in made["panels"]:
        yield panel
        yield from panel.get("panels", ())


@dataclass(frozen=True)
class Target:
    """A query: its location, its data source's plugin, and its text."""

    place: str
    plugin: str
    text: str
    is_instant: bool = False


def targets(made: Json) -> Iterator[Target]:
    """Yield the queries of panels."""
    for panel in panels(made):
        for target in panel.get("targets", ()):
            place = f"{made['title']} / {panel['title']} / {target['refId']}"
            text = target["expr"] if "expr" in target else target["rawSql"]
            yield Target(place, target["datasource"]["type"], text, target.get("instant", False))


def variables(made: Json) -> list[Json]:
    """Return the variables whose values come from queries."""
    return [variable for variable in made["templating"]["list"] if variable["type"] == "query"]


# --- Prometheus -----------------------------------------------------------------------------------------------


def promql(text: str, chosen: Mapping[str, str]) -> str:
    """Expand a query as Grafana sends it, with these values of variables; others match everything."""
    return re.sub(r"\$(?:(\w+)|\{(\w+)(?::\w+)?\})", lambda name: chosen.get(name[1] or name[2], ".*"), text)


def options(variable: Json, values: Iterable[str]) -> list[str]:
    """Return a variable's options from the result of its query, as its regular expression selects them."""
    found = (re.search(variable.get("regex", "")[1:-1], value) for value in values)
    return sorted({match[1] if match.re.groups else match.string for match in found if match})


# --- ClickHouse -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TimeRange:
    """A dashboard's time range, in seconds since 1970."""

    begin: int
    end: int


_MACRO = re.compile(r"\$__(\w+)")


def sql(text: str, chosen: Mapping[str, str], time: TimeRange) -> str:
    """Expand a query as ClickHouse's data source sends it.

    As in its source: `$__conditionalAll` and variables are replaced in the browser (src/data/CHDatasource.ts), the
    other macros in the backend (pkg/macros/macros.go).
    """
    text = _conditional(text, chosen)
    text = re.sub(r"\$\{(\w+):singlequote\}", lambda name: f"'{chosen[name[1]]}'", text)
    text = re.sub(r"\$(?!__)(\w+)", lambda name: chosen[name[1]], text)
    begin, end = f"toDateTime({time.begin})", f"toDateTime({time.end})"
    made: dict[str, Callable[[str], str]] = {
        "fromTime": lambda _: begin,
        "toTime": lambda _: end,
        "timeFilter": lambda column: f"{column} >= {begin} AND {column} <= {end}",
    }
    while match := _MACRO.search(text):
        first = match.end()
        last = _closing(text, first) if text[first : first + 1] == "(" else first
        text = text[: match.start()] + made[match[1]](text[first + 1 : last - 1]) + text[last:]
    return text


def _conditional(text: str, chosen: Mapping[str, str]) -> str:
    """Remove the conditions on variables set to all values or left empty."""
    macro = "$__conditionalAll"
    while (begin := text.find(macro)) >= 0:
        first = begin + len(macro)
        last = _closing(text, first)
        condition, _, variable = text[first + 1 : last - 1].rpartition(",")
        is_chosen = bool(chosen.get(variable.strip().removeprefix("$"), ""))
        text = text[:begin] + (condition if is_chosen else "1=1") + text[last:]
    return text


def _closing(text: str, opening: int) -> int:
    """Return the index after the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place + 1
    raise AssertionError(text)
