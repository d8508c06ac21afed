# SPDX-License-Identifier: Apache-2.0
"""Write requirements/*.txt: what install-deps.sh takes from a package index, with versions and hashes.

One file for each extra of pyproject.toml, and build.txt for what builds and installs nettop itself. They hold for every
Python from 3.11 on, and for every processor. The index is the one that uv is configured for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
LOCKS = CHECKOUT / "requirements"
BUILDERS = ("pip", "editables")
"""What installs nettop, besides its build backend; hatchling asks for the second when an install is editable."""
# Of the distribution, like bcc.
NOT_LOCKED = "numpy"
_OPTIONS = (
    *("--quiet", "--universal", "--python-version=3.11", "--only-binary=:all:", "--generate-hashes"),
    *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
    *("--no-emit-package", NOT_LOCKED),
)


def main() -> None:
    """Resolve the largest set first: a package has one version in all files. `--upgrade` takes the newest ones."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".in") as build:
        build.write("\n".join((*project["build-system"]["requires"], *BUILDERS)))
        build.flush()
        lock("build", [build.name])
    lock("dev", ["--extra=dev", "pyproject.toml"])
    for extra in ("flows", "serve"):
        lock(extra, ["--constraint", str(LOCKS / "dev.txt"), f"--extra={extra}", "pyproject.toml"])


def lock(name: str, sources: Iterable[str]) -> None:
    """Write one file."""
    uv = Path(sys.executable).with_name("uv")
    command = (uv, "pip", "compile", *_OPTIONS, *sys.argv[1:], f"--output-file={LOCKS / name}.txt", *sources)
    subprocess.run(command, check=True, cwd=CHECKOUT)


if __name__ == "__main__":
    main()
