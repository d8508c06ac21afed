# SPDX-License-Identifier: Apache-2.0
"""Schemas that others publish as packages of npm, under the cache: they are used, and not copied into the project."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest


@cache
def npm_packages(*pinned: str) -> Path:
    """The folder in which these packages, each with its version, are installed: node_modules is in it."""
    if not all(map(shutil.which, ("node", "npm"))):
        pytest.skip("needs node and npm, for what others publish there")
    top = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nettop" / "npm"
    folder = top / hashlib.sha256(" ".join(pinned).encode()).hexdigest()[:16]
    if not folder.exists():
        top.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=top) as made:
            (Path(made) / "package.json").write_text('{"private": true}')
            words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *pinned]
            done = subprocess.run(words, cwd=made, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            # Renamed when it is whole: a run that is killed leaves no half of it. Another may have been faster.
            whole = Path(f"{made}.whole")
            shutil.copytree(made, whole, symlinks=True)
            try:
                whole.rename(folder)
            except OSError:
                shutil.rmtree(whole)
                assert folder.is_dir()
    return folder
