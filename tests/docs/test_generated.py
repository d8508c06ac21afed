# SPDX-License-Identifier: Apache-2.0
"""The committed documents match what generates them, and their links and file lists hold."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from nettop.snapshots import lenses

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", ["fields.md", "metrics.md", "flows.proto"])
def test_documents_are_as_declared(document: str) -> None:
    """What `make generate` writes from the declarations of lenses and columns is committed."""
    generate = runpy.run_path(str(ROOT / "scripts" / "generate.py"))
    assert (ROOT / "docs" / document).read_text() == generate["DOCUMENTS"][document]()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each file that a document links to, or shows as a picture, exists."""
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_readme_leads_to_every_page() -> None:
    """README links to each page in docs/, of which there are at most twelve."""
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()))
    assert len(pages) <= 13


def test_readme_shows_every_screenshot() -> None:
    """README shows each screenshot that scripts/screenshots.py draws, and each is committed."""
    shots = runpy.run_path(str(ROOT / "scripts" / "screenshots.py"))["SCREENSHOTS"]
    shown = re.findall(r"\(docs/screenshots/(\w+)\.svg\)", (ROOT / "README.md").read_text())
    assert sorted(shown) == sorted(shots)


def test_each_walk_names_seven_files_at_most() -> None:
    """Each walk of the page, a byte counter's and an event's, names at most seven files, which exist."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    sections = [re.findall(r"^\d\. \[`([^`]+)`\]", part, re.MULTILINE) for part in page.split("\n## ")]
    walks = [files for files in sections if files]
    assert len(walks) == 2
    assert all(len(files) <= 7 for files in walks)
    assert all((ROOT / file).is_file() for files in walks for file in files)


def test_kernel_support_lists_declared_hooks() -> None:
    """docs/kernel-support.md lists hooks that a lens declares, in its order, in its lens's table, and no others.

    A new hook is missing until it was run on the kernels.
    """
    page = (ROOT / "docs" / "kernel-support.md").read_text()
    parts = {title: text for title, _, text in (part.partition("\n") for part in page.split("\n## "))}
    for lens in lenses():
        listed = re.findall(r"^\| `(\w+)` \|", parts.get(lens.title, ""), re.MULTILINE)
        assert listed == [hook.name for hook in lens.hooks if hook.name in listed]
