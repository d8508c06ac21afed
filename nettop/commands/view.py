# SPDX-License-Identifier: Apache-2.0
"""`nettop` itself: settings and startup."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from nettop import version_of_build
from nettop.commands.invoker import invoking_user
from nettop.commands.options import SourceOf
from nettop.commands.privilege import give_up_privileges, open_session, open_watching, why_still_root
from nettop.commands.replay import show_demo
from nettop.commands.show import ShownSettings, show_screens, show_text
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.settings.declared import setting
from nettop.settings.shared import Watching, refuse_live
from nettop.snapshots import all_views, find_table, lenses, lenses_of_one_host, parts_of, several_hosts
from nettop.snapshots.collector import LENS as COLLECTOR
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.hosts import HOSTS_LENS
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.hosts.hosts import Hosts
    from nettop.settings.shared import LensView
    from nettop.snapshots.source import Source


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
        lens, _ = parts_of(self.view)
        if self.hosts and lens == COLLECTOR.id:
            raise UsageError(f"--view {self.view} is about a collector, not about a host", "leave out --host")
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
            return _show_hosts(given, keeps_privileges=source_of is not None)
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


# --- other hosts ----------------------------------------------------------------------------------------------

_FIRST_READINGS_S = 10.0
"""Seconds to wait for the first readings of all hosts, once there are some of one."""
_LOOK_S = 0.05


def checked_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the hosts, each once. Raise UsageError for what ssh would not take as a host."""
    for name in names:
        if not name or name.startswith("-") or not name.isprintable() or " " in name:
            raise UsageError(f"--host {name!r} is no host", "name it as for ssh: web1, or admin@web1")
    return tuple(dict.fromkeys(names))


def _show_hosts(given: LiveSettings, *, keeps_privileges: bool) -> ExitCode:
    """Show what nettop records on other hosts, within `several_hosts`. Raise SourceFailed if none can be reached."""
    with importing():
        from nettop.hosts.hosts import BASIC, Hosts
        from nettop.hosts.stream import ssh_words
        from nettop.output.watching import WATCHED, watches_all

    names, settings = checked_hosts(given.hosts), given.settings()
    if os.geteuid() == 0 and invoking_user() is not None and not keeps_privileges:
        give_up_privileges(invoking_user())  # ssh is the caller's, with the caller's keys

    def start(host: str, recorded: Sequence[str]) -> list[str]:
        return ssh_words(host, given.host_command, recorded_arguments(given, recorded))

    with ExitStack() as resources:
        shown = names[0] if len(names) == 1 else f"{len(names)} hosts"
        lens, table = find_table(settings.view.view)
        together = WATCHED if given.is_text and watches_all(table) else BASIC
        connected = resources.enter_context(Hosts(names, start, settings.interval_s, together=together))
        resources.enter_context(_first_readings(connected, connected.recorded_with(lens.id)[0]))
        session = open_session(
            settings.interval_s,
            partial(_source_of, connected),
            together=(lens.id,) if given.is_text else (),
        )
        if given.is_text:
            return show_text(settings, session, host=shown)
        return show_screens(settings, session, "", host=shown)


def _source_of(hosts: Hosts, lens: str) -> Source:
    from nettop.hosts.overview import OverviewSource
    from nettop.hosts.source import HostsSource

    if lens == HOSTS_LENS.id:
        return OverviewSource(hosts)
    return HostsSource(hosts, next(known for known in lenses() if known.id == lens))


@contextmanager
def _first_readings(hosts: Hosts, lens: str) -> Iterator[None]:
    """Wait until every host has sent a reading or was lost, in the terminal, where ssh's words can be read."""
    from nettop.diagnostics import StatusLine

    hosts.use(lens)
    status, began = StatusLine(sys.stderr), time.monotonic()
    try:
        while True:
            read, lost = hosts.newest(lens), hosts.lost(lens)
            failure = hosts.failure(lens)
            if failure is not None:
                raise failure
            waiting = [name for name in hosts.names if name not in read and name not in lost]
            if not waiting or (read and time.monotonic() - began > _FIRST_READINGS_S):
                break
            status.show(f"waiting for {', '.join(waiting)} …  (Ctrl-C ends)")
            time.sleep(_LOOK_S)
        status.show("")
        yield
    finally:
        hosts.release(lens)
