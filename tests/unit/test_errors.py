# SPDX-License-Identifier: Apache-2.0
"""The hierarchy of errors."""

from __future__ import annotations

import errno
import os

import pytest

from nettop.errors import (
    NettopError,
    PermissionMissing,
    SourceFailed,
    Unsupported,
    UsageError,
    failure_of,
    unknown_word,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(NettopError, 1), (UsageError, 2), (Unsupported, 3), (PermissionMissing, 4), (SourceFailed, 5)],
)
def test_each_error_has_its_documented_exit_code(kind: type[NettopError], code: int) -> None:
    """Scripts rely on the exit codes, so the test repeats them."""
    assert kind("what").exit_code == code


@pytest.mark.parametrize("word", ["pids", "PID", "Pid"])
def test_an_unknown_word_suggests_the_nearest(word: str) -> None:
    """A typo, or a wrong case, is answered with the intended word."""
    error = unknown_word("field", word, ["pid", "process", "state"])
    assert error.what == f"unknown field {word!r}"
    assert error.remedy.startswith("did you mean pid")


def test_options_are_not_alike_for_their_dashes() -> None:
    """Two dashes in both are no likeness, however short the words are."""
    error = unknown_word("option", "--vieww", ["--view", "--times", "--service", "-t"])
    assert error.remedy == "did you mean --view?"


def test_a_word_like_no_other_gets_the_whole_list() -> None:
    """If no known word is similar, the error lists all in order."""
    assert unknown_word("field", "zzz", ["state", "pid"]).remedy == "choose from: pid, state"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_are_no_bug(number: int) -> None:
    """A lack of descriptors is reported with the remedy; any other unexpected error is a bug to report."""
    failure = failure_of("drops", OSError(number, f"bpf(2) command 33: {os.strerror(number)}"))
    assert failure.what.startswith(f"the drops source failed: {os.strerror(number).lower()}: ")
    assert ("RLIMIT_NOFILE", "fs.file-max")[number == errno.ENFILE] in failure.what
    assert ("ulimit -n", "fs.file-max")[number == errno.ENFILE] in failure.remedy
    bug = failure_of("drops", OSError(errno.EINVAL, "bpf(2) command 33"))
    assert "command 33" in bug.what
    assert bug.remedy == "please report this as a bug"
