# SPDX-License-Identifier: Apache-2.0
"""`nettop serve`: its options, its settings, and how it starts."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nettop.commands.invoker import SERVICE_USERS, invoking_user, named_user, opening_as, owner_of_files
from nettop.commands.options import (
    checked_word,
    complete_list,
    follow_namespaces_option,
    listed_names,
    max_overhead_option,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    seconds,
    starting,
    with_lens_options,
)
from nettop.commands.privilege import Rights, opened_session, refuse_root_for_caller
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.interrupts import requested_by_signals, undisturbed
from nettop.settings import DEFAULT_LISTEN, ServeSettings
from nettop.snapshots import all_views, lenses
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Lens

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

MOST_SERIES = 10_000
_PACKAGES = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")
_UNIX = "unix:"

SERVE_HELP = (
    "Serve everything over HTTP: metrics for Prometheus, a REST API, a stream of events and a dashboard."
)

SERVE_EXAMPLES = f"""[bold]Examples[/bold]

nettop serve  [dim]the dashboard at http://{DEFAULT_LISTEN}/, metrics at /metrics[/dim]

nettop serve --listen 0.0.0.0:9471 --token-file /etc/nettop/token --cert chain.pem --key key.pem

nettop serve --listen unix:/run/nettop/http.sock --lenses connections,drops

nettop serve --top process=50 --top pair=0 --interval 5  [dim]metrics of 50 processes, of no pair of hosts[/dim]

curl -s 'http://{DEFAULT_LISTEN}/api/v1/connections?filter=:443&sort=-bytes_per_s&limit=10'

SIGHUP reads the token and the certificate again; SIGTERM ends when the requests that run are answered."""

_WHAT, _WHERE = "What to serve", "Where and to whom"


def set_names() -> list[str]:
    """The names of the bounded sets of series, which --top takes."""
    declared = (metrics for _, table in all_views() for metrics in table.metrics or ())
    return sorted({metrics.top for metrics in declared if metrics.top})


def _complete_lenses(incomplete: str) -> list[str]:
    return complete_list((lens.id for lens in lenses()), incomplete)


def _complete_top(incomplete: str) -> list[str]:
    return starting([f"{name}=" for name in set_names()], incomplete)


# fmt: off
@with_lens_options(all_views(), unattended=True)
@dataclass(frozen=True, slots=True)
class ServeOptions:
    """The options as they were given, in the order of --help."""

    listen: Annotated[list[str] | None, option("--listen", metavar="HOST:PORT|unix:PATH", panel=_WHERE,
                                               help=f"Address to serve at; may be given several times "
                                               f"({DEFAULT_LISTEN})")] = None
    token_file: Annotated[str | None, option("--token-file", metavar="FILE", panel=_WHERE,
                                             help="Requests need the token in FILE, as a bearer token or as the "
                                             "password of any user")] = None
    insecure_listen: Annotated[bool, option("--insecure-listen", panel=_WHERE,
                                            help="Serve beyond loopback to everybody, without a token")] = False
    cert: Annotated[str | None, option("--cert", metavar="FILE", panel=_WHERE,
                                       help="Certificate chain, for HTTPS")] = None
    key: Annotated[str | None, option("--key", metavar="FILE", panel=_WHERE, help="Key of the certificate")] = None
    access_log: Annotated[bool, option("--access-log", panel=_WHERE,
                                       help="Write a line to standard error for each answer")] = False
    lenses: Annotated[str | None, option("--lenses", metavar="A,B,C", panel=_WHAT, autocompletion=_complete_lenses,
                                         help="Lenses to serve, and those that they use (all)")] = None
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_WHAT,
                                               help="Serve only rows that match, as in nettop --filter, of tables that "
                                               "have such a field")] = None
    top: Annotated[list[str] | None, option("--top", metavar="NAME=N", panel=_WHAT, autocompletion=_complete_top,
                                            help="Metrics list the N largest, and the others as one: "
                                            f"{', '.join(set_names())}; with 0 none; may be given several "
                                            "times")] = None
    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", panel=_WHAT,
                                    help="Read the tables this often (1)")] = "1"
    max_overhead: Annotated[str | None, max_overhead_option(_WHAT)] = None
    mechanism: Annotated[list[str] | None, mechanism_option(_WHAT)] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option(_WHAT)] = False
    # fmt: on


def serve_settings(options: ServeOptions) -> ServeSettings:
    """The settings for these options. Raises UsageError for invalid values and combinations."""
    interval_s = seconds("--interval", options.interval)
    chosen = _lenses(options.lenses)
    tables = [(lens, table) for lens, table in all_views() if lens.id in chosen]
    return ServeSettings(
        listen=tuple(options.listen or (DEFAULT_LISTEN,)),
        insecure_listen=options.insecure_listen,
        token_file=options.token_file,
        cert=options.cert,
        key=options.key,
        access_log=options.access_log,
        lenses=chosen,
        interval_s=interval_s,
        filters=tuple(options.filter or ()),
        top=_top(options.top or ()),
        mechanisms=parse_mechanisms(options.mechanism),
        max_overhead=parse_overhead(options.max_overhead),
        options=parse_lens_options(options, interval_s, tables, unattended=True),
    )


def _lenses(text: str | None) -> tuple[str, ...]:
    """The lenses that are named, and those that their tables use, in the order of the screens."""
    known = {lens.id: lens for lens in lenses()}
    named = listed_names(text)
    if named is None:
        named = tuple(known)
    elif not named:
        raise UsageError("--lenses is empty", "name lenses with commas between them, or leave it out for all")
    chosen = {checked_word("lens", name, list(known)) for name in named if name != SELF.id}
    chosen |= {used for name in chosen for used in _used(known[name])}
    return tuple(name for name in known if name in chosen)


def _used(lens: Lens) -> Iterable[str]:
    return (used for table in lens.tables for used in table.uses)


def _top(words: Iterable[str]) -> dict[str, int]:
    top: dict[str, int] = {}
    for word in words:
        name, _, number = word.partition("=")
        checked_word("set of series", name, set_names())
        if not (number.isascii() and number.isdecimal()) or int(number) > MOST_SERIES:
            raise UsageError(
                f"--top {word!r} is not NAME=N, with N from 0 to {MOST_SERIES}", "write it like --top process=20"
            )
        top[name] = int(number)
    return top


def start_serve(options: ServeOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    """Serve what the options say. Raises NettopError where it cannot begin.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    settings = serve_settings(options)  # a wrong name is reported before anything heavy is imported
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise NettopError(
            f"nettop serve needs packages that are not installed: {', '.join(missing)}",
            "install them with nettop, as nettop[serve]; scripts/install-deps.sh does",
        )
    with undisturbed():
        from nettop.serve.command import opened_server

    named_by = invoking_user()
    user = named_user(SERVICE_USERS) if named_by is None and not os.geteuid() else named_by
    unix = next((word.removeprefix(_UNIX) for word in settings.listen if word.startswith(_UNIX)), None)
    if any((unix, settings.token_file, settings.cert, settings.key)):
        refuse_root_for_caller()
    if unix is not None:
        # As for the files of a log: who owns the directory of a Unix socket removes it in the end.
        user = owner_of_files(Path(unix).parent)
    rights = Rights(
        user,
        follow_namespaces=options.follow_namespaces,
        program_statistics=settings.max_overhead is not None,
    )
    with ExitStack() as ends:
        # While nettop is root: root's own files, and a port below 1024.
        requests = ends.enter_context(requested_by_signals())
        run = ends.enter_context(opened_server(settings, requests, sys.stderr, partial(opening_as, named_by)))
        session = ends.enter_context(
            opened_session(
                settings.interval_s,
                source_of,
                rights,
                max_overhead=settings.max_overhead,
                together=settings.lenses,
            )
        )
        return run(session)
