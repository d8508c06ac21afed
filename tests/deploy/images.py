# SPDX-License-Identifier: Apache-2.0
"""Images built by buildah without a registry: on a locally made Debian, with this machine's package sources.

The package configuration is mounted during a build, and is not part of the image.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .tools import CHECKOUT

BASE = "localhost/debian:minbase"
CONTAINERFILE = CHECKOUT / "deploy/container/Containerfile"
_CERTIFICATES = "/run/handed-on.pem"
_MINUTES = 60
_CONFINED = """
mount --bind "$0" "$0" && cd "$0" && mount -o remount,bind,ro "$0"
mount -t proc proc proc && mount --rbind /sys sys && mount -o remount,bind,ro "$0/sys" && mount --rbind /dev dev
mount --bind "$1" var/lib/nettop; mount -t tmpfs -o mode=1777 tmpfs tmp
capabilities=$2 uid=$3
shift 3
exec chroot "$0" setpriv --bounding-set="-all$capabilities" --inh-caps=-all \
  --reuid="$uid" --regid="$uid" --clear-groups env --ignore-environment PATH=/usr/local/bin:/usr/bin:/bin "$@"
"""


@contextmanager
def a_user(name: str, home: Path) -> Iterator[tuple[str, ...]]:
    """Create a temporary user with subordinate ids; yield the words that run a command as that user."""
    subprocess.run(["userdel", name], capture_output=True, check=False)
    subprocess.run(["useradd", "--no-create-home", "--home-dir", str(home), name], check=True)
    try:
        entry = pwd.getpwnam(name)
        running = home / "xdg"
        running.mkdir(mode=0o700)
        for folder in (home, running):
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        environment = (f"HOME={home}", f"XDG_RUNTIME_DIR={running}", f"PATH={os.environ['PATH']}")
        who = (f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups")
        yield "setpriv", *who, "env", "--ignore-environment", *environment
    finally:
        # Files made in its user namespace belong to ids that only root may remove.
        subprocess.run(["userdel", name], check=True)


@dataclass(frozen=True, slots=True)
class Buildah:
    """buildah with its own image store in a folder, as root or another user."""

    folder: Path
    as_user: tuple[str, ...] = ()

    def __call__(self, *words: str, check: bool = True, minutes: int = 20) -> str:
        """Run a buildah command; return its output, stderr included."""
        done = subprocess.run(
            [*self._front, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=minutes * _MINUTES,
            check=False,
            cwd=self.folder,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout.strip()

    @property
    def _front(self) -> tuple[str, ...]:
        places = (f"--root={self.folder}/images", f"--runroot={self.folder}/running")
        return *self.as_user, "buildah", *places

    def import_debian(self, suite: str) -> None:
        """Import a minimal Debian as an image."""
        archive = subprocess.run(
            [CHECKOUT / "scripts/debian.sh", "base", suite], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        context = self.folder / "base"
        context.mkdir()
        # Without devices, which only root may create; a container gets those of its engine.
        subprocess.run(
            f"gzip -dc '{archive}' | tar --delete -f - --wildcards './dev/*' > '{context}/root.tar'",
            shell=True,
            check=True,
        )
        (context / "Containerfile").write_text("FROM scratch\nADD root.tar /\n")
        self("build", "--isolation=chroot", "--tag", BASE, str(context))
        shutil.rmtree(context)

    def build(self, tag: str, suite: str, *options: str) -> None:
        """Build the Containerfile in Docker's format, which supports health checks."""
        context = self.folder / "context"
        if not context.exists():
            copy_context(context)
        handed_on = self.folder / "handed-on"
        handed_on.mkdir(exist_ok=True)
        self(
            "build",
            "--isolation=chroot",
            "--format=docker",
            *handed_on_volumes(handed_on, suite),
            f"--build-arg=BASE={BASE}",
            *options,
            f"--file={context}/deploy/container/Containerfile",
            f"--tag={tag}",
            str(context),
        )

    def described(self, image: str) -> dict[str, Any]:
        """Return the image's description in Docker's format: user, command, labels …"""
        described = json.loads(self("inspect", "--type=image", image))["Docker"]
        assert isinstance(described, dict)
        return described


def confined(root: str, user: str, capabilities: Sequence[str], state: str) -> list[str]:
    """Return the words that start a command as a container engine does.

    It runs as this user on a read-only root, with these capabilities in the bounding set only. `state` is a folder to
    mount at /var/lib/nettop, with a private /tmp. buildah cannot run on a read-only root.
    """
    bounding = "".join(f",+{name.lower()}" for name in capabilities)
    around = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _CONFINED]
    return [*around, root, state, bounding, user]


def copy_context(folder: Path) -> None:
    """Copy the repository's files that are not ignored, in their current state."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        source, copy = CHECKOUT / name, folder / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)


def handed_on_volumes(folder: Path, suite: str) -> list[str]:
    """Return build options that pass on this machine's sources of Debian and Python packages."""
    sources = _printed("bash", "-c", f'"{CHECKOUT}/scripts/debian.sh" sources {suite} | sed "s/^/deb /"')
    # Only how to fetch, not this machine's other apt hooks.
    fetching = [line for line in _printed("apt-config", "dump").splitlines() if line.startswith("Acquire::")]
    pip, volumes = _pip_configuration()
    # If this machine has no sources, those written by debootstrap stay.
    files = {
        "/etc/apt/sources.list": sources,
        "/etc/apt/apt.conf.d/99handed-on": "\n".join(fetching) + "\n",
        "/etc/pip.conf": pip,
    }
    for place, text in files.items():
        if text:
            file = folder / Path(place).name
            file.write_text(text)
            volumes.append(f"--volume={file}:{place}:ro")
    return volumes


def _pip_configuration() -> tuple[str, list[str]]:
    """Return pip's local configuration, environment last as in pip, and volumes for the files that it names."""
    settings: dict[str, str] = {}
    for line in _printed(sys.executable, "-m", "pip", "config", "list").splitlines():
        key, _, value = line.partition("=")
        if key.split(".")[0] in ("global", "install", ":env:"):
            settings[key.rpartition(".")[2]] = value.strip("'\"").replace("\\n", " ")
    volumes = []
    for name, value in settings.items():
        if name == "cert":
            settings[name] = _CERTIFICATES
            volumes.append(f"--volume={os.path.realpath(value)}:{_CERTIFICATES}:ro")
            continue
        for word in value.split():
            # An index named simple/ links to files next to it.
            path = word.removeprefix("file://").removesuffix("/simple")
            if path.startswith("/") and os.path.exists(path):
                volumes.append(f"--volume={path}:{path}:ro")
    return "\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]), volumes


def _printed(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
