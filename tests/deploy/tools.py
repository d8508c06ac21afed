# SPDX-License-Identifier: Apache-2.0
"""Debian's tools that check deploy/, unpacked in the cache because installing some would start a service; and the
options of nettop's commands, to check command lines in files."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from nettop.cli import app

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"


_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@cache
def debian_package(package: str, suite: str = "bookworm") -> Path:
    """Unpack a Debian package and return its folder."""
    if shutil.which("apt-get") is None or not _KEYRING.exists():
        pytest.skip("needs apt and debian-archive-keyring, to unpack Debian's packages")
    words = [str(CHECKOUT / "scripts/debian.sh"), "package", suite, package]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def options_of(command: str) -> set[str]:
    """Return the options of a command, as written."""
    group: Any = typer.main.get_command(app)
    return {name for param in group.commands[command].params for name in param.opts}
