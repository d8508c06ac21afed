# SPDX-License-Identifier: Apache-2.0
"""`nettop diff`: settings and startup."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from nettop.commands.options import SourceOf, require_output
from nettop.commands.recordings import moment_of, opened_recordings
from nettop.commands.replay import play
from nettop.commands.show import ShownSettings, can_show_screens, require_terminal
from nettop.errors import ExitCode, UsageError, unknown_word
from nettop.process.importing import importing
from nettop.settings import STDOUT, LineFormat
from nettop.settings.declared import choice, setting
from nettop.settings.shared import CommandSettings
from nettop.settings.values import parse_count

if TYPE_CHECKING:
    from nettop.recording.diff import Change, Difference, Span
    from nettop.recording.recording import Recording

HELP = "Say what changed between two moments of a recording, or between two recordings."

EXAMPLES = """\
nettop diff incident.nettop 14:02 14:12  # the minutes from 14:02 and from 14:12 on; → shows the rows
nettop diff incident.nettop begin '10 minutes ago' --span 5m
nettop diff monday.nettop tuesday.nettop 09:00 09:00 --span 1h
nettop diff before.nettop after.nettop  # all of both
nettop diff incident.nettop 14:02 14:12 --open 2  # the second change, on the screen
nettop diff incident.nettop 14:02 14:12 --format jsonl | jq -r .sentence

Moments are UTC, and written as for nettop replay --at; one less than a span before the end means the last span. The
longer a span, the smaller the changes that can be told from what always varies: each is divided into eight parts, which
are compared with each other.

Exit code 1 if something is certain to have changed, 0 if nothing is; others as for nettop replay."""

CONTEXT = {"ignore_unknown_options": True}  # moments such as -5m
_OPTIONS = ("--span", "--limit", "--format", "--open")
_SPAN = "60s"
_USAGE = "nettop diff FILE TIME TIME, or FILE FILE [TIME TIME]"


# fmt: off
@dataclass(frozen=True, kw_only=True)
class DiffSettings(CommandSettings):
    """Settings of `nettop diff`."""

    words: list[str] = setting(MISSING, metavar="FILE|DIR [FILE|DIR] [TIME TIME]", kind=list[str],
                               help="One recording and two moments of it; or two recordings, and a moment of each (all "
                               "of both)")
    span: str = setting("", "--span", metavar="TIME", help="How long to look from each moment on: 90, 60s, 15m, 2h "
                        "(60s)")
    limit: int = setting(20, "--limit", metavar="N", parse=parse_count, help="Show at most so many changes (20)")
    format: LineFormat | None = choice(None, "--format", LineFormat,
                                       help="Print the changes (text; on a terminal, show a list)")
    open: int | None = setting(None, "--open", metavar="N", parse=parse_count, help="Show the rows of the Nth change, "
                               "paused when they show it most")
    # fmt: on

    def check(self, _given: Mapping[str, Any]) -> None:
        """Raise UsageError for settings that exclude each other."""
        if self.open is not None and self.format is not None:
            raise UsageError(
                f"--format {self.format} is for text, --open {self.open} for the screens", "leave one of them out"
            )


def start_diff(settings: DiffSettings, source_of: SourceOf) -> ExitCode:
    """List or print what changed, or show one of the changes. Raise UsageError, SourceFailed if a recording cannot be
    read, and BrokenPipeError if the reader has closed the pipe."""
    paths, moments = _sorted_words(settings.words)
    if settings.span and not moments:
        raise UsageError(f"--span {settings.span} begins at moments, and none is given", _USAGE)
    require_output()
    with importing():
        from nettop.output.diff import report_changes
        from nettop.recording.diff import differences
        from nettop.recording.moments import parse_length

    length_ns = parse_length(settings.span or _SPAN)
    with opened_recordings(paths, keeps_privileges=source_of is not None) as recordings:
        first, last = recordings[0], recordings[-1]
        is_same = paths[0].resolve() == paths[-1].resolve()
        found = differences(*_spans(first, last, moments, length_ns, is_same=is_same))
        if settings.open is not None:
            return _open(found.changes, settings.open, first, last)
        if found.changes and settings.format is None and can_show_screens():
            return _browse(found, settings.limit, first, last)
        form = settings.format or LineFormat.TEXT
        return report_changes(found, form, settings.limit, (str(paths[0]), str(paths[-1])), sys.stdout, sys.stderr)


def _open(changes: Sequence[Change], number: int, before: Recording, now: Recording) -> ExitCode:
    """Show the rows of a change, by its number."""
    if number > len(changes):
        raise UsageError(f"--open {number}: there are {len(changes)} changes", "leave it out to see them")
    require_terminal("leave out --open")
    return _show(changes[number - 1], before, now)


def _browse(found: Difference, limit: int, before: Recording, now: Recording) -> ExitCode:
    """List the changes, and show the rows of those that the user opens, until the user or a signal ends this."""
    with importing():
        from nettop.commands.config import load_own_preferences
        from nettop.screens.changes import ChangesApp
        from nettop.widgets.themes import first_theme

    ended = Event()
    selected = 0
    while not ended.is_set():
        theme = first_theme(remembered=load_own_preferences().preferences.theme)  # the user may have changed it
        app = ChangesApp(found.changes[:limit], found.notes(limit), theme, selected)
        app.run_until_ended()
        if app.chosen is None or app.was_interrupted:
            break
        selected = app.chosen
        _show(found.changes[selected], before, now, on_interrupt=ended.set)
    return ExitCode.FAILURE if found.is_certain else ExitCode.DONE


def _show(
    change: Change, before: Recording, now: Recording, *, on_interrupt: Callable[[], None] = lambda: None
) -> ExitCode:
    """Show the rows of a change on the screens."""
    shown = ShownSettings(view=change.view, filters=(change.filter,), all_rows=change.needs_all_rows)
    return play(before if change.is_gone else now, shown, change.at_ns, paused=True, on_interrupt=on_interrupt)


def _sorted_words(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the recordings and the moments among the arguments. Raise UsageError."""
    if unknown := next((word for word in words if word.startswith("--")), None):
        if unknown.partition("=")[0] in _OPTIONS:
            raise UsageError(f"{unknown} comes after --, as if it were a moment", "write it before --")
        raise unknown_word("option", unknown, _OPTIONS)
    if not 2 <= len(words) <= 4:
        raise UsageError("two moments or two recordings are compared", _USAGE)
    if len(words) == 2 and words[1] != STDOUT and not Path(words[1]).exists():
        raise UsageError(f"there is no recording {words[1]}", f"to compare moments, give two: {_USAGE}")
    files = len(words) - 2 or 2
    if words[:2] == [STDOUT, STDOUT]:
        raise UsageError("standard input has only one recording", "name the other one, or two moments of this one")
    return [Path(word) for word in words[:files]], words[files:]


def _spans(
    first: Recording, last: Recording, moments: Sequence[str], length_ns: int, *, is_same: bool
) -> Iterator[Span]:
    """Return what to compare: from two moments on, or all of two recordings. Raise UsageError."""
    moments_ns = [moment_of(*pair) for pair in zip((first, last), moments, strict=False)]
    if is_same:
        _check_apart(first, moments_ns, length_ns)
    pairs = zip((first, last), moments_ns or (None, None), strict=True)
    return (_span(recording, moment_ns, length_ns) for recording, moment_ns in pairs)


def _span(recording: Recording, moment_ns: int | None, length_ns: int) -> Span:
    from nettop.recording.diff import Span

    begin_ns, end_ns = recording.begin_ns, recording.end_ns
    if moment_ns is None:
        return Span(recording, begin_ns, end_ns)
    at_ns = max(begin_ns, min(moment_ns, end_ns - length_ns))
    return Span(recording, at_ns, min(at_ns + length_ns, end_ns))


def _check_apart(recording: Recording, moments_ns: Sequence[int], length_ns: int) -> None:
    """Raise UsageError if the spans at two moments of a recording overlap: the later one may be the last of it."""
    if not moments_ns:
        raise UsageError("a recording is compared with itself", f"give two moments of it: {_USAGE}")
    earlier_ns, later_ns = sorted(moments_ns)
    longest_ns = min(later_ns - earlier_ns, (recording.end_ns - earlier_ns) // 2)
    if length_ns > longest_ns:
        longest_s = longest_ns // 1_000_000_000
        shorter = f"use --span {longest_s}s, or " if longest_s else ""
        raise UsageError("the two spans overlap", f"{shorter}choose moments that are farther apart")
