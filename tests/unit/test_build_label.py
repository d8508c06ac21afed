# SPDX-License-Identifier: Apache-2.0
"""The label of a build, by which users and packages tell it from another of the same version."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

INSTALLER = Path(__file__).parents[2] / "scripts/install-deps.sh"
SCRIPT = """
source <(sed -n '/^build_nettop()/,/^}/p; /^sums_of()/p' "$1")
sources=(nettop)
pip_of() { echo "$NETTOP_BUILD"; }
build_nettop . .
"""
WITHOUT_GIT = {"GIT_CEILING_DIRECTORIES": "/"}
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(checkout: Path, *words: str) -> str:
    """Run Git in a checkout, independent of the user's configuration."""
    who = ("-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "commit.gpgSign=false")
    return subprocess.run(
        ["git", *who, *words], cwd=checkout, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a repository with one commit."""
    (tmp_path / "nettop").mkdir()
    (tmp_path / "nettop/cli.py").write_text("pass\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    return tmp_path


def label(checkout: Path, **environment: str) -> str:
    """Return the label that the installer gives to a build of this checkout."""
    known = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    return subprocess.run(
        ["bash", "-c", SCRIPT, "installer", INSTALLER],
        env=known | {"checkout": str(checkout)} | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_a_label_names_the_commit(checkout: Path) -> None:
    """By its time and its ID, which Git finds."""
    time, _, commit = label(checkout).removeprefix("+").partition(".g")
    assert git(checkout, "rev-parse", commit) == git(checkout, "rev-parse", "HEAD")
    committed = int(git(checkout, "log", "-1", "--format=%ct"))
    assert time == datetime.fromtimestamp(committed, UTC).strftime("%Y%m%d%H%M%S")


def test_changed_sources_are_no_commit(checkout: Path) -> None:
    """They have another label than the commit, and another for each change."""
    labels = [label(checkout)]
    for text in ("1\n", "2\n"):
        (checkout / "nettop/cli.py").write_text(text)
        labels.append(label(checkout))
    assert len(set(labels)) == 3
    assert all(re.fullmatch(r"\+\d{14}\.s[0-9a-f]{8}", suffix) for suffix in labels[1:])


def test_without_git_there_is_no_time_but_a_given_one(checkout: Path) -> None:
    """The times of files may be those of the copy."""
    shutil.rmtree(checkout / ".git")
    assert re.fullmatch(r"\+0\.s[0-9a-f]{8}", label(checkout, **WITHOUT_GIT))
    given = label(checkout, SOURCE_DATE_EPOCH="1769860800", **WITHOUT_GIT)
    assert given.startswith("+20260131120000.s")
