# SPDX-License-Identifier: Apache-2.0
"""Findings that the documents quote are sentences that rules make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nettop.snapshots import lenses

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
    in_text = [each for each in IN_TEXT.findall(BLOCK.sub("", text)) if len(each.split()) >= WORDS_MIN]
    assert len(in_blocks) + len(in_text) >= least
    assert [each for each in (*in_blocks, *in_text) if not SENTENCES.fullmatch(each)] == []
