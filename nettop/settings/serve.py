# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nettop.errors import UsageError
from nettop.settings import DEFAULT_LISTEN, EMPTY, UNWATCHED_INTERVAL_S
from nettop.settings.declared import listed, setting
from nettop.settings.shared import CommandSettings, LensView, Watching, at_setting, check_source, from_setting
from nettop.settings.values import checked_word, parse_names, parse_seconds
from nettop.snapshots import all_views, lenses
from nettop.snapshots.own_cost import SELF

MAX_SERIES = 10_000
ALL_LENSES = tuple(lens.id for lens in lenses())
ACCESS = "Listening and access"


def series_set_names() -> list[str]:
    """Return the names of the bounded sets of series that --top accepts."""
    declared = (metrics for _, table in all_views() for metrics in table.metrics or ())
    return sorted({metrics.top for metrics in declared if metrics.top})


def _parse_lenses(flag: str, text: str) -> tuple[str, ...]:
    named = parse_names(flag, text)
    if not named:
        raise UsageError(f"{flag} is empty", "list lenses, separated by commas, or leave it out for all")
    return tuple(checked_word("lens", name, [*ALL_LENSES, SELF.id]) for name in named)


def _parse_top(flag: str, words: Sequence[str]) -> dict[str, int]:
    top: dict[str, int] = {}
    for word in words:
        name, _, number = word.partition("=")
        checked_word("set of series", name, series_set_names())
        if not (number.isascii() and number.isdecimal()) or int(number) > MAX_SERIES:
            raise UsageError(
                f"{flag} {word!r} is not NAME=N, with N from 0 to {MAX_SERIES}",
                f"write it like {flag} process=20",
            )
        top[name] = int(number)
    return top


# fmt: off
@dataclass(frozen=True, kw_only=True)
class Access(CommandSettings):
    """Who may ask a server. Requests need the token in `token_file`, if there is one; `cert` and `key` are the paths of
    a certificate chain and its key, for TLS."""

    token_file: str | None = setting(None, "--token-file", metavar="FILE", panel=ACCESS,
                                     help="Require the token in FILE for requests, as a bearer token or as the "
                                     "password of any user")
    insecure_listen: bool = setting(False, "--insecure-listen", panel=ACCESS,
                                    help="Allow requests from other hosts without a token")
    cert: str | None = setting(None, "--cert", metavar="FILE", panel=ACCESS, help="Certificate chain for HTTPS")
    key: str | None = setting(None, "--key", metavar="FILE", panel=ACCESS, help="Private key of the certificate")


@dataclass(frozen=True, kw_only=True)
class ServeSettings(Watching, Access):
    """Settings of `nettop serve`.

    `listen` are addresses, HOST:PORT or unix:PATH. `lenses` are ids; rows must match all `filters` whose fields their
    table has. `top` overrides the number of series of bounded sets, by name. `access_log` writes each response to
    standard error.
    """

    PANEL = "What to serve"
    VIEWS = all_views()
    IS_UNATTENDED = True

    listen: tuple[str, ...] = setting(
        (DEFAULT_LISTEN,), "--listen", metavar="HOST:PORT|unix:PATH", panel=ACCESS,
        help=f"Address to listen on; repeatable ({DEFAULT_LISTEN})")
    access_log: bool = setting(False, "--access-log", panel=ACCESS, help="Log each response to standard error")
    lenses: tuple[str, ...] = setting(
        ALL_LENSES, "--lenses", metavar="A,B,C", parse=_parse_lenses, complete=listed(ALL_LENSES),
        help="Lenses to serve; the lenses they use are added (all)")
    filters: tuple[str, ...] = setting(
        (), "--filter", metavar="TEXT",
        help="Serve only matching rows, as in nettop --filter; does not apply to tables that lack a field of it")
    top: Mapping[str, int] = setting(
        EMPTY, "--top", metavar="NAME=N", kind=list[str], parse=_parse_top,
        complete=[f"{name}=" for name in series_set_names()],
        help="Export series for the N largest and one for the others, of: "
        f"{', '.join(series_set_names())}; 0 exports none; repeatable")
    interval_s: float = setting(
        1.0, "--interval", "-t", metavar="SECONDS", parse=parse_seconds,
        help="Seconds between readings while somebody watches a table (1); otherwise at least "
        f"{UNWATCHED_INTERVAL_S:g}, and a reading for each scrape")
    recording: Path | None = from_setting("Serve")
    at: str | None = at_setting()
    # fmt: on

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        check_source(self, given)

    @property
    def read_lenses(self) -> tuple[str, ...]:
        """The lenses and those that their tables use, in the order of the screens."""
        used = {use.partition(".")[0] for lens in lenses() if lens.id in self.lenses for table in lens.tables
                for use in table.uses}  # fmt: skip
        return tuple(name for name in ALL_LENSES if name in used.union(self.lenses))

    def watched(self) -> tuple[Sequence[LensView], float]:
        """Return the views of the lenses that are read, and the interval."""
        read = self.read_lenses
        return [view for view in self.VIEWS if view[0].id in read], self.interval_s
