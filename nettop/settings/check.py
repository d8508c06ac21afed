# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nettop.settings import DAY_S, LineFormat, shared
from nettop.settings.declared import setting
from nettop.settings.values import checked_word, parse_seconds
from nettop.snapshots import all_rules
from nettop.snapshots.schema import FORMER_KINDS

KINDS = tuple(all_rules())
WATCHED_S = 2 + max(rule.after_s for _, _, rule in all_rules().values())
"""Seconds to watch, unless --for says otherwise: a rate needs two readings, and then rules wait. A longer interval is
watched once."""


def _parse_kinds(_flag: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return kinds by their current names. Raise UsageError for an unknown one, with the nearest."""
    return tuple(checked_word("kind of finding", FORMER_KINDS.get(kind, kind), KINDS) for kind in kinds)


# fmt: off
@dataclass(frozen=True, kw_only=True)
class CheckSettings(shared.CommandSettings):
    """Settings of `nettop check`: how long to watch or, of a recording, to look from `at` on; how to print; and the
    kinds of findings to leave out."""

    length: str = setting("", "--for", metavar="SECONDS", help=f"Seconds to watch ({WATCHED_S:g}), or of the recording "
                          "to look at (all of it)")
    interval_s: float = setting(1.0, "--interval", "-t", metavar="SECONDS", parse=parse_seconds,
                                help="Seconds between readings (1)")
    ignored: tuple[str, ...] = setting((), "--ignore", metavar="KIND", kind=list[str], complete=KINDS,
                                       parse=_parse_kinds,
                                       help="Leave out findings of this kind; repeatable")
    format: LineFormat = shared.line_format()
    recording: Path | None = shared.from_setting("Check")
    at: str | None = shared.at_setting()
    mechanisms: Mapping[str, str] = shared.mechanism_setting()
    normal_priority: bool = shared.priority_setting()
    follow_namespaces: bool = shared.namespaces_setting()
    # fmt: on

    @property
    def duration_s(self) -> float:
        """Seconds to watch this host."""
        if not self.length:
            return max(self.interval_s, WATCHED_S)
        return parse_seconds("--for", self.length.removesuffix("s"), self.interval_s, DAY_S)

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        shared.check_source(self, given)
        if self.recording is None:
            _ = self.duration_s  # refuses a wrong one
