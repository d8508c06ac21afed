# SPDX-License-Identifier: Apache-2.0
"""`nettop replay`: settings and startup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettop.commands.options import SourceOf
from nettop.commands.recordings import SERVICE_FOLDER, moment_of, open_replay, opened_recording
from nettop.commands.show import ShownSettings, show_screens, show_text
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.settings.declared import setting
from nettop.settings.shared import at_setting
from nettop.snapshots import find_table

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.output.text import Replay
    from nettop.recording.player import Player
    from nettop.recording.recording import Recording
    from nettop.snapshots.schema import Lens

HELP = "Show a recording as if it happened now: every screen and every text output."

EXAMPLES = """\
nettop replay incident.nettop  # space pauses, . and , step, [ ] change the speed, : jumps
nettop replay --at '2 hours ago'  # what nettop-record.service has kept
ssh web1 sudo nettop record - | nettop replay -  # a host without your nettop, as it happens
nettop replay incident.nettop --at 14:32 --view drops --table --once
nettop replay incident.nettop --format jsonl --view services | jq .port  # every reading, without waiting

It needs neither root nor Linux's BPF. Times are UTC. Text has every reading from the moment on, as fast as it can be
printed.

Exit codes: 0 done or interrupted, 2 usage error or no such recording, 3 not in the recording, 5 damaged; others as for
nettop."""

_PLAY = "What to play"


def _parse_speed(flag: str, text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.1 <= speed <= 100:
        raise UsageError(f"{flag} {text}: it must be a number from 0.1 to 100", "leave it out for 1")
    return speed


# fmt: off
@dataclass(frozen=True, kw_only=True)
class ReplaySettings(ShownSettings):
    """Settings of `nettop replay`."""

    recording: Path = setting(SERVICE_FOLDER, metavar="[FILE|DIR|-]", kind=Path,
                              help="Recording, folder of recordings, or - for standard input (those of "
                              "nettop-record.service)")
    at: str | None = at_setting(_PLAY)
    speed: float = setting(1.0, "--speed", metavar="FACTOR", panel=_PLAY, parse=_parse_speed,
                           help="Play so many times as fast, from 0.1 to 100, on the screens (1)")
    paused: bool = setting(False, "--paused", panel=_PLAY, help="Begin paused")
    # fmt: on

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        super().check(given)
        if self.is_text and (self.paused or self.speed != 1):
            flag = "--paused" if self.paused else "--speed"
            raise UsageError(f"{flag} applies to the screens", "leave it out: text has every reading")


def start_replay(settings: ReplaySettings, source_of: SourceOf) -> ExitCode:
    """Show a recording. Raise UsageError, and SourceFailed if it cannot be read."""
    keeps_privileges, whole = source_of is not None, settings.at is not None
    with opened_recording(settings.recording, keeps_privileges=keeps_privileges, whole=whole) as recording:
        at_ns = moment_of(recording, settings.at)
        return play(recording, settings, at_ns, speed=settings.speed, paused=settings.paused)


def show_demo(shown: ShownSettings, *, keeps_privileges: bool) -> ExitCode:
    """Show the recording that comes with nettop, again and again."""
    packed = as_file(files("nettop") / "demo.nettop")
    with packed as path, opened_recording(path, keeps_privileges=keeps_privileges) as recording:
        return play(recording, shown, recording.begin_ns, repeats=True)


def play(
    recording: Recording,
    shown: ShownSettings,
    at_ns: int,
    *,
    speed: float = 1.0,
    paused: bool = False,
    repeats: bool = False,
    on_interrupt: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Show a recording from a moment on; call `on_interrupt` after Ctrl-C or a signal. Raise UsageError if what to show
    is invalid."""
    with importing():
        from nettop.recording.player import Player

    settings = Settings(recording.groups[0].group.interval_s, shown.shown(), shown.text())
    player = Player(recording, repeats=repeats)
    player.speed = speed
    player.is_paused = paused or shown.is_text
    player.jump(at_ns)
    session = open_replay(player)
    if shown.is_text:
        lens, _ = find_table(settings.view.view)
        player.go_to_first(lens)
        return show_text(settings, session, partial(_replay, player, lens))
    return show_screens(settings, session, "", player, on_interrupt=on_interrupt)


def _replay(player: Player, lens: Lens, session: Session) -> Replay:
    """Return a replay that shows every reading of a lens."""
    from nettop.output.text import Replay

    def advance() -> bool:
        while not player.step(lens, 1):
            if not player.recording.wait_for_more():
                return False
            session.sample_now().result()  # finds what came
        session.sample_now()
        return True

    return Replay(player.recording.host, advance)
