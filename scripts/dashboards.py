#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes deploy/grafana/dashboards from what lenses and tables of flows declare."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import grafana_flows  # noqa: E402 - the checkout comes first
from grafana_lenses import lens_dashboards  # noqa: E402

FOLDER = ROOT / "deploy" / "grafana" / "dashboards"


def dashboards() -> dict[str, str]:
    """What each file has to hold, by its name."""
    made = {**lens_dashboards(), grafana_flows.FILE: grafana_flows.flows_dashboard()}
    return {name: json.dumps(each, indent=2, ensure_ascii=False) + "\n" for name, each in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    contents = dashboards()
    for old in FOLDER.glob("*.json"):
        if old.name not in contents:
            old.unlink()
    for name, content in contents.items():
        (FOLDER / name).write_text(content, encoding="utf-8")
