# SPDX-License-Identifier: Apache-2.0
"""Debian's systemd as PID 1 in its own namespaces, where it starts the units of deploy/systemd.

It sees the host's files, except that those nettop's services read or write are in a temporary folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.collecting import PATIENCE_S, until
from tests.proc import status_fields

from .tools import CHECKOUT, DEPLOY

UNITS = {path.stem: path for path in sorted((DEPLOY / "systemd").glob("*.service"))}
SYSTEMD = Path("/usr/lib/systemd/systemd")
_HERE, _CODE = "/opt/checkout", "/opt/environment"
_TARGETS = ("basic", "multi-user", "network-online", "shutdown", "sysinit")
_CGROUPS = next(path for path in map(Path, ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")) if path.is_dir())

_BOOT = f"""
set -e
for place in usr/lib/systemd/system usr/local/bin etc opt var/lib var/log; do
  mount --bind "$1/$place" "/$place"
done
mkdir {_HERE}
mount --rbind {CHECKOUT} {_HERE}
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /usr/lib/systemd/system-generators
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
export container=other
exec {SYSTEMD} --system --unit=multi-user.target --log-target=console --show-status=no
"""
"""Script run in the new namespaces: hides the host's units, and every directory that services write to."""


class Booted:
    """A systemd and the network namespace of it and its services, with or without nettop and its units."""

    def __init__(self, folder: Path, *, installed: bool = True) -> None:
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self._cgroup = _CGROUPS / f"nettop-test-{os.getpid()}"
        _fill(self.root)
        if installed:
            _install(self.root, sys.path)

    def __enter__(self) -> Self:
        self._cgroup.mkdir()
        enter = (
            f"echo $$ > {self._cgroup}/cgroup.procs && exec unshare --pid --mount --net --uts --ipc --cgroup"
        )
        words = f'{enter} --fork --mount-proc --kill-child bash -c "$0" boot "$@"'
        with (self.root / "console").open("wb") as console:
            self._process = subprocess.Popen(
                ["bash", "-c", words, _BOOT, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        try:
            until(lambda: self._is_up() or self._process.poll() is not None, "systemd starts")
            assert self._process.poll() is None, (self.root / "console").read_text()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_up():
            # Stopping removes each service's private /tmp, a folder in the host's /tmp.
            self.run("systemctl", "stop", "nettop-*", "plain*", check=False)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        until(
            lambda: "populated 0" in (self._cgroup / "cgroup.events").read_text(), "every process has ended"
        )
        for path, _, _ in os.walk(self._cgroup, topdown=False):
            os.rmdir(path)

    def configure(self, unit: str, options: str = "", drop_in: str = "") -> None:
        """Set a unit's options as an administrator would, and add a drop-in. Stderr goes to a file."""
        (self.root / "etc/default" / unit).write_text(f'OPTIONS="{options}"\n')
        folder = self.root / f"etc/systemd/system/{unit}.service.d"
        folder.mkdir(exist_ok=True)
        (folder / "test.conf").write_text(f"[Service]\nStandardError=append:/var/log/{unit}.err\n{drop_in}")
        self.run("systemctl", "daemon-reload")

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root."""
        enter = (
            "nsenter",
            f"--target={self._first()}",
            "--pid",
            "--mount",
            "--net",
            "--cgroup",
            "--uts",
            "--ipc",
        )
        done = subprocess.run(
            [*enter, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def start(self, unit: str) -> int:
        """Start a unit, wait until it is ready, and return its main PID on the host."""
        done = self.run("systemctl", "start", unit, check=False)
        assert done.returncode == 0, (done.stderr, self.errors(unit), (self.root / "console").read_text())
        return self.pid(unit)

    def pid(self, unit: str) -> int:
        """Return the main PID of a unit on the host."""
        inside = self.show(unit, "MainPID")
        for status in Path("/proc").glob("[0-9]*/status"):
            words = _fields(status).get("NSpid", "").split()
            if words[-1:] == [inside] and len(words) > 1 and _cgroup_of(status).endswith(f"/{unit}.service"):
                return int(status.parent.name)
        raise AssertionError(f"{unit} has no process {inside}")

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def errors(self, unit: str) -> str:
        """Return what a configured unit has written to stderr."""
        path = self.root / f"var/log/{unit}.err"
        return path.read_text() if path.exists() else ""

    def _is_up(self) -> bool:
        try:
            return self.run("systemctl", "is-active", "multi-user.target", check=False).returncode == 0
        except (IndexError, OSError):
            return False

    def _first(self) -> int:
        """Return the host's PID of the process that is PID 1 inside."""
        return int(
            Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()[0]
        )


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status as a dict."""
    return _fields(Path(f"/proc/{pid}/status"))


def _fields(path: Path) -> dict[str, str]:
    try:
        return status_fields(path)
    except (ProcessLookupError, FileNotFoundError):
        return {}


def _cgroup_of(status: Path) -> str:
    try:
        lines = status.with_name("cgroup").read_text().splitlines()
    except (ProcessLookupError, FileNotFoundError):
        return ""
    return next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "")


def _fill(root: Path) -> None:
    for place in ("usr/lib/systemd/system", "usr/local/bin", "opt", "var/lib", "var/log"):
        (root / place).mkdir(parents=True)
    shutil.copytree("/etc", root / "etc", symlinks=True)
    shutil.rmtree(root / "etc/systemd", ignore_errors=True)
    (root / "etc/systemd/system").mkdir(parents=True)
    (root / "etc/default").mkdir(exist_ok=True)
    for target in _TARGETS:
        path = root / f"usr/lib/systemd/system/{target}.target"
        path.write_text("[Unit]\nDefaultDependencies=no\n")


def _install(root: Path, paths: Sequence[str]) -> None:
    """Install the units, and the checkout's nettop at the path that they use, readable by every service."""
    for path in UNITS.values():
        shutil.copy(path, root / "etc/systemd/system")
    environment = root / _CODE[1:]
    modules = environment / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    modules.mkdir(parents=True)
    (environment / "bin").mkdir()
    (environment / "bin/python3").symlink_to("/usr/bin/python3")
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\n")
    moved = (path.replace(str(CHECKOUT), _HERE) for path in (str(CHECKOUT), *paths))
    (modules / "nettop.pth").write_text("\n".join(path for path in moved if path.startswith("/")) + "\n")
    command = root / "usr/local/bin/nettop"
    command.write_text(
        f"#!{_CODE}/bin/python3 -I\nimport sys\nfrom nettop.__main__ import main\nsys.exit(main())\n"
    )
    command.chmod(0o755)
