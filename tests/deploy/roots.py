# SPDX-License-Identifier: Apache-2.0
"""A fresh Debian in a folder, made by scripts/fresh-root.sh, to run commands in, with or without a network."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from .tools import CHECKOUT

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
"""Prefix that runs a command as an ordinary user."""

CLONE = "srv/nettop"
"""Path of the sources in the root."""

_NO_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
# Records of apt and dpkg, and what does not belong to the package: the sources and mounted file systems.
_NOT_COMPARED = {
    *(
        "var/lib/dpkg",
        "var/lib/apt",
        "var/cache",
        "var/log/apt",
        "var/log/dpkg.log",
        "var/log/alternatives.log",
    ),
    *(CLONE, "proc", "sys", "dev", "run"),
}


class Root:
    """A Debian of a suite with the files of this checkout, removed on exit."""

    def __init__(self, suite: str) -> None:
        script = CHECKOUT / "scripts/fresh-root.sh"
        # Without exec: while it replaces the shell, the environment reads as empty.
        options = ("--suite", suite, "--worktree", "--run", "echo ready $$; read -r _ || true")
        self._holder = subprocess.Popen(
            [script, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        said = ""
        for line in self._read(self._holder.stdout):
            said += line
            if line.startswith("ready "):
                break
        else:
            raise AssertionError(said)
        self._pid = line.split()[1]
        self.path = Path(os.readlink(f"/proc/{self._pid}/root"))
        environment = Path(f"/proc/{self._pid}/environ").read_text().split("\0")
        self._inside = (
            *("nsenter", "--target", self._pid, "--mount", "--root", "--wd", "--", "env", "-i"),
            *filter(None, environment),
        )
        return self

    @staticmethod
    def _read(stream: IO[str] | None) -> IO[str]:
        assert stream is not None
        return stream

    def __exit__(self, *_: object) -> None:
        self._holder.communicate("")
        assert self._holder.returncode == 0

    def words(self, *command: str, online: bool = False) -> list[str]:
        """Return the words that run a command in it; offline, in a network namespace with only loopback."""
        return [*(() if online else _NO_NETWORK), *self._inside, *command]

    def start(self, *command: str, **how: Any) -> subprocess.Popen[str]:
        """Start a command without a network."""
        return subprocess.Popen(self.words(*command), text=True, **how)

    def run(
        self, *command: str, online: bool = False, succeeds: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to completion."""
        done = subprocess.run(
            self.words(*command, online=online),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not succeeds, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done

    def shell(self, script: str, *, online: bool = False) -> str:
        """Return the output of a script."""
        return self.run("bash", "-euo", "pipefail", "-c", script, online=online).stdout

    def install(self, *packages: str, online: bool = False, **how: bool) -> str:
        """Install packages and return apt's output; offline, from what was downloaded."""
        return self.apt("install", "--no-install-recommends", *packages, online=online, **how)

    def apt(self, *words: str, online: bool = False) -> str:
        """Run apt-get noninteractively and return its output."""
        front = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-o", "Dpkg::Use-Pty=0")
        return self.run(*front, *words, online=online).stdout

    def files(self) -> dict[str, tuple[object, ...]]:
        """Return the metadata of all files, to detect changes."""
        return dict(self._below(self.path))

    def _below(self, folder: Path) -> Iterator[tuple[str, tuple[object, ...]]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = os.path.relpath(entry.path, self.path)
                if name in _NOT_COMPARED:
                    continue
                info = entry.stat(follow_symlinks=False)
                facts: tuple[object, ...] = (info.st_mode, info.st_uid, info.st_gid)
                if stat.S_ISREG(info.st_mode):
                    facts += (info.st_size,)
                elif stat.S_ISLNK(info.st_mode):
                    facts += (os.readlink(entry.path),)
                yield name, facts
                if entry.is_dir(follow_symlinks=False):
                    yield from self._below(Path(entry.path))


def changed(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> dict[str, object]:
    """Return the files that were added, removed or changed, with their metadata before and after."""
    return {
        name: (before.get(name), after.get(name))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }
