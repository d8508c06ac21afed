#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write the manual pages of nettop and each of its commands, from the same data as --help.

scripts/manual.py FOLDER
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from nettop import __version__  # noqa: E402 - the checkout comes first
from nettop.cli import app  # noqa: E402

_ESCAPES = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", "\0": r"\:"}
)
# Where a line may break within a long word.
_LONG_WORD, _BREAK = re.compile(r"\S{50,}"), re.compile(r"[/?&,|]")
_MARKUP = re.compile(r"\[/?(?:bold|dim)\]")
_EXIT_CODES = re.compile("Exit codes?: ")
_NO_PANEL = "General"


def pages() -> dict[str, str]:
    """Return the text of each page, by file name."""
    group = typer.main.get_command(app)
    commands = {
        "nettop": group,
        **{f"nettop {name}": subcommand for name, subcommand in group.commands.items()},
    }
    return {f"{_page_name(name)}.1": _page(name, command, commands) for name, command in commands.items()}


def _page(name: str, command: Any, commands: dict[str, Any]) -> str:
    context = typer.Context(command, info_name=name)
    others = [_page_name(other) for other in commands if other != name]
    # The same sources give the same pages.
    date = time.strftime("%Y-%m-%d", time.gmtime(float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    purpose = command.help[:1].lower() + command.help[1:].rstrip(".")
    lines = [
        f'.TH {_escaped(_page_name(name).upper())} 1 {date} "nettop {__version__}" "nettop"',
        # No hyphenation or extra spaces in text to be typed.
        *(".nh", ".ad l"),
        *(".SH NAME", f"{_escaped(_page_name(name))} \\- {_escaped(purpose)}"),
        *(".SH SYNOPSIS", f"{_bold(name)} {_escaped(' '.join(command.collect_usage_pieces(context)))}"),
        *(".SH DESCRIPTION", _escaped(command.help)),
        *_parameters(command.get_params(context)),
        *(_commands(commands) if hasattr(command, "commands") else ()),
        *_epilog(command.epilog),
        *(".SH SEE ALSO", ", ".join(f"{_bold(other)}(1)" for other in sorted(others))),
    ]
    return "\n".join([*lines, ""])


def _page_name(command: str) -> str:
    return command.replace(" ", "-")


# --- options ------------------------------------------------------------------------------------------------


def _parameters(parameters: Iterable[Any]) -> Iterator[str]:
    shown = [parameter for parameter in parameters if not parameter.hidden]
    arguments = [parameter for parameter in shown if parameter.param_type_name == "argument"]
    if arguments:
        yield ".SH ARGUMENTS"
        for argument in arguments:
            yield from _entry(_italic(argument.metavar), argument.help)
    # As in --help, options without a panel come first.
    options = sorted(
        (parameter for parameter in shown if parameter not in arguments),
        key=lambda parameter: bool(parameter.rich_help_panel),
    )
    if options:
        yield ".SH OPTIONS"
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or _NO_PANEL, []).append(option)
    for panel, members in panels.items():
        if len(panels) > 1:
            yield f".SS {_escaped(panel)}"
        for member in members:
            yield from _entry(_option(member), member.help)


def _option(option: Any) -> str:
    value = "" if option.is_flag or option.count else " " + _italic(option.metavar)
    return ", ".join(_bold(name) + value for name in (*option.opts, *option.secondary_opts))


def _entry(term: str, meaning: str) -> tuple[str, ...]:
    return ".TP", term, _escaped(meaning)


def _commands(commands: dict[str, Any]) -> Iterator[str]:
    yield ".SH COMMANDS"
    for name, command in commands.items():
        if name != "nettop":
            yield from _entry(f"{_bold(_page_name(name))}(1)", command.help)


# --- below the options ------------------------------------------------------------------------------


def _epilog(text: str) -> Iterator[str]:
    """Yield the examples, exit codes, and other paragraphs of an epilog."""
    heading, *paragraphs = text.split("\n\n")
    assert _MARKUP.sub("", heading) == "Examples"
    sections: dict[str, list[str]] = {"EXAMPLES": [], "NOTES": [], "EXIT STATUS": []}
    for paragraph in paragraphs:
        if re.match(r"(nettop|curl)\b", paragraph):
            sections["EXAMPLES"] += _example(paragraph)
        elif _EXIT_CODES.match(paragraph):
            sections["EXIT STATUS"] += _prose(_EXIT_CODES.sub("", paragraph))
        else:
            sections["NOTES"] += _prose(paragraph)
    for name, lines in sections.items():
        if lines:
            yield from (f".SH {name}", *lines)


def _example(paragraph: str) -> Iterator[str]:
    command, _, meaning = paragraph.partition("  ")
    yield from (".PP", _bold(command))
    if meaning:
        yield from (".RS 4", _escaped(_MARKUP.sub("", meaning)), ".RE")


def _prose(paragraph: str) -> tuple[str, str]:
    text = " ".join(paragraph.split())
    return ".PP", _escaped(text[:1].upper() + text[1:])


# --- roff ---------------------------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    breakable = _LONG_WORD.sub(lambda word: _BREAK.sub("\\g<0>\0", word[0]), text)
    escaped = breakable.translate(_ESCAPES)
    return r"\&" + escaped if escaped.startswith(".") else escaped


def _bold(text: str) -> str:
    return rf"\fB{_escaped(text)}\fR"


def _italic(text: str) -> str:
    return rf"\fI{_escaped(text)}\fR"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in pages().items():
        (folder / file).write_text(content, encoding="utf-8")
