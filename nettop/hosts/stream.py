# SPDX-License-Identifier: Apache-2.0
"""What `nettop record -` on another host writes through ssh, as a recording that grows in memory."""

from __future__ import annotations

import ctypes
import os
import resource
import shlex
import signal
import subprocess
import weakref
from collections.abc import Sequence
from contextlib import suppress

from nettop.process.parent import signal_at_exit_of_parent
from nettop.recording.reader import Reading, Readings, RecordedFile
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Lens

_libc = ctypes.CDLL(None, use_errno=True)
_PUNCH_HOLE = 0x03
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, in include/uapi/linux/falloc.h."""
_KEPT_GROUPS = 2
_PREFACE_MAX, _HELD_MAX = 1 << 20, 1 << 28
"""Bytes before the first group and on standard error, as a login may print something; and of what is not freed yet."""
_ANY_TIME = (1 << 63) - 1
_ENDING_S = 2.0
_SSH_FAILED = 255
_WORDS = ("ssh", "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
          "-o", "ServerAliveCountMax=2")  # fmt: skip
"""It asks nothing, as the screens have the terminal, and notices within fifteen seconds that a host is gone."""
NETTOP = "nettop"


def ssh_words(host: str, command: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that records on a host through ssh. Without a `command` of the user's, that is nettop, by sudo
    unless the user there is root."""
    recording = shlex.join(("record", "-", *arguments))
    by_root = (
        f'if [ "$(id -u)" = 0 ]; then exec {NETTOP} {recording}; else exec sudo -n {NETTOP} {recording}; fi'
    )
    script = f"exec {command} {recording}" if command else by_root
    return [*_WORDS, "--", host, f"exec sh -c {shlex.quote(script)}"]


class HostStream:
    """A recording that a command writes, of which only the newest readings are kept.

    The command ends with the thread that creates the stream, or by `end`.
    """

    def __init__(self, words: Sequence[str], lenses: Sequence[Lens]) -> None:
        self._output, self._errors = os.memfd_create("recording"), os.memfd_create("errors")
        weakref.finalize(self, _close, self._output, self._errors)
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for nettop, and ssh finds no terminal to ask on
            preexec_fn=_prepare,  # noqa: PLW1509 - only system calls
        )
        self._file = RecordedFile(self._output)
        self._readings = {lens.id: Readings(self._file, lens) for lens in lenses}
        self._freed = 0

    @property
    def exit_code(self) -> int | None:
        """The exit code of the command, negative for a signal; None while it runs."""
        return self._process.poll()

    @property
    def last_words(self) -> str:
        """The last line of the command's standard error, safe to show."""
        size = os.fstat(self._errors).st_size
        lines = os.pread(self._errors, 4096, max(0, size - 4096)).decode(errors="replace").split("\n")
        return next((safe_text(line.strip()) for line in reversed(lines) if line.strip()), "")

    @property
    def failures(self) -> dict[str, list[str]]:
        """Why lenses have no readings there: cause and remedy."""
        return self._file.groups[-1].group.failures if self._file.groups else {}

    @property
    def damage(self) -> str:
        """Why what was received so far is no recording; empty if it is one, or may become one."""
        return "" if self._file.groups else self._file.damage.get(0, "")

    @property
    def is_too_long(self) -> bool:
        """True if so much came without a group that it is kept in vain."""
        groups = self._file.groups
        return self._file.size - groups[-1].at > _HELD_MAX if groups else self._file.size > _PREFACE_MAX

    @property
    def said_too_much(self) -> str:
        """How much the command has written to standard error, if that is kept in vain; empty if not."""
        size = os.fstat(self._errors).st_size
        return f"it wrote {size:,} bytes of errors: {self.last_words:.200}" if size > _PREFACE_MAX else ""

    def newest(self, lens: str) -> Reading | None:
        """Return the newest reading of a lens; None if there is none. Raise Damaged."""
        self._file.refresh()
        reading = self._readings[lens].at(_ANY_TIME)
        self._free()
        return reading

    def end(self) -> None:
        """End the command, and wait for it."""
        self._process.terminate()
        try:
            self._process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _free(self) -> None:
        """Free the memory of what no lens reads again."""
        groups = self._file.groups
        end = groups[-_KEPT_GROUPS].at if len(groups) > _KEPT_GROUPS else 0
        if end > self._freed:
            begin, length = ctypes.c_long(0), ctypes.c_long(end)
            _libc.fallocate(self._output, _PUNCH_HOLE, begin, length)
            self._freed = end
            with suppress(OSError):  # it has ended
                _limit_size(self._process.pid, end)


def _prepare() -> None:
    signal_at_exit_of_parent(signal.SIGTERM)
    _limit_size(0, 0)


def _limit_size(pid: int, freed: int) -> None:
    """Let a command write no more to a file than may be held beside what was freed; SIGXFSZ ends it then."""
    hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
    soft = min(freed + _HELD_MAX, hard % (1 << 64))  # RLIM_INFINITY is -1
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def why_ended(stream: HostStream, host: str) -> tuple[str, str]:
    """Return why a command has ended, and the remedy."""
    words, code = stream.last_words, stream.exit_code
    if code == -signal.SIGXFSZ:
        return (
            f"it sent {_HELD_MAX >> 20} MiB more than was read",
            "see what it sends, and the load of this host",
        )
    said = words if words and code not in (0, -signal.SIGTERM) else f"nettop ended there (exit code {code})"
    if code == _SSH_FAILED:
        return said, f"make sure that 'ssh {host}' works without asking anything (a key, an agent)"
    if "not found" in words:
        return said, f"install nettop on {host}, or name its command by --host-command"
    if "password" in words or "sudo:" in words:
        return said, "let sudo run 'nettop record -' there without a password, or log in as root"
    return said, f"try: ssh {host} sudo nettop record - | wc -c"


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
