# SPDX-License-Identifier: Apache-2.0
"""Names and prose use the words of the field: none that this project once gave a meaning of its own.

`.venv/bin/python -m tests.docs.test_vocabulary` lists every use of a retired word.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("nettop", "tests", "bench", "scripts")
SELF = Path(__file__).resolve()

RETIRED = {
    *(
        "door",
        "doors",
        "rung",
        "rungs",
        "ladder",
        "ladders",
        "desk",
        "told",
        "met",
        "asked",
        "asking",
    ),
    *("wakes", "outcome", "timed", "picture", "pictures", "found", "had", "way", "ways", "point", "points"),
}
"""As a word of a name, whether it is written in snake or in camel case."""

RETIRED_ALONE = {"one"}
"""As a whole name."""

NAMES_OF_OTHERS = {
    "FileNotFoundError": "Python's own",
    "ModuleNotFoundError": "Python's own",
    "PackageNotFoundError": "importlib's own",
    "entry_point": "the field's word for where execution enters the network stack",
    "entry_points": "the field's word for where execution enters the network stack",
    "ENTRY_POINTS": "the field's word for where execution enters the network stack",
    "EntryPoint": "the field's word for where execution enters the network stack",
    "point_to_point": "what networks call a link of two ends",
    "endpoint": "one word, an address and a port",
}
"""Names that hold a retired word, and why they may."""

PHRASES = (
    r"not here\b",
    r"cannot be had",
    r"\b(?:is|are|was|were) had\b",
    r"\bthe way to\b",
    r"\brungs?\b",
    r"\bladders?\b",
    r"\bdoors?\b",
    r"\bstand-?ins?\b",
    r"\bto be had\b",
    r"\btold\b",
    r"\b(?:is|are|was|were) (?:met|asked)\b",
    r"\bso many, then\b",
    r"\bunheld\b",
    r"\bwakes of\b",
    r"\bkernel room\b",
    r"POINT=WAY",
)
"""Phrases of docs, help and docstrings, whatever the case of their letters."""

PROSE_OF_OTHERS: dict[str, str] = {}
"""Files whose prose is not this project's, and why."""

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
C_NAME = re.compile(r"[A-Za-z_]\w*")
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
C_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"')


def sources(*suffixes: str) -> list[Path]:
    """The project's own files with these endings."""
    files = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in files if path.name.endswith(suffixes) and path.is_file() and path != SELF)


def names_of(path: Path) -> Iterator[tuple[int, str]]:
    """Each name that a file uses, with its line; its own name is on line 0."""
    yield 0, path.name.split(".")[0]
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string
        return
    text = C_COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
    for number, line in enumerate(text.splitlines(), 1):
        for name in C_NAME.findall(C_TEXT.sub("", line)):
            yield number, name


def is_retired(name: str) -> bool:
    """Whether a name is made of a retired word."""
    if name in NAMES_OF_OTHERS or name in RETIRED_ALONE:
        return name in RETIRED_ALONE
    plain = re.sub(r"(?i)entry_?points?", "", name)
    return any(word.lower() in RETIRED for word in WORD.findall(plain))


def retired_names(path: Path) -> list[str]:
    """Where a file uses a retired name."""
    used = dict.fromkeys((name, line) for line, name in names_of(path) if is_retired(name))
    return [f"{path.relative_to(ROOT)}:{line}: {name}" for name, line in used]


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """What a file says to people: a document whole, a program's texts, docstrings and comments."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def retired_phrases(path: Path) -> list[str]:
    """Where a file's prose has a retired phrase."""
    pattern = re.compile("|".join(PHRASES), re.IGNORECASE)
    uses = []
    for first, text in prose_of(path):
        for match in pattern.finditer(text):
            line = first + text.count("\n", 0, match.start())
            uses.append(f"{path.relative_to(ROOT)}:{line}: {match[0]}")
    return uses


def documents() -> list[Path]:
    """README and its like, docs, and the programs with their comments."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *sources(".py", ".bpf.c", ".bpf.h", ".sh")]
    return sorted(path for path in pages if str(path.relative_to(ROOT)) not in PROSE_OF_OTHERS)


def test_names() -> None:
    """No name of a module, function, value or member is a retired word."""
    assert [use for path in sources(".py", ".bpf.c", ".bpf.h") for use in retired_names(path)] == []


def test_prose() -> None:
    """No document, help text, docstring or comment has a retired phrase."""
    assert [use for path in documents() for use in retired_phrases(path)] == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("told", True),
        ("was_told", True),
        ("WasTold", True),
        ("HTTPDoor", True),
        ("has_found2", True),
        ("one", True),
        ("one_row", False),
        ("doorbell", False),
        ("endpoint", False),
        ("entry_points_of", False),
        ("FileNotFoundError", False),
    ],
)
def test_a_name_is_split_into_words(name: str, *, expected: bool) -> None:
    """Only whole words count."""
    assert is_retired(name) is expected


if __name__ == "__main__":
    print(*(use for path in sources(".py", ".bpf.c", ".bpf.h") for use in retired_names(path)), sep="\n")
    print(*(use for path in documents() for use in retired_phrases(path)), sep="\n")
