# SPDX-License-Identifier: Apache-2.0
"""Images built by buildah without a registry: on a Debian made here, with this machine's ways to packages.

What is handed on is mounted while a build runs, and is in no image.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .tools import CHECKOUT

BASE = "localhost/debian:minbase"
CONTAINERFILE = CHECKOUT / "deploy/container/Containerfile"
_CERTIFICATES = "/run/handed-on.pem"
_MINUTES = 60


@dataclass(frozen=True, slots=True)
class Buildah:
    """buildah, with images of its own below a folder, as root or as somebody else."""

    folder: Path
    as_user: tuple[str, ...] = ()

    def __call__(self, *words: str, check: bool = True, minutes: int = 20) -> str:
        """Run a command of buildah's; what it printed, errors behind."""
        places = (f"--root={self.folder}/images", f"--runroot={self.folder}/running")
        done = subprocess.run(
            [*self.as_user, "buildah", *places, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=minutes * _MINUTES,
            check=False,
            cwd=self.folder,
        )
        assert not check or done.returncode == 0, done.stdout[-4000:]
        return done.stdout.strip()

    def import_debian(self, suite: str) -> None:
        """An image of the smallest Debian."""
        archive = subprocess.run(
            [CHECKOUT / "scripts/debian-base.sh", suite], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        context = self.folder / "base"
        context.mkdir()
        # Without devices, which only root may make; a container has those of its engine.
        subprocess.run(
            f"gzip -dc '{archive}' | tar --delete -f - --wildcards './dev/*' > '{context}/root.tar'",
            shell=True,
            check=True,
        )
        (context / "Containerfile").write_text("FROM scratch\nADD root.tar /\n")
        self("build", "--isolation=chroot", "--tag", BASE, str(context))
        shutil.rmtree(context)

    def build(self, tag: str, suite: str, *options: str) -> None:
        """Build the Containerfile, in Docker's format, which has health checks."""
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


def copy_context(folder: Path) -> None:
    """The files of the repository that a clone would have, as they are now."""
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
    """Options of a build that give it this machine's sources of Debian's and Python's packages."""
    script = f'. "{CHECKOUT}/scripts/debian-sources.sh"; debian_sources {suite} | sed "s/^/deb /"'
    sources = _printed("bash", "-c", script)
    # How to fetch, not what else this machine hooks into apt.
    fetching = [line for line in _printed("apt-config", "dump").splitlines() if line.startswith("Acquire::")]
    pip, volumes = _pip_configuration()
    # Where this machine has no sources, those that debootstrap wrote stay.
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
    """pip's configuration here, its environment last, as in pip; and the volumes with the files that it names."""
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
            # An index called simple/ links to files beside it.
            path = word.removeprefix("file://").removesuffix("/simple")
            if path.startswith("/") and os.path.exists(path):
                volumes.append(f"--volume={path}:{path}:ro")
    return "\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items()), ""]), volumes


def _printed(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


