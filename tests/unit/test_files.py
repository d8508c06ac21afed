# SPDX-License-Identifier: Apache-2.0
"""Paths that are no files, and full disks: every path named by an option, read or written."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from nettop.cli import run
from nettop.collector.enrichment.interfaces import InterfaceNames
from nettop.collector.enrichment.sources import read_source
from nettop.commands import collect
from nettop.errors import ExitCode, NettopError
from nettop.output.log_files import LogFile
from nettop.preferences import load_preferences, remember
from nettop.reading import has_data, read_file
from nettop.screens.export import write_new
from nettop.serve.http.credentials import read_credentials
from nettop.settings.serve import ServeSettings
from tests.builders.example_stacks import StackSource
from tests.unit.children import DEADLINE_S, environment, ran, started
from tests.unit.test_run import nettop

# --- read -------------------------------------------------------------------------------------------------------


def _preferences(path: str) -> None:
    loaded = load_preferences(Path(path))
    assert loaded.preferences == type(loaded.preferences)()
    raise NettopError(loaded.problems[0])


READERS: dict[str, Callable[[str], object]] = {
    "config.toml": _preferences,
    "--token-file": lambda path: read_credentials(ServeSettings(token_file=path)),
    "--cert": lambda path: read_credentials(ServeSettings(cert=path, key=path)),
    "--networks": lambda path: read_source(Path(path)),
    "--interfaces": lambda path: InterfaceNames.from_csv(Path(path)),
    "--clickhouse": lambda path: collect._server_urls([f"@{path}"], None),
}


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1_000_000_000)


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, "it is a FIFO, not a regular file"),
    "socket": (_socket, "it is a socket, not a regular file"),
    "directory": (Path.mkdir, "s a directory"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a regular file"),
    "large": (_large, "it has more than"),
    "loop": (lambda path: path.symlink_to(path), "oo many levels of symbolic links"),
}


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield an empty working directory with a name that is short enough for sockets."""
    with tempfile.TemporaryDirectory() as made:
        monkeypatch.chdir(made)
        yield Path(made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", READERS)
def test_special_files_are_not_read(option: str, kind: str, folder: Path) -> None:
    """A path that is no regular file is rejected at once, by name."""
    make, why = KINDS[kind]
    path = folder / "named"
    make(path)
    with pytest.raises(NettopError) as refused:
        READERS[option](str(path))
    assert str(path) in refused.value.what
    assert why in refused.value.what


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 20_000 + "]" * 20_000,
        "theme." + "a." * 20_000 + "b = 1",
        "[" + "a." * 20_000 + "b]",
        "theme = " + "{a = " * 400 + "1" + "}" * 400,
    ],
)
def test_deep_preferences(text: str, tmp_path: Path) -> None:
    """With an arbitrarily nested file, the screens start with defaults, and do not overwrite it."""
    path = tmp_path / "config.toml"
    path.write_text(text)
    assert "is nested too deeply" in load_preferences(path).problems[0]
    with pytest.raises(NettopError, match="is nested too deeply"):
        remember(path, "theme", "light")
    assert path.read_text() == text


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of a growing file is read than allowed."""
    path = tmp_path / "grows"
    path.write_bytes(b"a" * 10)
    read = os.read

    def growing(descriptor: int, count: int) -> bytes:
        with path.open("ab") as file:
            file.write(b"a" * 10)
        return read(descriptor, min(count, 5))

    monkeypatch.setattr(os, "read", growing)
    with pytest.raises(OSError, match="it has more than 100 bytes"):
        read_file(path, 100)


def test_a_fifo_that_takes_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO that replaces a file after the check is not waited for."""
    path, plain = tmp_path / "fifo", tmp_path / "plain"
    os.mkfifo(path)
    plain.write_text("")
    status = plain.stat()
    monkeypatch.setattr(os, "stat", lambda _path: status)
    with pytest.raises(OSError, match="it is a FIFO"):
        read_file(path, 100)


def test_pipes_of_the_shell() -> None:
    """<(…) is read, with a time limit."""
    script = "reading.PIPE_WAIT_S = float(sys.argv[2]); print(reading.read_file(sys.argv[1], 9))"
    program = f'"{sys.executable}" -c "import sys; from nettop import reading; {script}"'
    for words, shown in (
        ("<(sleep 0.1; printf abc) 60", "b'abc'"),
        ("/dev/stdin 60 < <(printf abc)", "b'abc'"),
        ("<(printf 0123456789) 60", "it has more than 9 bytes"),
        ("<(exec sleep 60 2>&-) 0.1; kill $!", "the pipe was not written within 0.1 s"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{program} {words}"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert shown in done.stdout + done.stderr


# --- written ----------------------------------------------------------------------------------------------------


class Faults:
    """Failures of one file, under any name: at `open`, `write` or `close`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, step: str, number: int) -> None:
        self._opened: set[int] = set()
        self._folder, self._step = str(folder), step
        self._error = OSError(number, os.strerror(number))
        self._real = {name: getattr(os, name) for name in ("open", "write", "close")}
        for name in self._real:
            monkeypatch.setattr(os, name, getattr(self, f"_{name}"))

    def _fail_at(self, step: str) -> None:
        if step == self._step:
            raise self._error

    def _open(self, path: str, flags: int, *more: int, **named: int) -> int:
        if not (str(path).startswith(self._folder) and flags & os.O_WRONLY):
            return cast("int", self._real["open"](path, flags, *more, **named))
        self._fail_at("open")
        descriptor = cast("int", self._real["open"](path, flags, *more, **named))
        self._opened.add(descriptor)
        return descriptor

    def _write(self, descriptor: int, data: bytes) -> int:
        if descriptor in self._opened:
            self._fail_at("write")
        return cast("int", self._real["write"](descriptor, data))

    def _close(self, descriptor: int) -> None:
        self._real["close"](descriptor)
        if descriptor in self._opened:
            self._opened.discard(descriptor)
            self._fail_at("close")


NUMBERS = [errno.ENOSPC, errno.EIO]
FAULTS = [
    pytest.param(step, number, id=f"{step}-{errno.errorcode[number]}")
    for step in ("open", "write", "close")
    for number in NUMBERS
]


@pytest.mark.parametrize(("step", "number"), FAULTS)
def test_preferences_and_exports_of_screens(
    step: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names path and cause; the old file stays, and nothing is left beside it."""
    file = folder / "config.toml"
    remember(file, "theme", "light")
    before = file.read_text()
    with monkeypatch.context() as patched:
        Faults(patched, folder, step, number)
        with pytest.raises(NettopError, match=f"config.toml cannot be written: {os.strerror(number)}"):
            remember(file, "theme", "dark")
        with pytest.raises(NettopError, match=f"cannot be written to .*: {os.strerror(number)}"):
            write_new("drops", 0, "csv", "a,b\n")
    assert file.read_text() == before
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize(("step", "number"), FAULTS)
def test_export(
    step: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names path and cause, and the exit code reports the failure."""
    file = folder / "a.svg"
    file.write_text("before")
    with monkeypatch.context() as patched:
        Faults(patched, folder, step, number)
        words = ["export", "cpu.stacks", str(file), "--duration", "0.1"]
        assert run(words, lambda _: StackSource()) == ExitCode.FAILURE
    assert f"nettop: {file} cannot be written: {os.strerror(number)}" in capsys.readouterr().err
    assert file.read_text() == "before"
    assert list(folder.iterdir()) == [file]


@pytest.mark.parametrize(("step", "number"), FAULTS)
def test_report_of_a_command(step: str, number: int, folder: Path) -> None:
    """The command's exit code is kept, with or without the report; the file has only complete lines."""
    fault = f"""
import pytest
from pathlib import Path
from tests.unit.test_files import Faults
Faults(pytest.MonkeyPatch(), Path({str(folder)!r}), {step!r}, {number})
"""
    done = nettop("--output", str(folder / "report"), "--", "sh", "-c", "exit 7", before=fault)
    if step == "open":
        assert done.returncode == ExitCode.FAILURE
    else:
        assert done.returncode == 7
        assert (folder / "report").read_text().endswith("\n") == (step == "close")
    why = f"nettop: {folder}/report cannot be written: {os.strerror(number)}"
    assert [line for line in done.stderr.splitlines() if line.startswith(why)]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "loop"])
def test_special_files_are_not_written(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A path that is no regular file is rejected before anything is sampled or run."""
    path = folder / "named"
    KINDS[kind][0](path)
    why = "the FIFO has no reader" if kind == "fifo" else KINDS[kind][1]
    source = StackSource()
    assert run(["export", "cpu.stacks", str(path), "--format", "svg"], lambda _: source) == ExitCode.FAILURE
    assert source.reads == 0
    assert run(["doctor", "--bundle", str(path)]) == ExitCode.FAILURE
    export, _, bundle, _ = capsys.readouterr().err.splitlines()
    done = nettop("--output", str(path), "--", "echo", "I ran")
    assert (done.returncode, done.stdout) == (ExitCode.FAILURE, "")
    assert f"{path} cannot be written: " in export
    for line in (export, bundle, done.stderr):
        assert why in line or "already exists" in line


def test_a_log_whose_close_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing close of a log is reported, on reopening and at the end."""
    reports: list[str] = []
    file = LogFile(folder / "events.log", 1 << 20, 2, reports.append, lambda *_: b"")
    file.write(b"a\n")
    close = os.close

    def failing(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing)
        file.reopen()
    assert reports == [
        f"{folder}/events.log cannot be written ({os.strerror(errno.EIO)}); lines are dropped and counted until it can"
    ]
    file.close()


@pytest.mark.parametrize("words", [["config", "--show"], ["--help"]])
def test_full_standard_output(words: list[str]) -> None:
    """Every command says that its output cannot be written."""
    with Path("/dev/full").open("w") as full:
        done = ran("-m", "nettop", *words, stdout=full)
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr.splitlines()[0] == "nettop: the output cannot be written: No space left on device"


# --- lines ------------------------------------------------------------------------------------------------------

LINES = """
import sys
from nettop.process.interrupts import exit_on_signals
from nettop.writing import write_output

text = "".join(f"{at:07}{'x' * (at * 37 % 900)}\\n" for at in range(3000))
try:
    with exit_on_signals():
        write_output(sys.stdout, text)
except KeyboardInterrupt:
    sys.exit(9)
"""


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_an_interrupt_cuts_no_line(number: int) -> None:
    """An interrupt while the reader is full ends the output after a complete line."""
    with started("-c", LINES) as child:
        assert child.stdout is not None
        first = child.stdout.readline()  # by now it writes, and fills the pipe
        child.send_signal(number)
        assert child.wait(DEADLINE_S) == 9
        rest = child.stdout.read()
    assert first == "0000000\n"
    assert rest.endswith("\n")
    assert len(rest.splitlines()) < 3000 - 1


def test_a_long_line_is_ended() -> None:
    """The rest of a partially written long line is written first, if the reader takes it."""
    reader, writer = os.pipe()
    script = LINES.replace("'x' * (at * 37 % 900)", "'x' * 100_000")
    with started("-c", script, stdout=writer) as child:
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            read = [stream.read(1000)]
            child.send_signal(signal.SIGINT)
            read.append(stream.read())
        assert child.wait(DEADLINE_S) == 9
    assert b"".join(read).endswith(b"\n")
    assert {len(line) for line in b"".join(read).splitlines()} == {100_007}


# --- limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--table", "--once"], ["collect", "--data-dir", "flows"], ["run", "--", "true"]]
)
@pytest.mark.usefixtures("folder")
def test_hardly_any_files(words: list[str]) -> None:
    """With a hard limit of six open files no command works, and each names the limit and how to raise it."""
    done = ran("-m", "nettop", *words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6)))
    assert (done.returncode, done.stdout) == (ExitCode.UNSUPPORTED, "")
    what, remedy = done.stderr.splitlines()
    assert what == "nettop: nettop may open only 6 files (hard limit of RLIMIT_NOFILE), and needs at least 64"
    assert "ulimit -n" in remedy


def test_files_that_run_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever descriptors run out, the error names the limit."""

    def run_out(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pipe", run_out)
    assert run(["run", "--", "true"]) == ExitCode.SOURCE
    assert capsys.readouterr().err.startswith(
        "nettop: nettop cannot continue: too many open files: a process may have "
    )


def test_output_that_nobody_takes_and_no_null_device() -> None:
    """Output that cannot be flushed at the end is dropped, without needing /dev/null."""
    script = """
import os, sys
from nettop.process.interrupts import leave_output
os.devnull = "/nosuch"
sys.stdout.write("a")
leave_output()
"""
    with Path("/dev/full").open("w") as full:
        done = ran("-c", script, stdout=full, env=environment() | {"PYTHONUNBUFFERED": ""})
    assert (done.returncode, done.stderr) == (0, "")


def test_descriptors_above_1023() -> None:
    """A host with many CPUs needs more descriptors than select(2) accepts."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(2048, limits[0]), limits[1]))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, 1500)
    try:
        assert not has_data([high], 0)
        os.write(writer, b"n")
        assert has_data([high], 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for descriptor in (reader, writer, high):
            os.close(descriptor)
