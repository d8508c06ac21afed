# SPDX-License-Identifier: Apache-2.0
"""Recordings in place of the running kernel, and their moments."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nettop.commands.invoker import invoking_user, open_files_as
from nettop.commands.privilege import give_up_privileges, open_session
from nettop.diagnostics import Diagnostics
from nettop.errors import SourceFailed, UsageError
from nettop.process.importing import importing
from nettop.settings import STDOUT
from nettop.snapshots import lenses

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.recording.player import Player
    from nettop.recording.recording import Recording

INPUT = "standard input"
"""The name of a recording `-`."""
_TERMINAL = "/dev/tty"
SERVICE_FOLDER = Path("/var/lib/nettop/recordings")
"""Where nettop-record.service keeps its recordings."""


@contextmanager
def opened_recording(path: Path, *, keeps_privileges: bool, whole: bool = True) -> Iterator[Recording]:
    """Open a recording or a folder of recordings as the caller of sudo, then give up all privileges, as nothing needs
    them; but not those of a test. What nettop-record.service has kept is opened as root: sudo is meant to show it.

    `-` is standard input: a file, or a pipe, whose end is awaited if the `whole` recording is needed. Raise UsageError
    if there is none, SourceFailed if it cannot be read, at the end also if a part of it could not.
    """
    with opened_recordings([path], keeps_privileges=keeps_privileges, whole=whole) as (recording,):
        yield recording


@contextmanager
def opened_recordings(
    paths: Sequence[Path], *, keeps_privileges: bool, whole: bool = True
) -> Iterator[list[Recording]]:
    """Open several recordings; see `opened_recording`."""
    with importing():
        from nettop.recording.numbers import Damaged
    with ExitStack() as opened:
        recordings = []
        for path in paths:
            with open_files_as(None if path == SERVICE_FOLDER else invoking_user()):
                recordings.append(opened.enter_context(_opened(path)))
        if not keeps_privileges:
            drop_all_privileges()
        if whole:
            for recording in recordings:
                recording.read_all()
                _refuse_a_part(recording)
        try:
            yield recordings
        except Damaged as error:
            raise SourceFailed(
                f"the recording is damaged at this moment: {error}", "choose another moment"
            ) from error
        for path, recording in zip(paths, recordings, strict=True):
            _refuse_a_part(recording)
            _say_what_is_unread(INPUT if str(path) == STDOUT else str(path), recording)


def _opened(path: Path) -> AbstractContextManager[Recording]:
    with importing():
        from nettop.recording.recording import open_recording, open_stream

    if str(path) != STDOUT:
        return open_recording(path)
    report = Diagnostics(sys.stderr)
    return open_stream(
        _take_input(), INPUT, lambda: report(f"waiting for a recording on {INPUT} (Ctrl-C ends)")
    )


def _take_input() -> int:
    """Return another descriptor of standard input, which becomes the terminal, so that the screens read keys there;
    without a terminal, /dev/null. Raise UsageError if it can be no recording."""
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise UsageError(
            f"{INPUT} is {what}", "pipe a recording to it: ssh web1 sudo nettop record - | nettop replay -"
        )
    number = sys.stdin.fileno()
    taken = os.dup(number)
    try:
        keys = os.open(_TERMINAL, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        keys = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(keys, number)
    os.close(keys)
    return taken


def _refuse_a_part(recording: Recording) -> None:
    """Raise SourceFailed if a part of a pipe could not be stored."""
    if recording.cut_short:
        raise SourceFailed(
            f"the recording on {INPUT} was cut short: {recording.cut_short}",
            "set TMPDIR to a folder with more room, or record to a file",
        )


def _say_what_is_unread(name: str, recording: Recording) -> None:
    """Say what of a recording this version does not know. Raise SourceFailed if some of it is damaged."""
    unread = recording.unread | (recording.lenses - {lens.id for lens in lenses()})
    if unread:
        Diagnostics(sys.stderr)(
            f"{name} has what this version does not know, and so does not show: {', '.join(sorted(unread))}; "
            f"nettop {recording.groups[-1].group.nettop} wrote it"
        )
    if damage := recording.damage:
        more = f", and in {len(damage) - 1} other places" if len(damage) > 1 else ""
        raise SourceFailed(
            f"{Path(name, recording.damaged_file)} is damaged {damage[0]}{more}; the readings there are missing above",
            "copy it again from where it was recorded",
        )


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
    here_ns = begin if text.lstrip().startswith("+") else end
    return parse_moment(text, begin_ns=begin, end_ns=end, here_ns=here_ns, now_ns=time.time_ns())


def open_replay(player: Player) -> AbstractContextManager[Session]:
    """Open a session that reads what a player shows, as often as that changes at its speed, also what comes through a
    pipe from now on."""
    with importing():
        from nettop.recording.player import RecordedSource

    player.recording.follow()  # privileges are given up by now: another thread would keep them
    by_id = {lens.id: lens for lens in lenses()}
    return open_session(player.interval_s, lambda lens: RecordedSource(player, by_id[lens]))
