# SPDX-License-Identifier: Apache-2.0
"""`nettop` itself: settings and startup."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from nettop import version_of_build
from nettop.commands.hosts import show_hosts
from nettop.commands.invoker import invoking_user
from nettop.commands.options import SourceOf
from nettop.commands.privilege import open_watching, why_still_root
from nettop.commands.replay import show_demo
from nettop.commands.show import ShownSettings, show_screens, show_text
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.settings.declared import setting
from nettop.settings.shared import Watching, refuse_live
from nettop.snapshots import all_views, find_table, lenses_of_one_host, several_hosts
from nettop.snapshots.collector import LENS as COLLECTOR
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.hosts import HOSTS_LENS
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.settings.shared import LensView


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
@dataclass(frozen=True, kw_only=True)
class LiveSettings(Watching, ShownSettings):
    """Settings of `nettop` itself: also how this host is read, or which ones instead."""

    PANEL = "What to show"
    VIEWS = all_views()

    demo: bool = setting(False, "--demo", help="Show a recorded example instead of this host")
    hosts: tuple[str, ...] = setting((), "--host", metavar="HOST", panel=_HOSTS,
                                     help="Show this host instead, through ssh; repeat it to see several hosts at once")
    host_command: str = setting("", "--host-command", metavar="COMMAND", panel=_HOSTS, help="Command that runs nettop "
                                "on the hosts ('sudo -n nettop', or 'nettop' as root)")
    version: bool = setting(False, "--version", panel="Options", is_eager=True, callback=_version,
                            help="Print the version")
    help_all: bool = setting(False, "--help-all", panel="Options", is_eager=True, callback=_help_all,
                             help="Show all options and exit")
    # fmt: on

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other, or that have no effect."""
        if self.hosts and self.demo:
            raise UsageError("--demo is a recording, --host shows other hosts", "use only one of them")
        if self.host_command and not self.hosts:
            raise UsageError("--host-command is for --host", "name a host with --host")
        lens = self.view.partition(".")[0]
        if self.hosts and lens == COLLECTOR.id:
            raise UsageError(f"--view {self.view} shows what a collector received, of no host", "leave out --host")
        if lens == HOSTS_LENS.id and not self.hosts:
            raise UsageError(f"--view {self.view} shows other hosts", "name them with --host")
        if self.demo:
            refuse_live(self, given)
        with several_hosts() if self.hosts else nullcontext():
            super().check(given)

    def watched(self) -> tuple[Sequence[LensView], float]:
        """Return the views that options of lenses must concern, and the seconds between readings."""
        with several_hosts() if self.hosts else nullcontext():
            return [find_table(self.view)] if self.is_text else all_views(), self.interval_s

    def settings(self) -> Settings:
        """Return the settings of the frontend."""
        return Settings(
            self.interval_s, self.shown(), self.text(), self.mechanisms, self.max_overhead, self.options
        )


def _check_process(pid: int | None) -> None:
    """Raise UsageError if no process has the PID: an empty table would look like an idle process."""
    if pid is None:
        return
    try:
        os.kill(pid, 0)
    except PermissionError:  # it exists, but belongs to another user
        return
    except (ProcessLookupError, OverflowError):
        raise UsageError(f"no process has PID {pid}", "list the processes with ps -e") from None


def recorded_arguments(settings: LiveSettings, recorded: Sequence[str]) -> list[str]:
    """Return the options of `nettop record` for these lenses on another host."""
    arguments = ["--interval", f"{settings.interval_s:g}", "--lenses", ",".join(recorded)]
    if settings.max_overhead is not None:
        arguments += ["--max-overhead", f"{settings.max_overhead * 100:g}%"]
    if settings.follow_namespaces:
        arguments.append("--follow-namespaces")
    arguments += [word for pair in settings.mechanisms.items() for word in ("--mechanism", "=".join(pair))]
    declared = [option for lens in lenses_of_one_host() if lens.id in recorded for option in lens.options]
    return arguments + [
        f"{option.flag}={option.text(settings.options[option])}" for option in declared if option in settings.options
    ]


def start_view(given: LiveSettings, source_of: SourceOf) -> ExitCode:
    """Show the screens, or print text."""
    if given.hosts:
        with several_hosts():
            return show_hosts(
                given.settings(),
                given.hosts,
                given.host_command,
                partial(recorded_arguments, given),
                is_text=given.is_text,
                keeps_privileges=source_of is not None,
            )
    if given.demo:
        return show_demo(given, keeps_privileges=source_of is not None)
    settings = given.settings()
    if source_of is None:
        _check_process(given.pid)
    lens, table = find_table(settings.view.view)
    user = invoking_user() if source_of is None else None
    together: tuple[str, ...] = ()
    if given.is_text:  # what the text reads is attached before the first reading
        with importing():
            from nettop.output.watching import WATCHED, watches_all
        together = WATCHED if watches_all(table) else (lens.id,)
    session = open_watching(
        given,
        source_of,
        user,
        on_screen=not given.is_text,
        program_statistics=lens.id == SELF.id,
        ask_firewall=not given.is_text or lens is FINDINGS,
        together=together,
    )
    if given.is_text:
        return show_text(settings, session)
    return show_screens(settings, session, why_still_root(user) or "")
