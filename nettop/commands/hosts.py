# SPDX-License-Identifier: Apache-2.0
"""`nettop --host`: the connection to other hosts, and startup."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from nettop.commands.invoker import invoking_user
from nettop.commands.privilege import give_up_privileges, open_session
from nettop.commands.show import show_screens, show_text
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.snapshots import find_table, lenses
from nettop.snapshots.hosts import HOSTS_LENS

if TYPE_CHECKING:
    from nettop.hosts.hosts import Hosts
    from nettop.snapshots.source import Source

_FIRST_READINGS_S = 10.0
"""Seconds to wait for the first readings of all hosts, once there are some of one."""
_LOOK_S = 0.05


def checked_hosts(names: Sequence[str]) -> tuple[str, ...]:
    """Return the hosts, each once. Raise UsageError for what ssh would not take as a host."""
    for name in names:
        if not name or name.startswith("-") or not name.isprintable() or " " in name:
            raise UsageError(f"--host {name!r} is no host", "name it as for ssh: web1, or admin@web1")
    return tuple(dict.fromkeys(names))


def show_hosts(
    settings: Settings,
    hosts: Sequence[str],
    command: str,
    arguments: Callable[[Sequence[str]], Sequence[str]],
    *,
    is_text: bool,
    keeps_privileges: bool,
) -> ExitCode:
    """Show what nettop records on other hosts, within `several_hosts`. Raise SourceFailed if none can be reached.

    `arguments` returns the options of `nettop record` for some lenses.
    """
    with importing():
        from nettop.hosts.hosts import BASIC, Hosts
        from nettop.hosts.stream import ssh_words
        from nettop.output.watching import WATCHED, watches_all

    names = checked_hosts(hosts)
    if os.geteuid() == 0 and invoking_user() is not None and not keeps_privileges:
        give_up_privileges(invoking_user())  # ssh is the caller's, with the caller's keys

    def start(host: str, recorded: Sequence[str]) -> list[str]:
        return ssh_words(host, command, arguments(recorded))

    with ExitStack() as resources:
        shown = names[0] if len(names) == 1 else f"{len(names)} hosts"
        lens, table = find_table(settings.view.view)
        together = WATCHED if is_text and watches_all(table) else BASIC
        connected = resources.enter_context(Hosts(names, start, settings.interval_s, together=together))
        resources.enter_context(_first_readings(connected, connected.recorded_with(lens.id)[0]))
        session = open_session(
            settings.interval_s,
            partial(_source_of, connected),
            together=(lens.id,) if is_text else (),
        )
        if is_text:
            return show_text(settings, session, host=shown)
        return show_screens(settings, session, "", host=shown)


def _source_of(hosts: Hosts, lens: str) -> Source:
    from nettop.hosts.overview import OverviewSource
    from nettop.hosts.source import HostsSource

    if lens == HOSTS_LENS.id:
        return OverviewSource(hosts)
    return HostsSource(hosts, next(each for each in lenses() if each.id == lens))


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
