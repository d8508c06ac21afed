# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop log`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nettop.errors import UsageError
from nettop.settings import DAY_S, MIN_INTERVAL_S, LineFormat, checked_seconds
from nettop.settings.declared import setting
from nettop.settings.shared import LensView, Watching, check_why, complete_columns, line_format, why_setting
from nettop.settings.values import parse_count, parse_names, parse_off, parse_seconds, parse_size
from nettop.snapshots import all_views, logged_views, views

NONE = "none"
"""The value of --log-dir for no files."""
_WHERE = "Output"


def _parse_directory(flag: str, text: str) -> str | None:
    if not text:
        raise UsageError(f"{flag} is empty", f"write it like {flag} log, or none for the console only")
    return None if text == NONE else text


# fmt: off
@dataclass(frozen=True, kw_only=True)
class LogSettings(Watching):
    """Settings of `nettop log`.

    `views` are LENS[.TABLE]; rows must match all `filters`; `columns` are None for each table's defaults. Tables are
    read every `interval_s` and logged every `metrics_interval_s`. A file is rotated before it exceeds `rotate_bytes`,
    and `keep` old ones are kept.
    """

    PANEL = "What to log"
    VIEWS = all_views()
    IS_LOG = True

    views: tuple[str, ...] = setting(
        ("connections",), "--lens", metavar="LENS[.TABLE]", complete=views(),
        help=f"Lens or table to log: {', '.join(views())}; repeatable (connections and connections.events)")
    filters: tuple[str, ...] = setting(
        (), "--filter", metavar="TEXT",
        help="Log only matching rows, as in nettop --filter; tables that lack a field of it are not logged")
    columns: tuple[str, ...] | None = setting(None, "--columns", metavar="A,B,C", parse=parse_names,
                                              complete=complete_columns,
                                              help="Columns to log after the time, in tables that have them")
    metrics: bool = setting(True, "--events-only", kind=bool, parse=parse_off, help="Log events only")
    events: bool = setting(True, "--metrics-only", kind=bool, parse=parse_off, help="Log metrics only")
    metrics_interval_s: float = setting(30.0, "--metrics-interval", metavar="SECONDS",
                                        parse=partial(parse_seconds, most=DAY_S),
                                        help="Seconds between metrics of open connections (30)")
    format: LineFormat = line_format("Line format: text for people, jsonl for programs", _WHERE)
    why: bool = why_setting(_WHERE)
    directory: str | None = setting("log", "--log-dir", metavar="DIR|none", panel=_WHERE, parse=_parse_directory,
                                    help="Directory for log files; none: console only (log, in the working directory)")
    rotate_bytes: int = setting(64 << 20, "--rotate-size", metavar="SIZE", panel=_WHERE,
                                parse=partial(parse_size, least="16K"),
                                help="Rotate a file before it exceeds this size (64M)")
    keep: int = setting(8, "--keep", metavar="N", panel=_WHERE, parse=parse_count,
                        help="Rotated files to keep for each log (8)")
    console: bool = setting(True, "--no-console", kind=bool, panel=_WHERE, parse=parse_off,
                            help="Write to the files only")
    # fmt: on

    @property
    def read_every_s(self) -> float:
        """Seconds between readings: no more than between metrics."""
        return min(self.interval_s, self.metrics_interval_s)

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        if not self.events and not self.metrics:
            raise UsageError("--events-only conflicts with --metrics-only", "leave out both to log everything")
        if not self.console and self.directory is None:
            raise UsageError(
                "--no-console with --log-dir none would write nothing", "set --log-dir, or leave out --no-console"
            )
        least_s = self.interval_s if "interval_s" in given else MIN_INTERVAL_S
        checked_seconds("--metrics-interval", self.metrics_interval_s, least_s, DAY_S)
        check_why(self.why, self.format)

    def watched(self) -> tuple[Sequence[LensView], float]:
        """Return the logged views, and the seconds between readings."""
        return logged_views(self.views), self.read_every_s
