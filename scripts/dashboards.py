#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write what the overviews in deploy/grafana/dashboards have in common, and their links to the tables of Details.

All else is kept by hand, the common part in the overview of MODEL.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop.serve.metrics.families import count_families, series_sets  # noqa: E402 - the checkout comes first
from nettop.snapshots import lenses  # noqa: E402
from nettop.snapshots.schema import Lens  # noqa: E402

Json = dict[str, Any]

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"
MODEL = "drops"
"""The lens whose overview has the head and the first panels and variables of all."""
_COMMON_PANELS, _COMMON_VARIABLES = 2, 2


def overviews() -> dict[str, str]:
    """Return the content of each lens's file, by file name; a new lens needs no existing file."""
    return {
        f"{lens.id}.json": json.dumps(overview(lens), indent=2, ensure_ascii=False) + "\n"
        for lens in lenses()
    }


def overview(lens: Lens) -> Json:
    """Return the overview of a lens."""
    text = (FOLDER / f"{MODEL}.json").read_text(encoding="utf-8")
    model: Json = json.loads(text.replace(rf"lens=\"{MODEL}\"", rf"lens=\"{lens.id}\""))
    common = model["panels"][:_COMMON_PANELS]
    file = FOLDER / f"{lens.id}.json"
    variables, panels = [], common
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        variables, panels = kept["templating"]["list"][_COMMON_VARIABLES:], kept["panels"]
    return model | {
        "uid": f"nettop-{lens.id}",
        "title": f"nettop / {lens.title}",
        "description": lens.question[0].upper() + lens.question[1:],
        "links": [model["links"][0], *_links(lens)],
        "templating": {"list": [*model["templating"]["list"][:_COMMON_VARIABLES], *variables]},
        "panels": [
            *(panel | {"gridPos": own["gridPos"]} for panel, own in zip(common, panels, strict=False)),
            *panels[_COMMON_PANELS:],
        ],
    }


def tables(lens: Lens) -> list[str]:
    """Return the tables under which Details shows a lens's metrics, in the order of their declaration."""
    details = json.loads((FOLDER / "details.json").read_text(encoding="utf-8"))
    (regex,) = (detail["regex"] for detail in details["templating"]["list"] if detail["name"] == "table")
    declared = [family for set_ in series_sets(lens) for family in set_.all_families]
    found = (re.match(regex.strip("/"), family.name) for family in (*declared, *count_families(lens)))
    return list(dict.fromkeys(match[1] for match in found if match))


def _links(lens: Lens) -> list[Json]:
    return [
        *(
            _link(
                table.replace("_", " ").capitalize(),
                f"/d/nettop-details?var-table={table}",
                f"Every metric of {table}",
            )
            for table in tables(lens)
        ),
        _link(
            "nettop itself", f"/d/nettop-itself?var-lens={lens.id}", "What reading this lens costs and lacks"
        ),
    ]


def _link(title: str, url: str, tooltip: str) -> Json:
    """Return a link that keeps the time range and the selected hosts."""
    return {
        "type": "link",
        "title": title,
        "url": url,
        "tags": [],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "info",
        "tooltip": tooltip,
    }


if __name__ == "__main__":
    for name, content in overviews().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
