# SPDX-License-Identifier: Apache-2.0
"""`nettop` itself: options, settings and startup."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nettop import version_of_build
from nettop.commands.hosts import show_hosts
from nettop.commands.invoker import invoking_user
from nettop.commands.options import (
    SourceOf,
    follow_namespaces_option,
    max_overhead_option,
    mechanism_option,
    normal_priority_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    parse_seconds,
    with_lens_options,
)
from nettop.commands.privilege import open_session, why_still_root
from nettop.commands.recordings import refuse_live_options
from nettop.commands.replay import show_demo
from nettop.commands.show import SHOW, ShowOptions, show_screens, show_text, shown_settings
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.snapshots import all_views, find_table, lenses_of_one_host, several_hosts
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.flows import LENS as FLOWS
from nettop.snapshots.hosts import HOSTS_LENS
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.snapshots.schema import Lens, Table


_HOSTS = "Other hosts"


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"nettop {version_of_build()}")
        raise typer.Exit


def _help_all(ctx: typer.Context, requested: bool) -> None:
    if requested:
        formatter = ctx.make_formatter()
        command: Any = ctx.command
        command.format_all_help(ctx, formatter)
        typer.echo(formatter.getvalue(), nl=False)
        raise typer.Exit


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options(all_views())
class ViewOptions(ShowOptions):
    """Options of `nettop` itself: also those of the running kernel."""

    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", panel=SHOW,
                                    help="Seconds between refreshes (1)")] = "1"
    max_overhead: Annotated[str | None, max_overhead_option(SHOW)] = None
    normal_priority: Annotated[bool, normal_priority_option(SHOW)] = False
    mechanism: Annotated[list[str] | None, mechanism_option(SHOW)] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option(SHOW)] = False
    demo: Annotated[bool, option("--demo", panel=SHOW, help="Show a recorded example instead of this host")] = False
    host: Annotated[list[str] | None, option("--host", metavar="HOST", panel=_HOSTS, help="Show this host instead, "
                                             "through ssh; repeat it to see several hosts at once")] = None
    host_command: Annotated[str, option("--host-command", metavar="COMMAND", panel=_HOSTS, help="Command that runs "
                                        "nettop on the hosts ('sudo -n nettop', or 'nettop' as root)")] = ""
    version: Annotated[bool, option("--version", is_eager=True, callback=_version, help="Print the version")] = False
    help_all: Annotated[bool, option("--help-all", is_eager=True, callback=_help_all,
                                     help="Show all options and exit")] = False
    # fmt: on


def view_settings(options: ViewOptions) -> Settings:
    """Convert the options to settings. Raise UsageError for invalid values and combinations."""
    view, text = shown_settings(options)
    interval_s = parse_seconds("--interval", options.interval)
    return Settings(
        interval_s,
        view,
        text,
        parse_mechanisms(options.mechanism),
        parse_overhead(options.max_overhead),
        parse_lens_options(
            options, interval_s, [find_table(view.view)] if options.is_text else all_views()
        ),
    )


def _check_process(pid: str | None) -> None:
    """Raise UsageError if no process has the PID: an empty table would look like an idle process."""
    if pid is None:
        return
    try:
        os.kill(int(pid), 0)
    except PermissionError:  # it exists, but belongs to another user
        return
    except (ProcessLookupError, OverflowError):
        raise UsageError(f"no process has PID {pid}", "list the processes with ps -e") from None



def _check_hosts(options: ViewOptions) -> None:
    """Raise UsageError for options that exclude each other, or that have no effect."""
    if options.host and options.demo:
        raise UsageError("--demo is a recording, --host shows other hosts", "use only one of them")
    if options.host_command and not options.host:
        raise UsageError("--host-command is for --host", "name a host with --host")
    lens = options.view.partition(".")[0]
    if options.host and lens == FLOWS.id:
        raise UsageError(f"--view {options.view} shows what a collector received, of no host", "leave out --host")
    if lens == HOSTS_LENS.id and not options.host:
        raise UsageError(f"--view {options.view} shows other hosts", "name them with --host")


def recorded_arguments(options: ViewOptions, recorded: Sequence[str]) -> list[str]:
    """Return the options of `nettop record` for these lenses on another host."""
    arguments = ["--interval", options.interval, "--lenses", ",".join(recorded)]
    if options.max_overhead is not None:
        arguments += ["--max-overhead", options.max_overhead]
    if options.follow_namespaces:
        arguments.append("--follow-namespaces")
    arguments += [word for mechanism in options.mechanism or () for word in ("--mechanism", mechanism)]
    for declared in (each for lens in lenses_of_one_host() if lens.id in recorded for each in lens.options):
        given = getattr(options, declared.name)
        texts = given if isinstance(given, list) else [given]
        arguments += [f"{declared.flag}={text}" for text in texts if text is not None]
    return arguments


def start_view(options: ViewOptions, source_of: SourceOf) -> ExitCode:
    """Show the screens, or print text."""
    _check_hosts(options)
    if options.host:
        parse_lens_options(options, parse_seconds("--interval", options.interval), all_views())
        with several_hosts():
            return show_hosts(
                view_settings(options),
                options.host,
                options.host_command,
                partial(recorded_arguments, options),
                is_text=options.is_text,
                keeps_privileges=source_of is not None,
            )
    if options.demo:
        refuse_live_options(options)
        return show_demo(options, keeps_privileges=source_of is not None)
    settings = view_settings(options)
    if source_of is None:
        _check_process(options.pid)
    lens, table = find_table(settings.view.view)  # report a wrong name before the heavy imports
    user = invoking_user() if source_of is None else None
    session = open_session(
        settings.interval_s,
        source_of,
        user,
        on_screen=not options.is_text,
        follow_namespaces=options.follow_namespaces,
        program_statistics=lens.id == SELF.id,
        ask_firewall=not options.is_text or lens is FINDINGS,
        max_overhead=settings.max_overhead,
        together=_attached_first(lens, table) if options.is_text else (),
    )
    if options.is_text:
        return show_text(settings, session)
    return show_screens(settings, session, why_still_root(user) or "")


def _attached_first(lens: Lens, table: Table) -> tuple[str, ...]:
    """Return the lenses that text of a table reads, all of which are attached before the first reading."""
    with importing():
        from nettop.output.watching import WATCHED, watches_all
    return WATCHED if watches_all(table) else (lens.id,)
