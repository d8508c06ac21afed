# SPDX-License-Identifier: Apache-2.0
"""`nettop replay`: options and startup."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nettop.commands.options import SourceOf, option
from nettop.commands.recordings import SERVICE_FOLDER, at_option, moment_of, open_replay, opened_recording
from nettop.commands.show import ShowOptions, show_screens, show_text, shown_settings
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.settings import Settings
from nettop.snapshots import find_table

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.output.text import Replay
    from nettop.recording.player import Player
    from nettop.recording.recording import Recording
    from nettop.snapshots.schema import Lens

HELP = "Show a recording as if it happened now: every screen and every text output."

EXAMPLES = """[bold]Examples[/bold]

nettop replay incident.nettop  [dim]space pauses, . and , step, [ ] change the speed, : jumps[/dim]

nettop replay --at '2 hours ago'  [dim]what nettop-record.service has kept[/dim]

ssh web1 sudo nettop record - | nettop replay -  [dim]a host without your nettop, as it happens[/dim]

nettop replay incident.nettop --at 14:32 --view drops --table --once

nettop replay incident.nettop --format jsonl --view services | jq .port  [dim]every reading, without waiting[/dim]

It needs neither root nor Linux's BPF. Times are UTC. Text has every reading from the moment on, as fast as it can be
printed.

Exit codes: 0 done or interrupted, 2 usage error or no such recording, 3 not in the recording, 5 damaged; others as for
nettop."""

_PLAY = "What to play"


# fmt: off
@dataclass(frozen=True, slots=True)
class ReplayOptions(ShowOptions):
    """Options as given, in the order of --help."""

    recording: Annotated[Path, typer.Argument(metavar="[FILE|DIR|-]", show_default=False, readable=False,
                                              help="Recording, folder of recordings, or - for standard input (those "
                                              "of nettop-record.service)")] = SERVICE_FOLDER
    at: Annotated[str | None, at_option(_PLAY)] = None
    speed: Annotated[str, option("--speed", metavar="FACTOR", panel=_PLAY,
                                 help="Play so many times as fast, from 0.1 to 100, on the screens (1)")] = "1"
    paused: Annotated[bool, option("--paused", panel=_PLAY, help="Begin paused")] = False
    # fmt: on


def start_replay(options: ReplayOptions, source_of: SourceOf) -> ExitCode:
    """Show a recording. Raise UsageError, and SourceFailed if it cannot be read."""
    speed = _speed(options.speed)
    if options.is_text and (options.paused or speed != 1):
        given = "--paused" if options.paused else "--speed"
        raise UsageError(f"{given} applies to the screens", "leave it out: text has every reading")
    shown_settings(options)  # report a wrong word before the recording is opened
    keeps_privileges, whole = source_of is not None, options.at is not None
    with opened_recording(options.recording, keeps_privileges=keeps_privileges, whole=whole) as recording:
        at_ns = moment_of(recording, options.at)
        return play(recording, options, at_ns, speed=speed, paused=options.paused)


def show_demo(options: ShowOptions, *, keeps_privileges: bool) -> ExitCode:
    """Show the recording that comes with nettop, again and again."""
    shown_settings(options)
    packed = as_file(files("nettop") / "demo.nettop")
    with packed as path, opened_recording(path, keeps_privileges=keeps_privileges) as recording:
        return play(recording, options, recording.begin_ns, repeats=True)


def play(
    recording: Recording,
    options: ShowOptions,
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

    view, text = shown_settings(options)
    settings = Settings(recording.groups[0].group.interval_s, view, text)
    player = Player(recording, repeats=repeats)
    player.speed = speed
    player.is_paused = paused or options.is_text
    player.jump(at_ns)
    session = open_replay(player)
    if options.is_text:
        lens, _ = find_table(view.view)
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


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0.1 <= speed <= 100:
        raise UsageError(f"--speed {text}: it must be a number from 0.1 to 100", "leave it out for 1")
    return speed
