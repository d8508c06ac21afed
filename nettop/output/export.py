# SPDX-License-Identifier: Apache-2.0
"""The export as a door: samples a table for a while, and writes what it counted in that time, in one piece."""

from __future__ import annotations

import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from nettop.engine.session import Session
from nettop.engine.wake_event import WakeEvent
from nettop.errors import ExitCode, NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.interrupts import Requests
from nettop.output.cpu.flame_svg import flame_svg
from nettop.output.cpu.folded import folded
from nettop.output.cpu.speedscope import speedscope
from nettop.output.diagnostics import Told
from nettop.query.cpu import Profile, grown_rows, stack_counts
from nettop.query.filter import parse_filter
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.settings import ExportFormat, ExportSettings
from nettop.snapshots import find_table
from nettop.snapshots.arrays import take
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import NOT_AVAILABLE, Frame, Rows, Snapshot

STDOUT = "-"
READ_WAIT_S = 30.0
"""How long the end waits for the last reading."""
_STEP_S = 0.2
"""How often a terminal shows how far it is."""

WRITERS: Mapping[ExportFormat, Callable[[Profile], str]] = {
    ExportFormat.FOLDED: folded,
    ExportFormat.SPEEDSCOPE: speedscope,
    ExportFormat.SVG: flame_svg,
}
"""What makes each format of the stacks."""


def run_export(
    settings: ExportSettings,
    session: Session,
    requests: Requests,
    stdout: TextIO | None,
    stderr: TextIO | None,
) -> ExitCode:
    """Sample for `settings.duration_s`, or until somebody requests the end, and write what was counted.

    Raises UsageError, and NettopError where the file cannot be written, before anything is attached; Unsupported
    where this host gives the table no rows; and whatever the lens fails with.
    """
    lens, table = find_table(settings.view)
    shown = parse_filter(table, " ".join(settings.filters))
    _check_place(settings.path)
    tell = Told(stderr)
    with ExitStack() as ends:
        bell = ends.enter_context(WakeEvent())
        requests.wake = bell.ring
        ends.callback(session.bus.subscribe(bell.ring))
        options = {
            "table": table.name,
            "all_rows": True,
            "mechanisms": settings.mechanisms,
            **settings.options,
        }
        ends.callback(session.enable(lens.id, **options).release)
        sampling = _Sampling(lens.id, table, session, requests, bell)
        began = sampling.begin()
        if began is None:
            tell("ended before anything was sampled: nothing is written")
            return ExitCode.DONE
        if (why := began.missing.get("stack")) is not None:
            tell(f"functions have no names: {why}")
        show = ends.enter_context(_progress(settings, stderr))
        ended = sampling.sample(began, settings.duration_s, show)
    view = View(_grown(began, ended, table), replace(text_query(table), filter=shown))
    profile = _profile(view, began)
    for remark in view.filter_remarks:
        tell(remark)
    write_whole(settings.path, WRITERS[settings.format](profile), stdout)
    tell(_summary(profile, settings, began, ended, is_early=requests.ending))
    return ExitCode.DONE


# --- sampling -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sampling:
    """Takes a first snapshot of a lens and, some time later, a last one: what the table counted lies between."""

    lens: str
    table: Table
    session: Session
    requests: Requests
    bell: WakeEvent

    def begin(self) -> Snapshot | None:
        """The first snapshot; None where the end was requested before."""
        while (now := self._newest()) is None:
            if self.requests.ending:
                return None
            self.bell.wait()
        why = now.why_unavailable(self.table)
        if why is not None or self.table.name not in now.tables:
            what = f"{self.table.name} are {NOT_AVAILABLE} on this kernel or host: {why or 'the lens gives none'}"
            raise Unsupported(what, "nettop doctor says what was tried")
        return now

    def sample(
        self, began: Snapshot, duration_s: float, show: Callable[[float, int], None] | None
    ) -> Snapshot:
        """The snapshot at the end of the time; meanwhile `show` is told how long, and how many samples."""
        start = time.monotonic()
        while not self.requests.ending and (left := start + duration_s - time.monotonic()) > 0:
            if show is not None:
                show(
                    duration_s - left,
                    _samples(self._newest() or began, self.table) - _samples(began, self.table),
                )
            self.bell.wait(timeout_s=left if show is None else min(left, _STEP_S))
        return self._read_once_more()

    def _read_once_more(self) -> Snapshot:
        before = self._newest()
        self.session.sample_now()
        deadline = time.monotonic() + READ_WAIT_S
        while (now := self._newest()) is before or now is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise SourceFailed(f"{self.lens} was not read within {READ_WAIT_S:g} s", "try again")
            self.bell.wait(timeout_s=left)
        return now

    def _newest(self) -> Snapshot | None:
        """The newest snapshot, if there is one. Raises what the lens fails with."""
        failure = self.session.bus.failure(self.lens)
        if failure is not None:
            raise failure
        frame = self.session.bus.frame(self.lens)
        return None if frame is None else frame.now


def _samples(snapshot: Snapshot, table: Table) -> int:
    return int(snapshot.tables[table.name].array["samples"].sum())


def _grown(began: Snapshot, ended: Snapshot, table: Table) -> Frame:
    """The last snapshot, with what its table counted since the first."""
    grown = grown_rows(ended.tables[table.name], began.tables[table.name])
    return Frame(replace(ended, tables={table.name: grown}))


def _profile(view: View, began: Snapshot) -> Profile:
    """The stacks that the view shows."""
    rows = view.now
    shown = Rows(rows.table, take(rows.array, view.order), rows.texts, rows.taken_ns)
    elapsed_ns = rows.taken_ns - began.tables[view.table.name].taken_ns
    host = safe_text(os.uname().nodename)
    return Profile(tuple(stack_counts(shown)), host, began.wall_ns, elapsed_ns, began.counts["frequency_hz"])


# --- what is told ---------------------------------------------------------------------------------------------


def _summary(
    profile: Profile, settings: ExportSettings, began: Snapshot, ended: Snapshot, *, is_early: bool
) -> str:
    """How much was written, of how long, where to; and what was lost meanwhile."""
    early = f", ended early: {settings.duration_s:g} s were asked for" if is_early else ""
    lost = {name: count - began.lost.get(name, 0) for name, count in ended.lost.items()}
    losses = ", ".join(f"{count} {name}" for name, count in lost.items() if count > 0)
    idle = "" if profile.counts else ": the network stack took next to no CPU time, or the filter leaves none"
    parts = (
        f"{profile.samples} samples in {profile.elapsed_ns / 1e9:.1f} s{early}{idle}",
        *((f"lost {losses}",) if losses else ()),
        *(() if settings.path == STDOUT else (f"written to {settings.path}",)),
    )
    return "; ".join(parts)


@contextmanager
def _progress(
    settings: ExportSettings, stderr: TextIO | None
) -> Iterator[Callable[[float, int], None] | None]:
    """What shows on a terminal how far the sampling is; None where there is no terminal."""
    if stderr is None or not stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn(settings.view),
        BarColumn(),
        TextColumn("{task.completed:.0f} of {task.total:g} s"),
        TextColumn("{task.fields[samples]:,} samples  (Ctrl-C ends early)"),
    )
    with Progress(*columns, console=Console(file=stderr), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=settings.duration_s, samples=0)

        def show(elapsed_s: float, samples: int) -> None:
            progress.update(task, completed=elapsed_s, samples=samples)
            progress.refresh()

        yield show


# --- the file -------------------------------------------------------------------------------------------------


def _check_place(path: str) -> None:
    """Raise NettopError where an export could not be written at its end."""
    with _told(path):
        if path == STDOUT or _is_special(path):
            return
        place = Path(path).resolve()
        if place.is_dir():
            raise IsADirectoryError(None, "it is a directory")
        with suppress(FileNotFoundError):
            place.lstat()
        beside = _beside(place)
        try:
            beside.touch(exist_ok=False)
        except PermissionError as error:
            raise PermissionError(None, f"no file can be made in {place.parent}") from error
        beside.unlink()


def write_whole(path: str, text: str, stdout: TextIO | None) -> None:
    """Write the text to standard output (`-`), or put it in the place of a file, which is never there in part.

    What is no regular file, as a FIFO, is written to. Raises NettopError.
    """
    content = text.encode("utf-8", "replace")
    with _told("the output" if path == STDOUT else path):
        if path == STDOUT:
            assert stdout is not None
            stdout.buffer.write(content)
            stdout.buffer.flush()
            return
        if _is_special(path):
            with open(path, "wb", opener=_as_it_is) as file:
                file.write(content)
        else:
            _replace(Path(path).resolve(), content)


def _replace(place: Path, content: bytes) -> None:
    """Write beside the file, and rename; it keeps the mode that it had."""
    beside = _beside(place)
    try:
        with open(beside, "xb") as file:
            if place.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(place.stat().st_mode))
            file.write(content)
        beside.rename(place)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def _beside(place: Path) -> Path:
    """A file in the same folder that nobody else has."""
    return place.with_name(f".nettop.{secrets.token_hex(8)}")


def _is_special(path: str) -> bool:
    """Whether it is a FIFO, a device or the like, which is written to and never replaced."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def _as_it_is(path: str, flags: int) -> int:
    return os.open(path, flags & ~(os.O_CREAT | os.O_TRUNC))


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Where it cannot be written that is a NettopError; a reader who has gone is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        kind = PermissionMissing if isinstance(error, PermissionError) else NettopError
        raise kind(
            f"{what} cannot be written: {error.strerror}", "give another FILE, or - for standard output"
        ) from error
