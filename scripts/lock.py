# SPDX-License-Identifier: Apache-2.0
"""Write requirements/*.txt: the packages that install-deps.sh gets from a package index, with versions and hashes.

There is one file per extra in pyproject.toml, and build.txt for packages that build and install nettop itself. They are
valid for Python 3.11 and later, on any architecture. The index is the one configured for uv.
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
"""Packages that install nettop, besides its build backend; hatchling needs the second for editable installs."""
# From the distribution, like bcc.
NOT_LOCKED = "numpy"
_OPTIONS = (
    *("--quiet", "--universal", "--python-version=3.11", "--only-binary=:all:", "--generate-hashes"),
    *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
    *("--no-emit-package", NOT_LOCKED),
)


def main() -> None:
    """Resolve the largest set first, so that a package has one version in all files. `--upgrade` gets the latest."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".in") as build:
        build.write("\n".join((*project["build-system"]["requires"], *BUILDERS)))
        build.flush()
        lock("build", [build.name])
    lock("dev", ["--extra=dev", "pyproject.toml"])
    for extra in ("flows", "serve"):
        lock(extra, ["--constraint", str(LOCKS / "dev.txt"), f"--extra={extra}", "pyproject.toml"])


def lock(name: str, sources: Iterable[str]) -> None:
    """Write one requirements file."""
    uv = Path(sys.executable).with_name("uv")
    command = (uv, "pip", "compile", *_OPTIONS, *sys.argv[1:], f"--output-file={LOCKS / name}.txt", *sources)
    subprocess.run(command, check=True, cwd=CHECKOUT)


if __name__ == "__main__":
    main()
