# SPDX-License-Identifier: Apache-2.0
"""The committed documents match their generator, and their links and file lists are valid."""

from __future__ import annotations

import itertools
import re
import runpy
from pathlib import Path

import pytest

from nettop.snapshots import lenses
from nettop.snapshots.own_cost import SELF

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *PAGES]


@pytest.mark.parametrize("document", ["fields.md", "findings.md", "metrics.md", "kernels.md", "flows.proto"])
def test_documents_are_as_declared(document: str) -> None:
    """The committed documents equal the output of `make generate`."""
    generate = runpy.run_path(str(ROOT / "scripts" / "generate.py"))
    assert (ROOT / "docs" / "reference" / document).read_text() == generate["DOCUMENTS"][document]()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    """Each file that a document links to or embeds exists, and each heading."""
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", document.read_text())
    targets = [(document.parent / path if path else document, anchor) for path, anchor in links]
    assert [path for path, _ in targets if not path.exists()] == []
    assert [(path, anchor) for path, anchor in targets if anchor and anchor not in anchors(path)] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_readme_leads_to_every_page() -> None:
    """README links to each page in docs/."""
    linked = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert {str(page.relative_to(ROOT)) for page in PAGES} <= set(linked)


def test_readme_says_what_each_lens_answers() -> None:
    """README has the answer of each lens, in the lens's own words."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert [lens.id for lens in (*lenses(), SELF) if f"`{lens.id}`**: {lens.question}" not in readme] == []


def test_pages_are_short() -> None:
    """A page has at most 20 kB, except the generated reference."""
    texts = [page for page in PAGES if page.parent.name != "reference"]
    assert [page.name for page in texts if page.stat().st_size > 20_480] == []


def test_readme_shows_every_screenshot() -> None:
    """README shows each screenshot that scripts/screenshots.py draws, and the animation, which loads fast."""
    shots = runpy.run_path(str(ROOT / "scripts" / "screenshots.py"))["SCREENSHOTS"]
    shown = re.findall(r"\(docs/screenshots/(\w+)\.svg\)", (ROOT / "README.md").read_text())
    animation = runpy.run_path(str(ROOT / "scripts" / "animation.py"))["ANIMATION"]
    assert sorted(shown) == sorted([*shots, animation.stem])
    assert animation.stat().st_size <= 500_000


def test_tour_shows_every_screenshot_within_three_keys() -> None:
    """The tour shows each screenshot that scripts/tour.py draws, and each incident is explained by three keys."""
    tour = runpy.run_path(str(ROOT / "scripts" / "tour.py"))
    walks = [tour["LAGGING"], tour["SLOW"], *tour["FROM_FAULTS"].values()]
    shown = re.findall(r"\(screenshots/(tour-[\w-]+)\.svg\)", (ROOT / "docs" / "tour.md").read_text())
    assert sorted(shown) == sorted(step.screenshot for steps in walks for step in steps if step.screenshot)
    assert sorted(shown) == sorted(path.stem for path in (ROOT / "docs" / "screenshots").glob("tour-*.svg"))
    explained = [itertools.takewhile(lambda step: not step.changes, steps) for steps in walks]
    assert all(sum(len(step.keys) for step in steps) <= 3 for steps in explained)


def test_the_kernels_page_has_every_lens() -> None:
    """docs/reference/kernels.md lists the hooks of every lens that has some, with a cell for each kernel.

    A new hook is `–` until it has been run on the kernels.
    """
    page = (ROOT / "docs" / "reference" / "kernels.md").read_text()
    parts = {title: text for title, _, text in (part.partition("\n") for part in page.split("\n## "))}
    for lens in (lens for lens in lenses() if lens.hooks):
        listed = re.findall(r"^\| `(\w+)` \|", parts[lens.title], re.MULTILINE)
        assert listed == [hook.name for hook in lens.hooks]
        assert len({line.count("|") for line in parts[lens.title].strip().splitlines()}) == 1


# --- findings that documents quote ----------------------------------------------------------------------------

DOCS = Path(__file__).parents[2] / "docs"
IN_BLOCK = re.compile(
    r"(?:▲ (?:warning: |hint: )?|^(?:problem|warning|hint|  explains): )(.+?)(?:  |$)", re.MULTILINE
)
IN_TEXT = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
WORDS_MIN = 6
"""Shorter quotes are names, keys and commands."""


def pattern(template: str) -> str:
    """Return a pattern for the sentences of a rule."""
    literal = re.sub(r"\\\{\w+\\\}", r"\\S.*?", re.escape(template))
    return literal.replace(r"\[", "(?:").replace(r"\]", ")?")


SENTENCES = re.compile(
    "|".join(pattern(rule.says) for lens in lenses() for table in lens.tables for rule in table.rules)
)


@pytest.mark.parametrize(("page", "least"), [("use/what-is-wrong.md", 6), ("tour.md", 13)])
def test_quoted_findings_are_sentences_of_rules(page: str, least: int) -> None:
    """In the lines above the rows, in what `nettop check` prints, and in the text."""
    text = (DOCS / page).read_text()
    in_blocks = [found for block in BLOCK.findall(text) for found in IN_BLOCK.findall(block)]
    in_text = [
        sentence for sentence in IN_TEXT.findall(BLOCK.sub("", text)) if len(sentence.split()) >= WORDS_MIN
    ]
    assert len(in_blocks) + len(in_text) >= least
    assert [block for block in (*in_blocks, *in_text) if not SENTENCES.fullmatch(block)] == []
