# SPDX-License-Identifier: Apache-2.0
"""What is generated is what is committed, and what the README shows is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_fields_are_as_declared() -> None:
    """docs/fields.md says what the lenses declare; `make generate` writes it."""
    generate = runpy.run_path(str(ROOT / "scripts" / "generate.py"))
    assert (ROOT / "docs" / "fields.md").read_text() == generate["fields_page"]()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each file that a document links to exists."""
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_flow_needs_seven_files_at_most() -> None:
    """The page that follows a byte counter names at most seven files, and each of them names the counter's way."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    files = re.findall(r"^\d\. \[`([^`]+)`\]", page, re.MULTILINE)
    assert 1 <= len(files) <= 7
    assert all((ROOT / file).is_file() for file in files)
