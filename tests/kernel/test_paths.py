# SPDX-License-Identifier: Apache-2.0
"""Under sudo nettop opens paths on the command line as the caller: root's files stay protected."""

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from nettop.cli import app
from nettop.errors import ExitCode
from nettop.settings import SYSTEM_FLOWS_DIR

from .command import Running, mounted, nettop
from .lab import until
from .test_privileges import users

pytestmark = pytest.mark.kernel

CALLER = 1
"""A user of every Linux, whom nettop does not become by itself."""
NAME = "daemon"
SUDO = {**os.environ, "SUDO_UID": str(CALLER), "SUDO_GID": str(CALLER)}
SECRET = "only root may know this"
DEADLINE_S = 20.0

WRITTEN, READ, DIRECTORY, MADE_SOCKET, USED_SOCKET = (
    "written",
    "read",
    "directory",
    "made socket",
    "used socket",
)
_SERVED = ("serve", "--lenses", "drops", "--listen", "127.0.0.1:0")
_COLLECTED = (
    "collect", "--listen", "127.0.0.1:0", "--query-listen", "127.0.0.1:0", "--data-dir", "{home}/flows",
)  # fmt: skip
_COUNTED = ("flows", "sql", "SELECT 1")

NAMED = {
    ("log", "--log-dir"): (DIRECTORY, "log", "--log-dir", "{path}"),
    ("export", "path"): (WRITTEN, "export", "cpu.stacks", "--format", "folded", "--duration", "0.1", "{path}"),
    ("run", "--output"): (WRITTEN, "run", "--output", "{path}", "--", "true"),
    ("doctor", "--bundle"): (WRITTEN, "doctor", "--only", "host", "--bundle", "{path}"),
    ("serve", "--listen"): (MADE_SOCKET, "serve", "--lenses", "drops", "--listen", "unix:{path}"),
    ("serve", "--token-file"): (READ, *_SERVED, "--token-file", "{path}"),
    ("serve", "--cert"): (READ, *_SERVED, "--cert", "{path}", "--key", "{home}/key"),
    ("serve", "--from"): (READ, "serve", "--listen", "127.0.0.1:0", "--from", "{path}"),
    ("serve", "--key"): (READ, *_SERVED, "--cert", "{home}/key", "--key", "{path}"),
    ("collect", "--data-dir"): (DIRECTORY, "collect", "--query-listen", "none", "--data-dir", "{path}"),
    ("collect", "--query-listen"): (MADE_SOCKET, *_COLLECTED, "--query-listen", "unix:{path}"),
    ("collect", "--token-file"): (READ, *_COLLECTED, "--token-file", "{path}"),
    ("collect", "--cert"): (READ, *_COLLECTED, "--cert", "{path}", "--key", "{home}/key"),
    ("collect", "--key"): (READ, *_COLLECTED, "--cert", "{home}/key", "--key", "{path}"),
    ("collect", "--networks"): (READ, *_COLLECTED, "--networks", "{path}"),
    ("collect", "--interfaces"): (READ, *_COLLECTED, "--interfaces", "{path}"),
    ("flows", "--data-dir"): (DIRECTORY, *_COUNTED, "--data-dir", "{path}"),
    ("flows", "--collector"): (USED_SOCKET, *_COUNTED, "--collector", "unix:{path}"),
    ("nettop", "--collector"): (USED_SOCKET, "--view", "collector", "--table", "--once", "--collector", "unix:{path}"),
    ("log", "--collector"): (
        USED_SOCKET, "log", "--lens", "collector", "--log-dir", "none", "--collector", "unix:{path}",
    ),
    ("record", "path"): (WRITTEN, "record", "--lenses", "drops", "--for", "0.2", "-t", "0.1", "{path}"),
    ("record", "--collector"): (
        USED_SOCKET, "record", "--lenses", "collector", "--for", "1", "--collector", "unix:{path}", "{home}/new",
    ),
    ("record", "--redact-key"): (READ, "record", "--redact-key", "{path}", "{home}/new"),
    ("bundle", "--redact-key"): (READ, "bundle", "{home}/key", "--redact-key", "{path}", "-o", "{home}/new"),
    ("replay", "recording"): (READ, "replay", "{path}", "--once"),
    ("bundle", "recording"): (READ, "bundle", "{path}", "-o", "{home}/new"),
    ("bundle", "--output"): (WRITTEN, "bundle", "{home}/key", "-o", "{path}"),
    ("diff", "words"): (READ, "diff", "{path}", "begin", "end"),
    ("check", "--from"): (READ, "check", "--from", "{path}"),
    ("export", "--from"): (READ, "export", "cpu.stacks", "--format", "folded", "--from", "{path}", "-"),
    ("serve", "--collector"): (USED_SOCKET, *_SERVED, "--lenses", "collector", "--collector", "unix:{path}"),
}  # fmt: skip
"""What is done with a path that a parameter of a command names, and a command line with it."""

LEVELS = ("owned/there", "link", "folder/there", "up/owned/there")
"""A target of root's, and links to it: the file itself, its directory, and the directory that this is in."""

NO_FILES = {
    "--", "-- COMMAND [ARGUMENTS]", "A,B,C", "[-]COLUMN", "[ADDRESS:]PORT", "[EXPORTER[/INTERFACE]=]N", "[sql QUERY]",
    "COMMAND", "GROUP", "HOOK=NAME", "HOST", "KIND", "[LENS[.TABLE]|COMMAND]",
    "HOST:PORT[,…]/TOPIC", "HZ", "LENS[.TABLE]", "N", "NAME", "NAME=N", "NAME=PORT[/PROTO]", "PART", "PERCENT", "PID",
    "PORT", "PREFIX", "PREFIX,…", "SECONDS", "SIZE", "TABLE=TIME", "TEXT", "TIME", "bytes|packets|flows",
    "FACTOR", "folded|speedscope|svg", "native|tcx|generic|off", "on|off",
    "process|remote|network|port|container|netns|state", "sampled|exact", "table|csv|jsonl", "text|json", "text|jsonl",
}  # fmt: skip
"""Metavars of options that do not name a file. The command of `nettop run` is the caller's own."""
NO_PATH_IN_URL = {("collect", "--clickhouse")}


class Place(NamedTuple):
    """The caller's directory, and one of root's beside it, with files for the options."""

    home: Path
    root: Path

    def words(self, line: tuple[str, ...], path: str) -> list[str]:
        """Return a command line with that path, inside the caller's directory or outside."""
        whole = f"{self.root.parent if path.startswith('owned/') else self.home}/{path}"
        return [word.format(path=whole, home=self.home) for word in line]

    def state(self) -> dict[str, tuple[object, ...]]:
        """Return everything that root owns here: owner, mode, size and modification time."""
        paths = (self.root, *self.root.rglob("*"))
        return {str(path): (*status(path), path.read_bytes() if path.is_file() else None) for path in paths}


def status(path: Path) -> tuple[int, ...]:
    """Return the file attributes that a write would change."""
    now = path.lstat()
    return now.st_uid, now.st_gid, now.st_mode, now.st_size, now.st_mtime_ns, now.st_ctime_ns


@pytest.fixture
def place() -> Iterator[Place]:
    """Yield the directories, and the caller's links into root's."""
    with tempfile.TemporaryDirectory(dir="/tmp") as there:
        above = Path(there)
        above.chmod(0o755)
        made = Place(above / "home", above / "owned")
        for folder in made:
            folder.mkdir(mode=0o755)
        (made.home / "link").symlink_to(made.root / "there")
        (made.home / "folder").symlink_to(made.root)
        (made.home / "up").symlink_to(above)
        (made.home / "key").write_text("no key")
        for path in (made.home, *made.home.iterdir()):
            os.lchown(path, CALLER, CALLER)
        yield made


def test_every_path_is_tried() -> None:
    """The table has exactly the parameters of commands that may name a path."""
    root = typer.main.get_command(app)
    commands = {"nettop": root, **root.commands}  # type: ignore[attr-defined]
    values = {
        (command, param.opts[0]): param.metavar
        for command, parsed in commands.items()
        for param in parsed.params
        if not getattr(param, "is_flag", False)
    }
    assert {name for name, kind in values.items() if kind not in NO_FILES} - NO_PATH_IN_URL == NAMED.keys()


def tried(place: Place, words: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run it as a sudoer; assert that nothing of root's was changed or shown."""
    before = place.state()
    done = nettop(*words, env=SUDO, cwd=place.home, deadline_s=DEADLINE_S)
    assert place.state() == before
    assert SECRET not in done.stdout + done.stderr
    return done


def assert_refused_to_caller(done: "subprocess.CompletedProcess[str]") -> None:
    """Assert that the error names the user without permission, and the remedy."""
    assert done.returncode == ExitCode.PERMISSION, done.stderr
    assert f"(nettop opens it as {NAME}, who called sudo)" in done.stderr
    assert "sudo env -u SUDO_UID nettop" in done.stderr
    assert "Traceback" not in done.stderr


def at_levels(kind: str) -> list[Any]:
    """Return the command lines that use a path like this, each with one of the levels, and the first one with all."""
    lines = {" ".join(name): line for name, (done, *line) in NAMED.items() if done == kind}
    chosen = [(name, LEVELS[number % len(LEVELS)]) for number, name in enumerate(lines)]
    chosen += [(next(iter(lines)), level) for level in LEVELS[1:]]
    return [pytest.param(lines[name], level, id=f"{name} {level}") for name, level in chosen]


@pytest.mark.parametrize(("line", "path"), at_levels(WRITTEN))
def test_a_file_is_not_written(line: tuple[str, ...], path: str, place: Place) -> None:
    """nettop writes neither an existing file of root's, nor a new one in a directory of root's."""
    assert_refused_to_caller(tried(place, place.words(line, path)))
    (place.root / "there").write_text("precious")
    assert_refused_to_caller(tried(place, place.words(line, path)))


@pytest.mark.parametrize(("line", "path"), at_levels(READ))
def test_a_file_is_not_read(line: tuple[str, ...], path: str, place: Place) -> None:
    """nettop does not read a file that only root may read."""
    (place.root / "there").write_text(SECRET)
    (place.root / "there").chmod(0o600)
    assert_refused_to_caller(tried(place, place.words(line, path)))


@pytest.mark.parametrize(("line", "path"), at_levels(DIRECTORY))
def test_a_directory_is_not_used(line: tuple[str, ...], path: str, place: Place) -> None:
    """nettop creates nothing in a directory of root's."""
    (place.root / "there" / "data").mkdir(parents=True)
    (place.root / "there" / "data").chmod(0o700)
    assert_refused_to_caller(tried(place, place.words(line, path)))
    if line[0] != "flows":  # which makes none
        (place.root / "there" / "data").rmdir()
        (place.root / "there").rmdir()
        assert_refused_to_caller(tried(place, place.words(line, path)))


@pytest.mark.parametrize(("line", "path"), at_levels(MADE_SOCKET))
def test_a_socket_is_not_made(line: tuple[str, ...], path: str, place: Place) -> None:
    """nettop creates no socket in a directory of root's, and replaces none of root's."""
    for is_there in (False, True):
        if is_there:
            left_socket(place.root / "there")
        done = tried(place, place.words(line, path))
        if path == "link":  # which is in the caller's own directory, and is not followed
            assert done.returncode == ExitCode.FAILURE
            assert "exists and is not a socket" in done.stderr
        else:
            assert_refused_to_caller(done)


def left_socket(path: Path) -> None:
    """Leave the file of a socket whose process has exited."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


@pytest.mark.parametrize(("line", "path"), at_levels(USED_SOCKET))
def test_a_socket_of_roots_is_not_used(line: tuple[str, ...], path: str, place: Place) -> None:
    """nettop does not connect to a socket that only root may use."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.root / "there"))
        (place.root / "there").chmod(0o600)
        listener.listen()
        if line[0] == "flows":
            assert_refused_to_caller(tried(place, place.words(line, path)))
        else:
            with Running(*place.words(line, path), env=SUDO, cwd=place.home) as running:
                until(
                    lambda: "serving at" in running.errors() or running.process.poll() is not None,
                    "it has asked for the collector",
                )
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_completion_is_not_installed_in_somebodys_home(place: Place) -> None:
    """nettop does not write through a link in the home directory that sudo may have kept."""
    (place.root / "there").write_text("precious")
    (place.home / ".bashrc").symlink_to(place.root / "there")
    before = place.state()
    environment = SUDO | {"HOME": str(place.home), "SHELL": "/bin/bash"}
    done = nettop("--install-completion", env=environment)
    assert (done.returncode, "without sudo" in done.stderr) == (ExitCode.USAGE, True)
    assert place.state() == before


def test_an_impossible_caller(place: Place) -> None:
    """An invalid caller in SUDO_UID opens no files."""
    for words in (place.words(line, "owned/there") for kind, *line in NAMED.values() if kind == WRITTEN):  # type: ignore[arg-type]
        done = nettop(*words, env=SUDO | {"SUDO_UID": "x"}, deadline_s=DEADLINE_S)
        assert (done.returncode, "no user SUDO_UID=x" in done.stderr) == (ExitCode.PERMISSION, True)
    assert list(place.root.iterdir()) == []


def test_the_remedy(place: Place) -> None:
    """Without SUDO_UID nettop acts as root, and writes where root may."""
    line = NAMED["run", "--output"][1:]
    done = nettop(*place.words(line, "owned/there"), around=("env", "-u", "SUDO_UID"), env=SUDO)
    assert done.returncode == 0
    assert (place.root / "there").read_text().startswith("nettop:")


@pytest.mark.parametrize(
    ("command", "modes"),
    [
        (("run", "--output"), {"new": 0o644}),
        (("doctor", "--bundle"), {"new": 0o600}),
        (("record", "path"), {"hours": 0o750, "": 0o640}),
    ],
    ids=" ".join,
)
def test_a_new_file_belongs_to_the_caller(
    command: tuple[str, str], modes: dict[str, int], place: Place
) -> None:
    """In the caller's directory new files and directories are the caller's, and those that others may not read closed;
    a bundle replaces no file."""
    path = "hours/" if "hours" in modes else "new"
    words = place.words(NAMED[command][1:], path)
    assert nettop(*words, env=SUDO, cwd=place.home).returncode == ExitCode.DONE
    made = place.home / path.strip("/")
    found = [made, *(made.iterdir() if made.is_dir() else ())]
    assert {each.stat().st_uid for each in found} == {CALLER}
    assert [each.stat().st_mode & 0o777 for each in found] == list(modes.values())
    if command == ("doctor", "--bundle"):
        again = nettop(*words, env=SUDO, cwd=place.home)
        assert (again.returncode, "already exists" in again.stderr) == (ExitCode.FAILURE, True)


def test_files_are_read_again_as_who_named_them(place: Place) -> None:
    """On SIGHUP a link to root's file in the token's place is not followed: the token stays."""
    token = place.home / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    os.chown(token, CALLER, CALLER)
    (place.root / "there").write_text("f" * 32)
    (place.root / "there").chmod(0o600)
    with Running(*_SERVED, "--token-file", str(token), env=SUDO, cwd=place.home) as running:
        until(lambda: "serving at" in running.errors(), "nettop serves")
        token.unlink()
        token.symlink_to(place.root / "there")
        os.kill(running.pid, signal.SIGHUP)
        until(lambda: "stay in use" in running.errors(), "it has tried to read the token again")
        assert running.end() == 0
        assert f"cannot read the token file {token}: permission denied" in running.errors()


@pytest.fixture
def system_flows() -> tuple[str, ...]:
    """Return words that start a command where the collector's own directory does not exist yet."""
    pytest.importorskip("chdb")
    Path(SYSTEM_FLOWS_DIR).parents[1].mkdir(parents=True, exist_ok=True)
    return mounted(f"mount -t tmpfs tmpfs {Path(SYSTEM_FLOWS_DIR).parents[1]}")


def test_the_collectors_own_directory(place: Place, system_flows: tuple[str, ...]) -> None:
    """The collector's own directory belongs to its own user; named paths are read once, as the caller."""
    token = place.home / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    os.chown(token, CALLER, CALLER)
    words = ("collect", "--listen", "127.0.0.1:0", "--query-listen")
    with Running(
        *words, "none", "--token-file", str(token), around=system_flows, env=SUDO, cwd=place.home
    ) as running:
        until(lambda: "receiving on" in running.errors(), "it collects", 60)
        ((uid, *_),) = users(running.pid)
        assert uid not in (0, CALLER)
        os.kill(running.pid, signal.SIGHUP)
        until(
            lambda: "cannot be reloaded as another user" in running.errors(),
            "it does not read the token again",
        )
        assert running.end() == 0
    with Running(*words, f"unix:{place.home}/s", around=system_flows, env=SUDO, cwd=place.home) as running:
        assert running.wait() == ExitCode.USAGE
        assert f"would not be created as {NAME}, who called sudo" in running.errors()
    assert not (place.home / "s").exists()
