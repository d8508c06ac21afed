# SPDX-License-Identifier: Apache-2.0
"""`nettop --help` in one screen, and `nettop help` for a lens, a table or a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import typer

from nettop.commands.options import WIDTH
from nettop.errors import unknown_word
from nettop.settings.declared import setting, words_starting_with
from nettop.settings.shared import CommandSettings
from nettop.snapshots import find_table, lenses, view_name, views
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import RATE, Field, Kind, Lens, Table

HELP = "Explain a lens, a table or a command: its question, columns and options."

EXAMPLES = """\
nettop help services  # its tables, columns, options and hooks
nettop help services.waiting  # the columns of one table
nettop help serve  # the same as nettop serve --help

Without a name it prints what nettop --help prints; nettop --help-all prints every option of the screens.

Exit codes: 0 done, 2 no such lens, table or command."""

_FREQUENT = ("--view", "--filter", "--demo", "--help-all")
"""Options that --help lists; the last one shows all the others."""

_FREQUENT_EXAMPLES = (
    ("nettop --host web1 --host db1 --filter 'rtt_us>10ms'", "slow connections of two hosts, live"),
    ("nettop --view services --table --once --deltas -t 10", "response times in the last 10 seconds"),
)

# These come from click, or from a copy of it inside typer.
Formatter = Any
Command = Any


def _complete_topic(ctx: typer.Context, incomplete: str) -> list[str]:
    group: Command = ctx.find_root().command
    return words_starting_with([*views(), *group.commands], incomplete)


@dataclass(frozen=True, kw_only=True)
class HelpSettings(CommandSettings):
    """Settings of `nettop help`."""

    topic: str = setting(
        "", metavar="[LENS[.TABLE]|COMMAND]", complete=_complete_topic, help="What to explain"
    )


def show_help(group: Command, topic: str) -> None:
    """Print the help of a lens, a table or a command; of nettop if the topic is empty.

    Raise UsageError if there is no such topic.
    """
    context = root = typer.Context(group, info_name="nettop", max_content_width=WIDTH)
    if topic in views():
        formatter = root.make_formatter()
        _write_view(topic, formatter)
        typer.echo(formatter.getvalue(), nl=False)
        return
    if topic and topic not in group.commands:
        raise unknown_word("lens, table or command", topic, [*views(), *group.commands])
    if topic:
        context = typer.Context(group.commands[topic], info_name=topic, parent=root)
    typer.echo(context.command.get_help(context))


# --- one screen -------------------------------------------------------------------------------------------------


def write_overview(group: Command, context: Any, formatter: Formatter) -> None:
    """Write the question each lens answers, the most used options, the commands and examples."""
    formatter.write_usage("nettop", "[LENS] [OPTIONS] | COMMAND …")
    formatter.write(f"{group.help}\n")
    options = {param.opts[0]: param for param in group.get_params(context) if param.opts}
    sections = {
        "Lenses (nettop LENS)": [(lens.id, lens.question) for lens in (*lenses(), SELF)],
        "Options": [_option(options[name]) for name in _FREQUENT],
        "Commands": [(name, command.help) for name, command in group.commands.items()],
        "Examples": list(_FREQUENT_EXAMPLES),
    }
    for title, rows in sections.items():
        _write_section(formatter, title, rows)


def _option(option: Any) -> tuple[str, str]:
    """Return an option's names and value, and the first clause of its help."""
    names = ", ".join(sorted(option.opts, key=len))
    summary = option.help.partition(":")[0].partition(";")[0]
    return (names if option.is_flag else f"{names} {option.metavar}"), summary


def _write_section(formatter: Formatter, title: str, rows: list[tuple[str, str]]) -> None:
    if rows:
        with formatter.section(title):
            formatter.write_dl(rows, col_max=52)


# --- a lens or a table ------------------------------------------------------------------------------------------


def _write_view(view: str, formatter: Formatter) -> None:
    lens, table = find_table(view)
    formatter.write_usage("nettop", f"--view {view} [OPTIONS]")
    formatter.write_text(f"{view}: {lens.question}.")
    others = [
        (view_name(lens, other), ", ".join(other.screen)) for other in lens.tables if other is not table
    ]
    _write_section(formatter, "Other tables", others)
    _write_section(formatter, "Columns", [(field.name, _meaning(field)) for field in table.fields])
    _write_section(formatter, "Options", _lens_options(lens, table))
    if table is lens.main:
        _write_section(formatter, "Hooks (--mechanism)", [(hook.name, hook.help) for hook in lens.hooks])


def _lens_options(lens: Lens, table: Table) -> list[tuple[str, str]]:
    return [
        (
            f"{', '.join(filter(None, (option.short, option.flag)))} {option.metavar}",
            option.help_with(option.default),
        )
        for option in lens.options
        if option.concerns(table)
    ]


def _meaning(field: Field) -> str:
    unit = f" ({field.unit})" if field.unit else ""
    rate = f"; {field.name}{RATE} is its rate" if field.kind is Kind.COUNTER else ""
    return f"{field.help}{unit}{rate}"
