#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the generated rows of deploy/grafana/dashboards: every metric that each lens declares.

The panels above a dashboard's first row, which answer what an on-call engineer asks first, are kept by hand. What all
lenses have in common is kept by hand too, in the dashboard of MODEL. flows-from-routers.json has no generated part.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import grafana_details as details  # noqa: E402 - the checkout comes first
from grafana_details import Json  # noqa: E402

from nettop.snapshots import lenses  # noqa: E402
from nettop.snapshots.schema import Lens  # noqa: E402

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
MODEL = "drops"
"""The lens whose dashboard has the head, the first panels and variables, and the last row of every lens."""
_COMMON_PANELS, _COMMON_VARIABLES = 2, 2
_WIDTH = 24
"""Width of a dashboard in grid columns."""


def dashboards() -> dict[str, str]:
    """Return the content of each lens's file, by file name; a new lens needs no existing file."""
    return {
        f"{lens.id}.json": json.dumps(lens_dashboard(lens), indent=2, ensure_ascii=False) + "\n"
        for lens in lenses()
    }


def lens_dashboard(lens: Lens) -> Json:
    """Return the dashboard of a lens, with its detail rows generated."""
    model = _model_of(lens)
    own_row = model["panels"][-1]
    overview = _overview(lens) or _in_lines(model["panels"][:_COMMON_PANELS], 0)
    variables = [*model["templating"]["list"][:_COMMON_VARIABLES], *details.variables(lens)]
    rows = [*details.rows(lens), (own_row, own_row["panels"])]
    return model | {
        "uid": f"nettop-{lens.id}",
        "title": f"nettop / {lens.title}",
        "description": lens.question[0].upper() + lens.question[1:],
        "templating": {"list": variables},
        "panels": _numbered([*overview, *_placed(rows, _bottom(overview))]),
    }


def _model_of(lens: Lens) -> Json:
    """Return the dashboard of MODEL, adapted to this lens."""
    text = (FOLDER / f"{MODEL}.json").read_text(encoding="utf-8")
    model: Json = json.loads(text.replace(rf"lens=\"{MODEL}\"", rf"lens=\"{lens.id}\""))
    return model


def _overview(lens: Lens) -> list[Json]:
    """Return the panels kept by hand, if the lens has any."""
    file = FOLDER / f"{lens.id}.json"
    panels: list[Json] = json.loads(file.read_text(encoding="utf-8"))["panels"] if file.exists() else []
    first_row = next((place for place, panel in enumerate(panels) if panel["type"] == "row"), len(panels))
    return panels[:first_row]


def _placed(rows: Iterable[details.Row], y: int) -> list[Json]:
    """Place rows below each other; the panels of a collapsed row take up no space."""
    placed: list[Json] = []
    for row, panels in rows:
        inside = _in_lines(panels, y + 1)
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        placed.append(row | {"gridPos": place, "panels": inside if row["collapsed"] else []})
        y += 1
        if not row["collapsed"]:
            placed += inside
            y = _bottom(inside)
    return placed


def _in_lines(panels: Sequence[Json], y: int) -> list[Json]:
    """Place panels in lines from y down, left to right, and stretch the last panel of each line."""
    x = 0
    placed: list[Json] = []
    for panel in panels:
        size = {name: panel["gridPos"][name] for name in ("w", "h")}
        if x + size["w"] > _WIDTH:
            x, y = 0, _bottom(placed)
        if x == 0:
            _fill_line(placed)
        placed.append(panel | {"gridPos": {"x": x, "y": y, **size}})
        x += size["w"]
    _fill_line(placed)
    return placed


def _fill_line(placed: Sequence[Json]) -> None:
    for last in placed[-1:]:
        last["gridPos"]["w"] = _WIDTH - last["gridPos"]["x"]


def _bottom(panels: Iterable[Json]) -> int:
    return max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)


def _numbered(panels: Sequence[Json]) -> list[Json]:
    """Number the panels in display order."""
    ids = count(2)
    for panel in panels:
        for each in (panel, *panel.get("panels", ())):
            each["id"] = next(ids)
    return list(panels)


if __name__ == "__main__":
    for name, content in dashboards().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
