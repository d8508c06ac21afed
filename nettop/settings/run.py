# SPDX-License-Identifier: Apache-2.0
"""Settings of `nettop run`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nettop.errors import UsageError
from nettop.settings import LineFormat, shared
from nettop.settings.declared import setting
from nettop.snapshots.connections import EVENTS, LENS
from nettop.snapshots.schema import OptionValues

INTERVAL_S = 5.0
"""Seconds between readings: long, as nobody looks at the tables while the command runs."""


# fmt: off
@dataclass(frozen=True, kw_only=True)
class RunSettings(shared.CommandSettings):
    """Settings of `nettop run`.

    `words` are the command and its arguments. `live` reports each connection as it ends, not all at the end. `output`
    is the path of the report, standard error if None. The command runs as the user who called nettop through sudo.
    """

    VIEWS = ((LENS, EVENTS),)
    IS_LOG = True

    words: tuple[str, ...] = setting((), metavar="-- COMMAND [ARGUMENTS]",
                                     help="Command to run")
    format: LineFormat = shared.line_format("Report format: text for people, jsonl for programs")
    why: bool = shared.why_setting()
    live: bool = setting(False, "--live", help="Report each connection as it closes, not all at the end")
    output: str | None = setting(None, "--output", metavar="FILE",
                                 help="Write the report to FILE, each connection as it closes")
    follow_namespaces: bool = shared.namespaces_setting()
    mechanisms: Mapping[str, str] = shared.mechanism_setting()
    options: OptionValues = field(default_factory=dict)
    # fmt: on

    def check(self, _given: Mapping[str, Any]) -> None:
        """Raise UsageError for a missing command, and reasons without JSON Lines."""
        if not self.words or not self.words[0]:
            raise UsageError("no command to run", "write it after --, like nettop run -- curl https://example.com")
        shared.check_why(self.why, self.format)

    def watched(self) -> tuple[Sequence[shared.LensView], float]:
        """Return the table of events, and the interval."""
        return self.VIEWS, INTERVAL_S
