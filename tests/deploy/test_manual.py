# SPDX-License-Identifier: Apache-2.0
"""The manual has every command, option and example of the command line, and man renders it without warnings."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import manual
import pytest
import typer

from nettop.cli import app

GROUP: Any = typer.main.get_command(app)
COMMANDS = {"nettop": GROUP, **{f"nettop-{name}": command for name, command in GROUP.commands.items()}}


def plain(text: str) -> str:
    """Return a page's source as readers see it, line by line."""
    for escape, character in ((r"\(aq", "'"), (r"\(ti", "~"), (r"\(ha", "^"), (r"\(ga", "`"), (r"\-", "-")):
        text = text.replace(escape, character)
    return re.sub(r"\\f[BIR]|\\:|\\&", "", text)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Return the pages by name."""
    return {name.removesuffix(".1"): text for name, text in manual.pages().items()}


def test_every_command_has_a_page(pages: dict[str, str]) -> None:
    """Every command has a page, and nettop(1) refers to all of them."""
    assert pages.keys() == COMMANDS.keys()
    for name in COMMANDS.keys() - {"nettop"}:
        assert f"{name}(1)" in plain(pages["nettop"])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_has_all_that_help_has(pages: dict[str, str], name: str) -> None:
    """A page has each option with all names, value and help, each argument and each example."""
    command, page = COMMANDS[name], plain(pages[name]).splitlines()
    entries = [(page[at + 1], page[at + 2]) for at, line in enumerate(page) if line == ".TP"]
    context = typer.Context(command, info_name=name)
    for get_param in (param for param in command.get_params(context) if not getattr(param, "hidden", False)):
        names = (
            {*get_param.opts, *get_param.secondary_opts}
            if get_param.param_type_name == "option"
            else {get_param.metavar}
        )
        ((term, meaning),) = ((t, m) for t, m in entries if names <= {t, *re.split(r"[ ,]+", t)})
        assert meaning == get_param.help
        assert get_param.metavar is None or get_param.metavar in term
    examples = [line for line in command.epilog.split("\n") if line.startswith(("nettop ", "curl "))]
    assert examples
    for example in examples:
        assert example.partition("  ")[0] in page


@pytest.mark.parametrize("name", COMMANDS)
def test_man_renders_it_without_warnings(pages: dict[str, str], name: str, tmp_path: Path) -> None:
    """man renders each page without warnings, with the options that lintian uses."""
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    file = tmp_path / f"{name}.1"
    file.write_text(pages[name])
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", file],
        env=os.environ | {"LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "NETTOP" in done.stdout


def test_the_same_sources_make_the_same_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pages' date is that of the sources, so that builds are reproducible."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert all("1970-01-02" in text.replace(r"\-", "-") for text in manual.pages().values())
