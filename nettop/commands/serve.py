# SPDX-License-Identifier: Apache-2.0
"""`nettop serve`: options, settings and startup."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nettop.commands.invoker import SERVICE_USERS, file_owner, invoking_user, named_user, open_files_as
from nettop.commands.options import (
    SourceOf,
    checked_word,
    completer,
    follow_namespaces_option,
    list_completer,
    max_overhead_option,
    mechanism_option,
    normal_priority_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    parse_seconds,
    require_packages,
    split_names,
    with_lens_options,
)
from nettop.commands.privilege import give_up_privileges, open_session, refuse_root_for_caller
from nettop.commands.recordings import (
    at_option,
    check_source,
    from_option,
    moment_of,
    open_replay,
    opened_recording,
)
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import DEFAULT_LISTEN, UNWATCHED_INTERVAL_S, ServeSettings
from nettop.snapshots import all_views, lenses
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.recording.player import Player
    from nettop.recording.recording import Recording

MAX_SERIES = 10_000
_PACKAGES = ("httptools", "prometheus_client", "starlette", "uvicorn", "uvloop")
_UNIX = "unix:"

HELP = "Serve metrics for Prometheus, a REST API, an event stream and a dashboard over HTTP."

EXAMPLES = f"""[bold]Examples[/bold]

nettop serve  [dim]dashboard at http://{DEFAULT_LISTEN}/, metrics at /metrics[/dim]

nettop serve --listen 0.0.0.0:9471 --token-file /etc/nettop/token --cert chain.pem --key key.pem

nettop serve --listen unix:/run/nettop/http.sock --lenses connections,drops

nettop serve --top process=50 --top pair=0 --interval 5  [dim]metrics of 50 processes, none of pairs of hosts[/dim]

nettop serve --from incident.nettop --at 14:32  [dim]a recording, to any user; it plays from there to its end[/dim]

curl -s 'http://{DEFAULT_LISTEN}/api/v1/connections?filter=:443&sort=-bytes_per_s&limit=10'

On SIGHUP, nettop rereads the token and the certificate; on SIGTERM, it answers pending requests, then exits."""

_WHAT, _WHERE = "What to serve", "Listening and access"


def series_set_names() -> list[str]:
    """Return the names of the bounded sets of series that --top accepts."""
    declared = (metrics for _, table in all_views() for metrics in table.metrics or ())
    return sorted({metrics.top for metrics in declared if metrics.top})


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options(all_views(), unattended=True)
class ServeOptions:
    """Options as given, in the order of --help."""

    listen: Annotated[list[str] | None, option("--listen", metavar="HOST:PORT|unix:PATH", panel=_WHERE,
                                               help=f"Address to listen on; repeatable "
                                               f"({DEFAULT_LISTEN})")] = None
    token_file: Annotated[str | None, option("--token-file", metavar="FILE", panel=_WHERE,
                                             help="Require the token in FILE for requests, as a bearer token or as "
                                             "the password of any user")] = None
    insecure_listen: Annotated[bool, option("--insecure-listen", panel=_WHERE,
                                            help="Allow requests from other hosts without a token")] = False
    cert: Annotated[str | None, option("--cert", metavar="FILE", panel=_WHERE,
                                       help="Certificate chain for HTTPS")] = None
    key: Annotated[str | None, option("--key", metavar="FILE", panel=_WHERE,
                                      help="Private key of the certificate")] = None
    access_log: Annotated[bool, option("--access-log", panel=_WHERE,
                                       help="Log each response to standard error")] = False
    lenses: Annotated[str | None, option("--lenses", metavar="A,B,C", panel=_WHAT,
                                         autocompletion=list_completer([lens.id for lens in lenses()]),
                                         help="Lenses to serve; the lenses they use are added (all)")] = None
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_WHAT,
                                               help="Serve only matching rows, as in nettop --filter; does not apply "
                                               "to tables that lack a field of it")] = None
    top: Annotated[list[str] | None, option("--top", metavar="NAME=N", panel=_WHAT,
                                            autocompletion=completer([f"{name}=" for name in series_set_names()]),
                                            help="Export series for the N largest and one for the others, of: "
                                            f"{', '.join(series_set_names())}; 0 exports none; repeatable")] = None
    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", panel=_WHAT,
                                    help="Seconds between readings while somebody watches a table (1); otherwise "
                                    f"at least {UNWATCHED_INTERVAL_S:g}, and a reading for each scrape")] = "1"
    recording: Annotated[Path | None, from_option("Serve", _WHAT)] = None
    at: Annotated[str | None, at_option(_WHAT)] = None
    max_overhead: Annotated[str | None, max_overhead_option(_WHAT)] = None
    normal_priority: Annotated[bool, normal_priority_option(_WHAT)] = False
    mechanism: Annotated[list[str] | None, mechanism_option(_WHAT)] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option(_WHAT)] = False
    # fmt: on


def serve_settings(options: ServeOptions) -> ServeSettings:
    """Convert the options to settings. Raise UsageError for invalid values and combinations."""
    interval_s = parse_seconds("--interval", options.interval)
    check_source(options)
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
    """Return the named lenses and those that their tables use, in the order of the screens."""
    known = {lens.id: lens for lens in lenses()}
    named = split_names(text)
    if named is None:
        named = tuple(known)
    elif not named:
        raise UsageError("--lenses is empty", "list lenses, separated by commas, or leave it out for all")
    chosen = {checked_word("lens", name, list(known)) for name in named if name != SELF.id}
    chosen |= {
        used.partition(".")[0] for name in chosen for table in known[name].tables for used in table.uses
    }
    return tuple(name for name in known if name in chosen)


def _top(words: Iterable[str]) -> dict[str, int]:
    top: dict[str, int] = {}
    for word in words:
        name, _, number = word.partition("=")
        checked_word("set of series", name, series_set_names())
        if not (number.isascii() and number.isdecimal()) or int(number) > MAX_SERIES:
            raise UsageError(
                f"--top {word!r} is not NAME=N, with N from 0 to {MAX_SERIES}", "write it like --top process=20"
            )
        top[name] = int(number)
    return top


def start_serve(options: ServeOptions, source_of: SourceOf) -> ExitCode:
    """Serve until requested to end. Raise NettopError if the server cannot start."""
    settings = serve_settings(options)  # report a wrong name before the heavy imports
    require_packages("serve", _PACKAGES, "install nettop[serve], or run scripts/install-deps.sh")
    with importing():
        from nettop.serve.command import open_server

    named_by = invoking_user()
    user = named_user(SERVICE_USERS) if named_by is None and not os.geteuid() else named_by
    unix = next((word.removeprefix(_UNIX) for word in settings.listen if word.startswith(_UNIX)), None)
    if any((unix, settings.token_file, settings.cert, settings.key)):
        refuse_root_for_caller()
    if unix is not None:
        # As for log files: nettop becomes the owner of the directory, who can remove the Unix socket at the end. In a
        # directory of root's it stays there, and the next start replaces it.
        user = file_owner(Path(unix).parent) or user
    with ExitStack() as ends:
        player = None
        if options.recording is not None:
            recording = ends.enter_context(
                opened_recording(options.recording, keeps_privileges=True, whole=options.at is not None)
            )
            settings = settings._replace(lenses=_recorded_lenses(recording, options.lenses, settings.lenses))
            player = _player(recording, options.at)
        # While nettop is still root: root's own files, and a port below 1024.
        requests = ends.enter_context(requested_by_signals())
        run = ends.enter_context(open_server(settings, requests, sys.stderr, partial(open_files_as, named_by)))
        if player is not None:
            if os.geteuid() == 0 and source_of is None:
                give_up_privileges(user)
            return run(ends.enter_context(open_replay(player)), player)
        session = ends.enter_context(
            open_session(
                settings.interval_s,
                source_of,
                user,
                follow_namespaces=options.follow_namespaces,
                max_overhead=settings.max_overhead,
                together=settings.lenses,
            )
        )
        return run(session)


def _recorded_lenses(recording: Recording, named: str | None, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the chosen lenses that were recorded. Raise Unsupported if one that is named was not, or if none was."""
    wanted = split_names(named) or chosen
    if SELF.id in wanted:
        raise UsageError("self is not in recordings: it is what nettop costs here", "leave it out of --lenses")
    missing = [lens for lens in lenses() if lens.id in wanted and lens.id not in recording.lenses]
    if missing and (named is not None or len(missing) == len(wanted)):
        raise recording.refusal(missing[0])
    return tuple(name for name in chosen if name in recording.lenses)


def _player(recording: Recording, at: str | None) -> Player:
    from nettop.recording.player import Player

    player = Player(recording)
    player.jump(moment_of(recording, at))
    return player
