# SPDX-License-Identifier: Apache-2.0
"""What is generated is what is committed, and what the README shows is so."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from nettop.snapshots import lenses

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


def test_the_flows_need_seven_files_at_most() -> None:
    """Each flow that the page follows, a byte counter's and an event's, names at most seven files that exist."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    flows = [re.findall(r"^\d\. \[`([^`]+)`\]", part, re.MULTILINE) for part in page.split("\n## ")]
    told = [files for files in flows if files]
    assert len(told) == 2
    assert all(len(files) <= 7 for files in told)
    assert all((ROOT / file).is_file() for files in told for file in files)


def test_kernel_support_tells_of_every_point() -> None:
    """docs/kernel-support.md has each point that a lens declares, in its lens's table, and no other."""
    page = (ROOT / "docs" / "kernel-support.md").read_text()
    parts = {title: text for title, _, text in (part.partition("\n") for part in page.split("\n## "))}
    told = {
        lens.title: re.findall(r"^\| `(\w+)` \|", parts.get(lens.title, ""), re.MULTILINE)
        for lens in lenses()
    }
    assert told == {lens.title: [point.name for point in lens.hooks] for lens in lenses()}
