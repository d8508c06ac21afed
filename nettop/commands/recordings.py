# SPDX-License-Identifier: Apache-2.0
"""Recordings in place of the running kernel: options that name one, and its moments."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettop.commands.invoker import invoking_user, open_files_as
from nettop.commands.options import option
from nettop.commands.privilege import give_up_privileges, open_session
from nettop.errors import UsageError
from nettop.process.importing import importing
from nettop.snapshots import lenses

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.recording.player import Player
    from nettop.recording.recording import Recording

SERVICE_FOLDER = Path("/var/lib/nettop/recordings")
"""Where nettop-record.service keeps its recordings."""


def from_option(what: str, panel: str | None = None) -> Any:
    """Declare --from; `what` is done with the recording."""
    return option("--from", metavar="FILE|DIR", panel=panel, help=f"{what} a recording instead of this host")


def at_option(panel: str | None = None, *, default: str = "the beginning") -> Any:
    """Declare --at; `moment_of` parses its value."""
    return option(
        "--at",
        metavar="TIME",
        panel=panel,
        help="Begin at this moment of the recording, UTC: 14:32, '2026-11-28 14:32:05', '2 hours ago', or -5m for five "
        f"minutes before its end ({default})",
    )


@contextmanager
def opened_recording(path: Path, *, keeps_privileges: bool) -> Iterator[Recording]:
    """Open a recording or a folder of recordings as the caller of sudo, then give up all privileges, as nothing needs
    them; but not those of a test. What nettop-record.service has kept is opened as root: sudo is meant to show it.

    Raise UsageError if there is none, SourceFailed if it cannot be read.
    """
    with opened_recordings([path], keeps_privileges=keeps_privileges) as (recording,):
        yield recording


@contextmanager
def opened_recordings(paths: Sequence[Path], *, keeps_privileges: bool) -> Iterator[list[Recording]]:
    """Open several recordings; see `opened_recording`."""
    with importing():
        from nettop.recording.recording import open_recording

    with ExitStack() as opened:
        recordings = []
        for path in paths:
            with open_files_as(None if path == SERVICE_FOLDER else invoking_user()):
                recordings.append(opened.enter_context(open_recording(path)))
        if not keeps_privileges:
            drop_all_privileges()
        yield recordings


def drop_all_privileges() -> None:
    """Give up all privileges, as nothing needs them once a recording is open. Raise PermissionMissing."""
    if os.geteuid() == 0:
        give_up_privileges(invoking_user())


def moment_of(recording: Recording, text: str | None) -> int:
    """Return the moment that --at names, by default the beginning. Raise UsageError."""
    from nettop.recording.moments import parse_moment

    begin, end = recording.begin_ns, recording.end_ns
    if text is None:
        return begin
    return parse_moment(text, begin_ns=begin, end_ns=end, here_ns=end, now_ns=time.time_ns())


def check_at(at: str | None, recording: Path | None) -> None:
    """Raise UsageError if --at is given without a recording."""
    if at is not None and recording is None:
        raise UsageError(f"--at {at} is a moment of a recording", "name the recording with --from")


def open_replay(player: Player) -> AbstractContextManager[Session]:
    """Open a session that reads what a player shows."""
    with importing():
        from nettop.recording.player import RecordedSource

    by_id = {lens.id: lens for lens in lenses()}
    interval_s = player.recording.groups[0].group.interval_s
    return open_session(interval_s, lambda lens: RecordedSource(player, by_id[lens]))
