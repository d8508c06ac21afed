# SPDX-License-Identifier: Apache-2.0
"""Each dashboard conforms to Grafana's own types in @grafana/schema."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .compose import SERVICES
from .grafana import FILES, Json, dashboard, panels
from .npm import npm_packages

GRAFANA = SERVICES["grafana"]["image"].rpartition(":")[2]
"""Grafana version in the compose file, whose types are used."""
PACKAGES = (f"@grafana/schema@{GRAFANA}", "typescript@5.9.3")
TYPES = Path(__file__).with_name("dashboards.ts")
CONFIG = {
    "compilerOptions": {
        "strict": True,
        "noEmit": True,
        "target": "es2022",
        "module": "preserve",
        "moduleResolution": "node10",
        "skipLibCheck": True,
        "types": [],
    },
    "include": ["*.ts"],
}


def first(made: Json, kind: str) -> Json:
    """Return the first panel of a kind."""
    return next(panel for panel in panels(made) if panel["type"] == kind)


MISTAKES: dict[str, Callable[[Json], object]] = {
    "unknown_member": lambda made: made.update(refreshes="30s"),
    "option_of_another_kind": lambda made: first(made, "stat")["options"].update(showHeader=True),
    "unknown_value": lambda made: first(made, "stat")["options"].update(graphMode="bars"),
    "row": lambda made: first(made, "row").update(colapsed=True),
}
"""Functions that each make one mistake in a dashboard."""


def wrong() -> Iterator[tuple[str, Json]]:
    """Yield each mistake, in an otherwise valid dashboard."""
    right = dashboard(FILES[0])
    of_kind = {panel["type"]: panel for file in FILES for panel in panels(dashboard(file))}
    right["panels"] = list(of_kind.values())
    for name, make in MISTAKES.items():
        made = copy.deepcopy(right)
        make(made)
        yield name, made


def errors(dashboards: Iterable[tuple[str, Json]]) -> dict[str, str]:
    """Return the compiler's errors by dashboard, and those of the types themselves."""
    packages = npm_packages(*PACKAGES)
    texts = {name: json.dumps(made, indent=1, ensure_ascii=False) for name, made in dashboards}
    # Below the packages, where the compiler finds them.
    with tempfile.TemporaryDirectory(dir=packages) as name:
        folder = Path(name)
        shutil.copy(TYPES, folder)
        (folder / "tsconfig.json").write_text(json.dumps(CONFIG))
        for stem, text in texts.items():
            content = (
                f"import type {{ Dashboard }} from './dashboards';\nexport const made: Dashboard = {text};\n"
            )
            (folder / f"{stem}.ts").write_text(content)
        compiler = packages / "node_modules/typescript/bin/tsc"
        words = ["node", str(compiler), "--pretty", "false", "--project", name]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    parts = re.split(r"^(?=\w+\.ts\()", done.stdout, flags=re.MULTILINE)
    said = {
        stem: "".join(part for part in parts if part.startswith(f"{stem}.ts("))
        for stem in (TYPES.stem, *texts)
    }
    assert len("".join(said.values())) == len(done.stdout), done.stdout
    return said


def test_each_dashboard_has_the_right_types() -> None:
    """Each panel is of a known kind, with only that kind's options and fields."""
    said = errors((file.stem.replace("-", "_"), dashboard(file)) for file in FILES)
    assert len(said) == len(FILES) + 1
    assert "".join(said.values()) == ""


def test_a_mistake_is_an_error() -> None:
    """The types reject every mistake."""
    said = errors(wrong())
    assert said.pop(TYPES.stem) == ""
    assert [name for name in MISTAKES if "error TS" not in said[name]] == []
