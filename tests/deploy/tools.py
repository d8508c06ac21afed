# SPDX-License-Identifier: Apache-2.0
"""Debian's tools that check what is deployed, unpacked under the cache: to install some would start a service."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
DEPLOY = CHECKOUT / "deploy"


@cache
def debian_package(package: str, suite: str = "bookworm") -> Path:
    """The folder into which a package of Debian's is unpacked."""
    words = [str(CHECKOUT / "scripts/debian-tool.sh"), suite, package]
    return Path(subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip())
