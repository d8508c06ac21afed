# SPDX-License-Identifier: Apache-2.0
"""`nettop export`: its arguments, its counts, its output file, and its end."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import pytest

from nettop.cli import run
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError, PermissionMissing, UsageError
from nettop.output.export import run_export
from nettop.process.interrupts import Requests
from nettop.settings import MAX_INTERVAL_S, ExportFormat
from nettop.settings.export import ExportSettings
from nettop.snapshots.cpu import ENTRIES, FREQUENCY, RX_SOFTIRQ
from nettop.snapshots.hooks import HookStatus
from tests.builders.example_stacks import TCP, WAKE, StackSource
from tests.options import source_options
from tests.unit.children import DEADLINE_S, Child
from tests.unit.logging_run import until
from tests.words import settings_of

RX = ENTRIES[RX_SOFTIRQ]


def export(source: StackSource, *words: str) -> int:
    """Run `nettop export` for a tenth of a second."""
    return run(["export", *words, "--duration", "0.1"], lambda lens: source)


def lines_of(text: str) -> dict[str, int]:
    """Parse folded stacks and their counts."""
    return {stack: int(count) for stack, count in (line.rsplit(" ", 1) for line in text.splitlines())}


# --- words --------------------------------------------------------------------------------------------------------


def test_words_become_settings() -> None:
    """Every argument reaches the settings; the defaults apply otherwise, with the format of the file's suffix."""
    chosen = settings_of(
        "export", "cpu.stacks", "out", format="folded", duration="2.5", filter="cpu=3", frequency="199",
        mechanism="samples=none",
    )  # fmt: skip
    assert chosen == ExportSettings(
        named="cpu.stacks", path="out", chosen=ExportFormat.FOLDED, duration_s=2.5, filters=("cpu=3",),
        mechanisms={"samples": "none"}, options={FREQUENCY: 199},
    )  # fmt: skip
    usual = settings_of("export", "cpu.stacks", "a.svg")
    assert (usual.view, usual.format, usual.duration_s) == ("cpu.stacks", ExportFormat.SVG, 10.0)


@pytest.mark.parametrize(
    ("file", "form"),
    [("a.folded", "folded"), ("b.TXT", "folded"), ("c.d/e.json", "speedscope"), ("f.svg", "svg")],
)
def test_format_by_the_ending(file: str, form: str) -> None:
    """Without --format the file's suffix selects it, in any case."""
    assert settings_of("export", "cpu.stacks", file).format == form


@pytest.mark.parametrize(
    ("wrong", "what", "remedy"),
    [
        ({"view": "cpu.cpus"}, "cpu.cpus cannot be exported", "export cpu.stacks"),
        ({"view": "connections"}, "connections cannot be exported", "--view connections --format csv"),
        (
            {"view": "drops", "from": "a b.nettop"},
            "drops cannot be exported",
            "nettop replay 'a b.nettop' --view drops --format csv",
        ),
        ({"view": "cpu.stakcs"}, "unknown view 'cpu.stakcs'", "did you mean cpu.stacks"),
        (
            {"file": "out.png"},
            "no format is known for the suffix of out.png",
            "add --format folded or speedscope or svg",
        ),
        ({"file": "-"}, "standard output has no suffix", "add --format folded"),
        ({"format": "pprof"}, "unknown format 'pprof'", "choose from: folded, speedscope, svg"),
        ({"duration": "0"}, "--duration 0 is out of range", "--duration between 0.1 and"),
        ({"duration": "nan"}, "--duration nan is out of range", "--duration between"),
        ({"duration": "ten"}, "--duration 'ten' is not a number of seconds", "--duration 0.5"),
        ({"frequency": "0"}, "--frequency 0 is too low", "--frequency 1 or more"),
        ({"frequency": "10001"}, "--frequency 10001 is too high", "--frequency 10000 or less"),
        ({"frequency": "3", "duration": "3"}, "3 is too low for 3 s", "--frequency 4 or more"),
        ({"mechanism": ["sample=none"]}, "unknown hook 'sample'", "samples"),
    ],
)
def test_wrong_words(wrong: dict[str, Any], what: str, remedy: str) -> None:
    """Impossible options are rejected with the cause and the remedy."""
    arguments = [wrong.pop(name, usual) for name, usual in (("view", "cpu.stacks"), ("file", "a.svg"))]
    with pytest.raises(UsageError) as reported:
        settings_of("export", *arguments, **wrong)
    assert what in reported.value.what
    assert remedy in reported.value.remedy


def test_missing_words(capsys: pytest.CaptureFixture[str]) -> None:
    """The error for a missing argument names it, and where to find help."""
    assert export(StackSource(), "cpu.stacks") == ExitCode.USAGE
    reported = capsys.readouterr().err
    assert "missing argument 'FILE'" in reported
    assert "nettop export --help" in reported


def test_wrong_filter_is_reported_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A filter that cannot be parsed is refused before anything is attached."""
    source = StackSource()
    assert export(source, "cpu.stacks", str(tmp_path / "a.svg"), "--filter", "sampels>3") == ExitCode.USAGE
    assert "did you mean samples" in capsys.readouterr().err
    assert source.reads == 0


# --- what is counted ----------------------------------------------------------------------------------------------


def test_counts_lie_between_the_first_and_the_last_snapshot(tmp_path: Path) -> None:
    """Earlier samples do not count, and those of each later reading do."""
    source, file = StackSource({WAKE: 30, TCP: 5}), tmp_path / "a.folded"
    assert (
        export(source, "cpu.stacks", str(file), "--frequency", "199", "--mechanism", "samples=none")
        == ExitCode.DONE
    )
    counts = lines_of(file.read_text())
    readings = counts[f"{RX};{TCP}"] // 5
    assert 1 <= readings < source.reads
    assert counts == {f"{RX};{WAKE}": 30 * readings, f"{RX};{TCP}": 5 * readings}
    assert source.options == source_options(["stacks"], {"samples": "none"}, all_rows=True, frequency=199)
    assert source.closed


def test_filter(tmp_path: Path) -> None:
    """Filtered rows are in no stack; the totals are those of the duration."""
    for words, expected in (("sock_def_readable", {WAKE}), ("samples<1000", {WAKE, TCP}), ("cpu=7", set())):
        file = tmp_path / "a.folded"
        assert export(StackSource(), "cpu", str(file), "--filter", words) == ExitCode.DONE
        assert set(lines_of(file.read_text())) == {f"{RX};{stack}" for stack in expected}


def test_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Write the export to standard output for `-`, and one line with samples, duration and losses to standard error."""
    assert export(StackSource(), "cpu.stacks", "-", "--format", "speedscope") == ExitCode.DONE
    reported = capsys.readouterr()
    assert json.loads(reported.out)["exporter"].startswith("nettop ")
    assert re.fullmatch(r"nettop: \d+ samples in \d+\.\d s; lost \d+ ticks\n", reported.err)


def test_nothing_was_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export an idle network stack without samples, and say so, with the name of the file."""
    file = tmp_path / "a.svg"
    assert export(StackSource({TCP: 0}), "cpu", str(file)) == ExitCode.DONE
    shown = capsys.readouterr()
    assert re.search(r"\b0 samples in \d+\.\d s: the network stack used hardly any CPU time", shown.err)
    assert (shown.err.endswith(f"; written to {file}\n"), shown.out) == (True, "")
    assert "0 samples" in (tmp_path / "a.svg").read_text()


def test_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If stacks are not available, the error says why, and no file is made."""
    source = StackSource(hooks=(HookStatus("samples", None, (("perf", "no perf events here"),)),))
    assert export(source, "cpu.stacks", str(tmp_path / "a.svg")) == ExitCode.UNSUPPORTED
    assert "cpu.stacks is not available: no perf events here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the file -----------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_when_all_is_there(tmp_path: Path) -> None:
    """The old file stays until the new one is complete; its mode is kept, and nothing is left beside it."""
    file = tmp_path / "a.folded"
    file.write_text("old")
    file.chmod(0o600)
    there: list[str] = []

    class Looking(StackSource):
        def read(self, taken_ns: int) -> Any:
            there.append(file.read_text())
            return super().read(taken_ns)

    assert export(Looking(), "cpu.stacks", str(file)) == ExitCode.DONE
    assert set(there) == {"old"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert f"{RX};{TCP}" in lines_of(file.read_text())
    assert list(tmp_path.iterdir()) == [file]


def test_a_failure_leaves_the_file_alone(tmp_path: Path) -> None:
    """If the source fails, the error is reported and the old file stays."""
    file = tmp_path / "a.folded"
    file.write_text("old")

    class Failing(StackSource):
        def read(self, taken_ns: int) -> Any:
            if self.reads:
                raise NettopError("it broke")
            return super().read(taken_ns)

    assert export(Failing(), "cpu.stacks", str(file)) == ExitCode.FAILURE
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_symbolic_link(tmp_path: Path) -> None:
    """A symbolic link stays; its target is replaced."""
    file, link = tmp_path / "there" / "a.folded", tmp_path / "link.folded"
    file.parent.mkdir()
    link.symlink_to(file)
    assert export(StackSource(), "cpu.stacks", str(link)) == ExitCode.DONE
    assert link.is_symlink()
    assert file.read_text().startswith(RX)


def test_fifo(tmp_path: Path) -> None:
    """Write to a FIFO or a device, never replace it."""
    before = os.stat(os.devnull)
    assert export(StackSource(), "cpu.stacks", os.devnull, "--format", "svg") == ExitCode.DONE
    assert os.path.samestat(os.stat(os.devnull), before)
    fifo = tmp_path / "fifo.folded"
    os.mkfifo(fifo)
    with os.fdopen(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)) as reader:
        assert export(StackSource(), "cpu.stacks", str(fifo)) == ExitCode.DONE
        assert f"{RX};{TCP}" in lines_of(reader.read())
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("no/such/a.svg", "No such file or directory"),
        (".", "it is a directory"),
        (300 * "a", "File name too long"),
    ],
)
def test_impossible_places(place: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An unwritable place is reported before anything is sampled."""
    source, words = StackSource(), (str(tmp_path / place), "--format", "svg")
    assert export(source, "cpu.stacks", *words) == ExitCode.FAILURE
    reported = capsys.readouterr().err
    assert f"cannot be written: {why}" in reported
    assert "choose another" in reported
    assert source.reads == 0


def test_forbidden_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory without write permission is reported as a missing permission."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    settings = ExportSettings(named="cpu.stacks", path=str(tmp_path / "a.svg"))
    with (
        Session(MAX_INTERVAL_S, lambda lens: StackSource()) as session,
        pytest.raises(PermissionMissing) as reported,
    ):
        run_export(settings, session, Requests(), None, None)
    assert "no file can be created in" in reported.value.what


# --- the end ------------------------------------------------------------------------------------------------------


class Exporting:
    """An export of an hour in a thread, over a source that is read only on request."""

    def __init__(self, path: Path, source: StackSource) -> None:
        self.requests = Requests()
        self.stderr = io.StringIO()
        self.exit: ExitCode | None = None
        self._settings = ExportSettings(
            named="cpu.stacks", path=str(path), chosen=ExportFormat.FOLDED, duration_s=3600
        )
        self._source = source
        self._session: Session | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def has_begun(self) -> bool:
        """Return whether it has the first reading."""
        return self._session is not None and self._session.bus.frame("cpu") is not None

    def _run(self) -> None:
        with Session(MAX_INTERVAL_S, lambda lens: self._source) as session:
            self._session = session
            self.exit = run_export(self._settings, session, self.requests, None, self.stderr)

    def wait(self) -> ExitCode | None:
        """Wait for its end and return its exit code."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.exit


def test_ended_early(tmp_path: Path) -> None:
    """If ended early, it writes the samples so far, and says that they are incomplete."""
    file, source = tmp_path / "a.folded", StackSource()
    running = Exporting(file, source)
    until(lambda: running.has_begun)
    running.requests.end()
    assert running.wait() is ExitCode.DONE
    assert lines_of(file.read_text()) == {f"{RX};{WAKE}": 30, f"{RX};{TCP}": 5}
    reported = r"35 samples in \d+\.\d s, ended early \(3600 s were requested\)"
    assert re.search(reported, running.stderr.getvalue())


def test_ended_before_it_began(tmp_path: Path) -> None:
    """Before the first reading there is nothing to write, and no file."""
    attached, go_on = threading.Event(), threading.Event()

    class Slow(StackSource):
        def start(self) -> None:
            attached.set()
            assert go_on.wait(DEADLINE_S)

    running = Exporting(tmp_path / "a.folded", Slow())
    assert attached.wait(DEADLINE_S)
    running.requests.end()
    until(running.stderr.getvalue)
    go_on.set()
    assert running.wait() is ExitCode.DONE
    assert "nothing was written" in running.stderr.getvalue()
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
from nettop import cli
from tests.builders.example_stacks import StackSource
run = cli.run
cli.run = lambda words: run(words, lambda lens: StackSource())
sys.exit(cli.main())
"""


def started(directory: Path, *words: str, **how: Any) -> Child:
    """Start `nettop export` in a separate process."""
    here = str(Path(__file__).parents[2])
    return Child(
        [sys.executable, "-c", SCRIPT, "export", "cpu.stacks", *words],
        cwd=directory, env=os.environ | {"PYTHONPATH": here, "TERM": "xterm"}, stdin=subprocess.DEVNULL, **how,
    )  # fmt: skip


@pytest.mark.parametrize("closes", [False, True], ids=["ctrl-c", "closes"])
def test_ended_on_a_terminal(tmp_path: Path, *, closes: bool) -> None:
    """Show progress on a terminal; on Ctrl-C, or when it closes, write the samples and exit with 0."""
    terminal, theirs = pty.openpty()
    controlled = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(2, termios.TIOCSCTTY, 0)}
    how = {"stderr": theirs, "stdout": subprocess.DEVNULL} | (controlled if closes else {})
    with started(tmp_path, "a.svg", "--duration", "600", **how) as child:
        os.close(theirs)
        seen = b""  # a reading may end within a letter of several bytes
        while b"(Ctrl-C ends early)" not in seen:
            seen += os.read(terminal, 65536)
        assert b"of 600 s" in seen
        if not closes:
            child.send_signal(signal.SIGINT)
            while b"written to a.svg" not in seen:
                seen += os.read(terminal, 65536)
            assert b"ended early (600 s were requested)" in seen
        os.close(terminal)
        assert child.wait(DEADLINE_S) == 0
    assert (tmp_path / "a.svg").read_text().endswith("</svg>\n")


def test_nobody_reads(tmp_path: Path) -> None:
    """A closed reader is no error."""
    words = ("-", "--format", "svg", "--duration", "0.1")
    with started(tmp_path, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.wait(DEADLINE_S) == 0
        assert child.stderr.read() == ""
