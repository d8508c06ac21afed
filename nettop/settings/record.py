# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop record`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from nettop.errors import UsageError
from nettop.settings import DAY_S
from nettop.settings.declared import listed, setting
from nettop.settings.shared import LensView, Redacting, Watching
from nettop.settings.values import checked_word, parse_duration, parse_names, parse_size
from nettop.snapshots import all_views, lenses
from nettop.snapshots.collector import LENS as COLLECTOR
from nettop.snapshots.findings import LENS as FINDINGS

_LIMITS = "When to end, what to keep"
DIRECTORY_BYTES = 1 << 30
"""Maximum size of a directory of recordings, unless another one is chosen."""


def _parse_lenses(flag: str, text: str) -> tuple[str, ...]:
    """Return the named lenses and findings, in the order of the screens."""
    known = [lens.id for lens in lenses()]
    named = parse_names(flag, text)
    if not named:
        raise UsageError(
            f"{flag} is empty", "list lenses, separated by commas, or leave it out for all but collector"
        )
    chosen = {checked_word("lens", name, known) for name in named} | {FINDINGS.id}
    return tuple(name for name in known if name in chosen)


def _parse_length(flag: str, text: str) -> float:
    """Parse a number of seconds or a duration."""
    return parse_duration(flag, f"{text}s" if text[-1:].isdigit() else text)


# fmt: off
@dataclass(frozen=True, kw_only=True)
class RecordSettings(Watching, Redacting):
    """Settings of `nettop record`.

    `path` is a file, `-` for standard output, or with `is_hourly` a directory with a file for each hour; empty for a
    file in the working directory that is named by host and time. The recording ends after `duration_s` (None: when
    interrupted). A file or standard output ends it before exceeding `max_bytes` (None: no limit); a directory removes
    its oldest files that exceed `max_bytes` or `max_age_s`.
    """

    PANEL = "What to record"
    VIEWS = all_views()
    IS_UNATTENDED = True

    path: str = setting("", metavar="[FILE|DIR/|-]", help="File to record to, directory for a file per hour, or - for "
                        "standard output (nettop-HOST-TIME.nettop in the working directory)")
    lenses: tuple[str, ...] = setting(
        tuple(lens.id for lens in lenses() if lens.id != COLLECTOR.id), "--lenses", metavar="A,B,C",
        parse=_parse_lenses, complete=listed([lens.id for lens in lenses()]),
        help="Lenses to record; findings are always included (all but collector). services and latency, with hooks in "
        "each call and packet, and cpu, with 997 samples a second, cost most")
    duration_s: float | None = setting(None, "--for", metavar="TIME", panel=_LIMITS, parse=_parse_length,
                                       help="End after this time: 30s, 10m, 6h, 2d (when interrupted)")
    max_bytes: int | None = setting(None, "--max-size", metavar="SIZE", panel=_LIMITS,
                                    parse=partial(parse_size, least="1M"),
                                    help="End before FILE exceeds this size (no limit); in a directory, remove the "
                                    "oldest recordings while all exceed it (1G)")
    max_age_s: float = setting(7 * DAY_S, "--max-age", metavar="TIME", panel=_LIMITS,
                               parse=partial(parse_duration, examples="12h or 7d"),
                               help="In a directory, remove recordings that ended longer ago than this (7d)")
    # fmt: on

    @property
    def is_hourly(self) -> bool:
        """True if the path is a directory."""
        return self.path.endswith("/") or (bool(self.path) and os.path.isdir(self.path))

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        if "max_age_s" in given and not self.is_hourly:
            raise UsageError("--max-age is for a directory of recordings", "end a recording with --for, or name a DIR/")
        if self.duration_s is not None and self.duration_s < self.interval_s:
            raise UsageError(
                f"--for {given['duration_s']} is shorter than an interval",
                f"use {self.interval_s:g}s or more, or a lower --interval",
            )

    def watched(self) -> tuple[Sequence[LensView], float]:
        """Return the views of the recorded lenses, and the interval."""
        return [view for view in self.VIEWS if view[0].id in self.lenses], self.interval_s
