# SPDX-License-Identifier: Apache-2.0
"""nettop as users run it: the command, its rows as JSON Lines, and a run that continues during the test."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from .lab import PATIENCE, until

NETTOP = os.environ.get("NETTOP_COMMAND", str(Path(sys.executable).with_name("nettop")))
TABLE = ("--table", "-d")
JSON = (*TABLE, "--format", "jsonl")
HOUR = ("--interval", "3600")
NOBODY = 65534
SUDO = {
    **{name: value for name, value in os.environ.items() if name != "SUDO_USER"},
    "SUDO_UID": str(NOBODY),
    "SUDO_GID": str(NOBODY),
}
"""The environment of a nettop that nobody has called by sudo."""
AS_NOBODY = ("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
"""Words that start a command without any privilege."""
_COMPILER = b"nettop.kernel.bpf.compiler"
_BCC_FOLDER = "import bcc, os; print(os.path.dirname(bcc.__file__))"

Row = dict[str, Any]


def run(*words: str, deadline_s: float = 60, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    how = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    return subprocess.run(words, text=True, timeout=deadline_s * PATIENCE, check=False, **how)


def nettop(*options: str, around: Sequence[str] = (), **how: Any) -> subprocess.CompletedProcess[str]:
    """Run nettop to its end; `around` are the words that start it."""
    return run(*around, NETTOP, *options, **how)


def mounted(script: str) -> tuple[str, ...]:
    """Return words that start a command in its own mount namespace, after running the script."""
    return "unshare", "--mount", "sh", "-c", f'{script} && exec "$0" "$@"'


def without(*capabilities: str) -> tuple[str, ...]:
    """Return words that start a command as a root without these capabilities."""
    dropped = ",".join(f"-{name.removeprefix('CAP_').lower()}" for name in capabilities)
    return "setpriv", "--bounding-set", dropped, "--inh-caps", dropped


def denied(call: str, error: str) -> tuple[str, ...]:
    """Return words that start a command under a seccomp filter that fails this system call."""
    return sys.executable, str(Path(__file__).with_name("seccomp.py")), call, error


@contextlib.contextmanager
def home_of_nobody() -> Iterator[Path]:
    """Yield a directory of the user who calls sudo in `SUDO`."""
    with tempfile.TemporaryDirectory(dir="/tmp") as home:
        os.chown(home, NOBODY, NOBODY)
        yield Path(home)


def bcc_folder() -> str:
    """Return the folder of the distribution's bcc."""
    return run("/usr/bin/python3", "-c", _BCC_FOLDER).stdout.strip()


def rows(*options: str, everything: bool = True) -> list[Row]:
    """Return the rows of one refresh; with `everything`, also listeners, TIME_WAIT and unconnected UDP."""
    done = nettop(*JSON, "--once", *(("--all",) if everything else ()), *options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return rows_in(done.stdout)


def rows_in(text: str) -> list[Row]:
    """Return the rows of JSON Lines, without the records of losses."""
    return [row for row in map(json.loads, text.splitlines()) if not is_loss(row)]


OF_A_BUSY_HOST = ("nettop: lost ", "nettop: readings take longer than ")


def complaints(errors: str) -> str:
    """Return standard error without what a busy host causes: losses and late readings."""
    lines = errors.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(OF_A_BUSY_HOST))


def is_loss(row: Row) -> bool:
    """Return whether a record reports a loss."""
    return row.get("type") == "lost"


def by_cookie(rows: list[Row]) -> dict[int, Row]:
    """Return rows by their key; assert that no key comes twice."""
    table = {row["id"]: row for row in rows}
    assert len(table) == len(rows), "the same socket has two rows"
    return table


def in_namespaces(rows: list[Row], *inodes: int) -> list[Row]:
    """Return the rows in one of these network namespaces."""
    return [row for row in rows if row["netns"] in inodes]


class Running:
    """nettop in the background, refreshed by a newline on its standard input.

    `around` are the words that start it, such as those of `mounted`.
    """

    def __init__(self, *options: str, around: Sequence[str] = (), **how: Any) -> None:
        self._out = tempfile.NamedTemporaryFile("w+b", prefix="nettop-out")  # noqa: SIM115 - closed at exit
        self._error = tempfile.NamedTemporaryFile("w+b", prefix="nettop-err")  # noqa: SIM115 - as above
        how.setdefault("stdin", subprocess.PIPE)
        how.setdefault("stdout", self._out)
        self.process = subprocess.Popen(
            [*around, NETTOP, *options], stderr=self._error, start_new_session=True, **how
        )
        self.pid = self.process.pid
        self.output = self._out.name
        """The file that it writes to."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout, self._out, self._error):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def text(self) -> str:
        """Return its output so far."""
        return Path(self._out.name).read_text(errors="surrogateescape")

    def errors(self) -> str:
        """Return its standard error so far."""
        return Path(self._error.name).read_text(errors="surrogateescape")

    def complaints(self) -> str:
        """Return the complaints printed so far, as the function `complaints` does."""
        return complaints(self.errors())

    def refreshes(self) -> list[list[Row]]:
        """Return the complete rows so far, one list per refresh (JSON Lines only; no list for an empty refresh)."""
        by_time: dict[str, list[Row]] = {}
        for row in self.printed():
            by_time.setdefault(row["time"], []).append(row)
        return list(by_time.values())

    def printed(self) -> list[Row]:
        """Return the complete rows so far, without the records of losses (JSON Lines only)."""
        return rows_in(self.text().rpartition("\n")[0])

    def first_rows(self) -> None:
        """Wait for its first output; it has measured by then."""
        until(lambda: self.text() or self.process.poll() is not None, "nettop prints its first rows")
        assert self.process.poll() is None or self.text(), self.errors()

    def refresh(self) -> None:
        """Request a refresh."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status, negative for death by signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        return self.wait()

    def wait(self, deadline_s: float = 30) -> int:
        """Wait for it to exit; return the exit status."""
        return self.process.wait(deadline_s * PATIENCE)

    def kill(self) -> None:
        """Kill it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def compilers(self) -> list[int]:
        """Return the living children that compile."""
        return [pid for pid, parent, words in living() if parent == self.pid and _COMPILER in words]

    def gone(self) -> bool:
        """Return whether neither it nor an orphaned compiler is left."""
        return not any(
            pid == self.pid or (parent == 1 and _COMPILER in words) for pid, parent, words in living()
        )


def living() -> list[tuple[int, int, bytes]]:
    """Return PID, parent and command line of every process that is no zombie."""
    processes = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (path / "stat").read_bytes().rpartition(b")")[2].split()[:2]
            if state != b"Z":
                processes.append((int(path.name), int(parent), (path / "cmdline").read_bytes()))
    return processes
