# SPDX-License-Identifier: Apache-2.0
"""Run random command lines, with valid, invalid and hostile options and values."""

import os
import random
import re
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer
from programs import NETTOP

from nettop.cli import app
from nettop.snapshots import find_table, lenses, views
from tests.kernel import bpf_objects
from tests.kernel.command import mounted
from tests.kernel.lab import NotInTimeError

END_S = 2.0
"""Time for a command to exit after SIGTERM."""
HANGS_S = 60
_SHOWN = 4000
NOBODY = 65534
OPTIONS_MOST = 5
_PRIVATE = "mount -t tmpfs none /var/log && mount -t tmpfs none /var/lib && mount -t tmpfs none /root"
"""Empty temporary file systems over the directories that commands write to by default."""
_TEXTS = (
    "", " ", "0", "1", "-1", "2", "00", "1.5", "1e999", "nan", "inf", "99999", "65536", "4294967296", "9" * 40,
    "é", "\udce9", "a" * 5000, "*", "[x]", "[", "%", "%n", "\\", "'", '"', "--", "-", "@", "=", "a=b", "a=", "=b",
    "lo", "eth*", "nosuch", "1k", "64M", "5%", "200%", "none", "none=none", "on", "off", "\x1b[31m", "\n",
)  # fmt: skip
_FILTERS = (
    "nginx", ":443", "10.0.0.0/8", "fe80::1%lo", "pid=1", "pid=", "rtt_us>10ms", "rtt_us>", "not", "(", ")", "or",
    "and", "state=LISTEN", "process~'a'", "bytes_sent>1G", "!x", "port=99999", "remote=::/0", '"', "a and (b or not c)",
)  # fmt: skip
_ENDPOINTS = (
    "127.0.0.1:0", "[::1]:0", "127.0.0.1:99999", "localhost:0", ":0", "unix:./socket", "unix:", "127.0.0.1",
    "0.0.0.0:0",
)  # fmt: skip
_COLLECTORS = ("http://127.0.0.1:1", "unix:nosuch", "http://", "ftp://127.0.0.1", "http://127.0.0.1:1/x?y#z")
_MECHANISMS = (
    "sock_diag", "samples", "descriptors", "rtnetlink", "perf cpu-clock", "XDP + TCX", "/proc/kallsyms",
)  # fmt: skip
_COMMANDS = (
    ("true",), ("sh", "-c", "exit 3"), ("nosuch",), ("sleep", "0.3"), (), ("sh", "-c", "kill -9 $$"), ("/",),
)  # fmt: skip
_FILES = (
    "new", "fifo", "folder", "full", "text", "deep.toml", "nosuch/file", "secret", "link", "null", "-", "",
)  # fmt: skip


def explore_words(chance: random.Random) -> list[str]:
    """Run one command line until it exits, with or without a signal; return the faults."""
    with tempfile.TemporaryDirectory(prefix="nettop-explore") as folder:
        os.chmod(folder, 0o777)
        make_files(Path(folder))
        name, words = command_line(chance)
        return Run(Path(folder), name, words, chance).faults()


def make_files(folder: Path) -> None:
    """Create a file of each kind that a path may name."""
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (folder / "folder").mkdir()
    (folder / "full").symlink_to("/dev/full")
    (folder / "link").symlink_to("link")
    (folder / "text").write_bytes(b"a = 1\n\xff\xfe\n")
    (folder / "deep.toml").write_text("a = " + "[" * 20_000 + "]" * 20_000)
    (folder / "secret").write_text("token of nobody")
    (folder / "secret").chmod(0o600)


def command_line(chance: random.Random) -> tuple[str, list[str]]:
    """Return a command (empty: the default view) and its arguments."""
    group: Any = typer.main.get_command(app)
    name = chance.choice(("", "", "", *group.commands))
    command = group.commands[name] if name else group
    words = (
        [name] if name else list(chance.choice((("--table", "--once"), ("-d", "--count", "2"), ("--table",))))
    )
    known = [param for param in command.params if param.opts and param.opts[0].startswith("--")]
    known = [
        option for option in known if option.name not in ("version", "install_completion", "show_completion")
    ]
    for each in chance.sample(known, min(len(known), chance.randint(0, OPTIONS_MOST))):
        for _ in range(chance.randint(1, 2) if each.multiple else 1):
            words.append(chance.choice(each.opts))
            if not each.is_flag:
                words.append(value(chance, each.name, each.metavar or ""))
    if chance.random() < 0.03:
        words.append(chance.choice(("--nosuch", "extra", "-x")))
    return name, words + arguments(chance, name)


def arguments(chance: random.Random, name: str) -> list[str]:
    """Return the arguments that follow a command's options."""
    if name == "run":
        return ["--", *chance.choice(_COMMANDS)]
    if name == "export":
        return [chance.choice(("cpu.stacks", "cpu.stacks", *views())), chance.choice(_FILES)]
    if name == "flows" and chance.random() < 0.3:
        return ["sql", chance.choice(("SELECT 1", "SELECT", "DROP TABLE flows_raw", "SELECT 1 FORMAT JSON"))]
    return []


_BY_NAME: dict[str, Callable[[random.Random], str]] = {
    "filter": lambda chance: " ".join(chance.choices(_FILTERS, k=chance.randint(1, 3))),
    "view": lambda chance: chance.choice(views()),
    "lens": lambda chance: chance.choice(views()),
    "columns": lambda chance: ",".join(chance.choices(fields(chance), k=3)),
    "sort": lambda chance: chance.choice(("", "-")) + chance.choice(fields(chance)),
    "mechanism": lambda chance: f"{hook(chance)}={chance.choice(('none', 'nosuch', *_MECHANISMS))}",
    "clickhouse": lambda chance: chance.choice(_COLLECTORS),
    "collector": lambda chance: chance.choice(_COLLECTORS),
    "kafka": lambda _: "127.0.0.1:1/flows",
}
_BY_METAVAR: dict[str, tuple[str, ...]] = {
    "HOST:PORT|unix:PATH": _ENDPOINTS,
    "[ADDRESS:]PORT": _ENDPOINTS,
    "FILE": _FILES,
    "DIR": _FILES,
    "DIR|none": _FILES,
    "SECONDS": ("0.1", "0.5", "1"),
}


def fields(chance: random.Random) -> list[str]:
    """Return the fields of a random table."""
    return [field.name for field in find_table(chance.choice(views()))[1].fields]


def hook(chance: random.Random) -> str:
    """Return a random hook."""
    return chance.choice([hook.name for lens in lenses() for hook in lens.hooks])


def value(chance: random.Random, name: str, metavar: str) -> str:
    """Return a value for an option, usually a valid one."""
    if chance.random() < 0.25:
        return chance.choice(_TEXTS)
    if name in _BY_NAME:
        return _BY_NAME[name](chance)
    if re.fullmatch(r"[a-z0-9]+(\|[a-z0-9]+)+", metavar):
        return chance.choice(metavar.split("|"))
    return chance.choice(_BY_METAVAR.get(metavar, ("1", "2", "10", "100", *_TEXTS)))


class Run:
    """A run of a command line in a folder, as root or as nobody."""

    def __init__(self, folder: Path, name: str, words: list[str], chance: random.Random) -> None:
        self._folder, self._name, self._words = folder, name, words
        self._as_nobody = chance.random() < 0.15
        self._patience_s = chance.choice((0.3, 2, 6))
        self._number = chance.choice((signal.SIGTERM, signal.SIGINT))
        self._output = chance.choice(("out", "out", "out", "/dev/full"))

    def faults(self) -> list[str]:
        """Run the command line; return the faults, each with the command line."""
        before = bpf_objects.existing()
        found = list(self._run())
        try:
            bpf_objects.nothing_new_since(before)
        except NotInTimeError as error:
            found.append(str(error))
        who = " (as nobody)" if self._as_nobody else ""
        return [
            f"nettop {' '.join(map(ascii, self._words))} > {self._output}{who}: {fault}" for fault in found
        ]

    def _run(self) -> list[str]:
        became = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if self._as_nobody else {}
        around = () if self._as_nobody else mounted(_PRIVATE)
        home = {"HOME": str(self._folder), "XDG_CONFIG_HOME": str(self._folder)}
        environment = {**os.environ, **home, "PYTHONFAULTHANDLER": "1"}
        with open(self._folder / self._output, "wb") as out, open(self._folder / "err", "wb") as error:
            process = subprocess.Popen(
                [*around, NETTOP, *(word.replace("\0", "") for word in self._words)],
                stdin=subprocess.DEVNULL, stdout=out, stderr=error, cwd=self._folder, env=environment,
                start_new_session=True, **became,
            )  # fmt: skip
            try:
                return self._ended(process)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _ended(self, process: "subprocess.Popen[bytes]") -> list[str]:
        """Wait, and send a signal if the command keeps running; return the faults."""
        was_signalled = False
        began = time.monotonic()
        try:
            status = process.wait(self._patience_s)
        except subprocess.TimeoutExpired:
            was_signalled = True
            process.send_signal(self._number)
            began = time.monotonic()
            try:
                status = process.wait(HANGS_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # faulthandler prints the stack of each thread
                with suppress(subprocess.TimeoutExpired):
                    process.wait(HANGS_S)
                where = (self._folder / "err").read_text(errors="replace")[-_SHOWN:]
                return [f"{self._number.name}: still running after {HANGS_S} s:\n{where}"]
        took = time.monotonic() - began
        errors = (self._folder / "err").read_text(errors="replace")
        faults = []
        if was_signalled and took > END_S:
            faults.append(f"{self._number.name}: took {took:.1f} s to exit")
        if "Traceback" in errors or "please report" in errors:
            faults.append(errors[-_SHOWN:])
        if not was_signalled and not self._is_known(status):
            faults.append(f"exit status {status}: {errors[-500:]}")
        if status in (2, 3, 4, 5) and not errors.strip() and self._name not in ("run", "doctor"):
            faults.append(f"exit status {status} without a message")
        return faults

    def _is_known(self, status: int) -> bool:
        return status in range(6) or (self._name == "run" and 0 <= status < 256)
