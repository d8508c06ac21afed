# SPDX-License-Identifier: Apache-2.0
"""Third-party schemas from npm packages, kept in the cache instead of being copied into the project."""

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
    """Install these packages, pinned to versions; return the folder that has node_modules."""
    if not all(map(shutil.which, ("node", "npm"))):
        pytest.skip("needs node and npm to install schemas")
    top = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nettop" / "npm"
    folder = top / hashlib.sha256(" ".join(pinned).encode()).hexdigest()[:16]
    if not folder.exists():
        top.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=top) as made:
            (Path(made) / "package.json").write_text('{"private": true}')
            words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *pinned]
            done = subprocess.run(words, cwd=made, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            # Renamed once complete, so that a killed run leaves nothing partial. Another run may have been faster.
            whole = Path(f"{made}.whole")
            shutil.copytree(made, whole, symlinks=True)
            try:
                whole.rename(folder)
            except OSError:
                shutil.rmtree(whole)
                assert folder.is_dir()
    return folder
