# SPDX-License-Identifier: Apache-2.0
"""requirements/*.txt, the locked versions to install, agree with the requirements in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = Path(__file__).parents[2] / "requirements"
BUILDERS = ("pip", "editables")
"""Packages that install nettop, besides its build backend; hatchling needs the second for editable installs."""
NOT_LOCKED = "numpy"
"""From the distribution, like bcc."""
PROJECT = tomllib.loads((LOCKS.parent / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
FILES = sorted(LOCKS.glob("*.txt"))
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PROCESSORS = ("x86_64", "aarch64")
ENTRY = re.compile(r"([\w.-]+)==(\S+)(?: ; (.*))?((?:\n    --hash=sha256:[0-9a-f]{64})+)\n")


def locked(name: str, python: str = "3.11", processor: str = "x86_64") -> dict[str, str]:
    """Return the versions in a lock file for a Python version and processor."""
    machine = {"python_version": python, "python_full_version": f"{python}.0", "platform_machine": processor}
    machine |= {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_python_implementation": "CPython",
    }
    entries = ENTRY.findall((LOCKS / f"{name}.txt").read_text().replace(" \\\n", "\n"))
    return {
        canonicalize_name(package): version
        for package, version, marker, _ in entries
        if not marker or Marker(marker).evaluate(machine)
    }


def needed(extra: str) -> list[Requirement]:
    """Return the requirements in pyproject.toml with an extra, resolving nettop's own extras."""
    wanted = map(Requirement, PROJECT["project"]["dependencies"] + EXTRAS[extra])
    return [
        resolved
        for requirement in wanted
        for resolved in (
            [inner for name in requirement.extras for inner in needed(name)]
            if requirement.name == PROJECT["project"]["name"]
            else [requirement]
        )
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_entry_has_a_version_and_hashes(file: Path) -> None:
    """Lock files hold nothing else: no index URL, no option, no unpinned package."""
    assert ENTRY.sub("", file.read_text().replace(" \\\n", "\n")) == ""


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("python", PYTHONS)
def test_they_agree_with_the_project(python: str, processor: str) -> None:
    """The lock files satisfy pyproject.toml: `make lock` was run after its last change."""
    wanted = {extra: needed(extra) for extra in ("serve", "flows", "dev")}
    wanted["build"] = [Requirement(word) for word in (*PROJECT["build-system"]["requires"], *BUILDERS)]
    for name, requirements in wanted.items():
        versions = locked(name, python, processor)
        for requirement in requirements:
            if requirement.name != NOT_LOCKED:
                version = versions.get(canonicalize_name(requirement.name))
                assert version is not None, f"{name}.txt lacks {requirement}"
                assert requirement.specifier.contains(version), f"{name}.txt has {version} for {requirement}"


def test_a_package_has_one_version() -> None:
    """Each package has the same version in all lock files, because the Debian packages share modules."""
    serve, flows, dev = (locked(name) for name in ("serve", "flows", "dev"))
    assert serve.items() <= flows.items() <= dev.items()


def test_no_package_is_locked_without_need() -> None:
    """numpy comes from the distribution, and setuptools, which runs code whenever Python starts, is not needed."""
    assert {path.stem for path in FILES} == {"build", "serve", "flows", "dev"}
    for name in ("build", "serve", "flows"):
        assert not locked(name).keys() & {NOT_LOCKED, "setuptools"}
