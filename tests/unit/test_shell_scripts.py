# SPDX-License-Identifier: Apache-2.0
"""The bash scripts avoid constructs on which bash itself would exit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = [*sorted((CHECKOUT / "scripts").glob("*.sh")), CHECKOUT / ".ci/run"]


def read_only(code: str) -> set[str]:
    """Return the names that are made read-only."""
    return {name for names in re.findall(r"(?m)^\s*readonly (?:-a )?(.*)$", code) for name in _names(names)}


def _names(words: str) -> list[str]:
    """Return the names in the words of a declaration, without their values."""
    plain = re.sub(r"#.*|'[^']*'|\"[^\"]*\"|\([^)]*\)?", "", words)
    return re.findall(r"(?:^|\s)(\w+)(?==|\s|$)", plain)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_readonly_names_are_assigned_once(script: Path) -> None:
    """Read-only variables are neither set twice nor declared `local` in a function, which bash refuses."""
    code = script.read_text()
    constants = read_only(code)
    local = {name for names in re.findall(r"\blocal (.*)", code) for name in _names(names)}
    assert constants & local == set()
    for name in constants:
        assert len(re.findall(rf"(?m)(?:^|[\s;]){name}\+?=(?!=)", code)) <= 1, name


def test_names_of_every_form() -> None:
    """The parser finds names in all forms of declaration."""
    code = "readonly a=1 b=$x/y\n  readonly c d\nreadonly e=(f --g=h)\nreadonly -a i='j k'\n"
    assert read_only(code) == {"a", "b", "c", "d", "e", "i"}
