# SPDX-License-Identifier: Apache-2.0
"""Limits of a process and its control groups, and the one named as a cause."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from nettop.errors import (
    SourceFailed,
    TooManyFiles,
    Unsupported,
    failure_of,
    limit_reached,
    unknown_word,
)
from nettop.process import limits
from tests.unit.children import ran

UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the mount points of control groups in each hierarchy, for an otherwise unlimited process in /pod/app."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: UNLIMITED)
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "_OWN_GROUPS", tmp_path / "own")
    put(tmp_path / "own", "9:pids:/pod/app\n4:memory:/pod/app\n1:cpu,cpuacct:/\n0::/pod/app\n")
    return tmp_path


def put(file: Path, text: str) -> None:
    """Write a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.mark.parametrize(
    "files",
    [
        {"pod/memory.max": "104857600", "pod/app/memory.max": "209715200"},
        {"memory/pod/app/memory.limit_in_bytes": "104857600"},
        {"memory/memory.limit_in_bytes": "104857600"},
    ],
    ids=("smallest", "old hierarchy", "inside of a container"),
)
def test_the_memory_of_control_groups(groups: Path, files: dict[str, str]) -> None:
    """The smallest applicable limit is named, with its file."""
    for name, number in files.items():
        put(groups / name, f"{number}\n")
    (limit,) = limits.memory_limits()
    assert "may use 104,857,600 bytes of memory" in limit.what
    assert "MemoryMax=" in limit.remedy
    error = limit_reached("the compiler exited", "LLVM ERROR: out of memory")
    assert isinstance(error, Unsupported)
    assert (limit.what in error.what, error.remedy) == (True, limit.remedy)


@pytest.mark.parametrize("text", ["max", "9223372036854771712", ""])
def test_groups_without_a_limit(groups: Path, text: str) -> None:
    """Only actual limits are named."""
    put(groups / "pod/app/memory.max", text)
    put(groups / "memory/pod/app/memory.limit_in_bytes", text)
    put(groups / "pod/app/pids.max", "max")
    assert (limits.memory_limits(), limits.process_limits()) == ([], [])
    assert limit_reached("the compiler exited", "out of memory") is None


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 800 << 10),
        (
            {
                "pod/memory.max": "500000",
                "pod/memory.current": "300000",
                "pod/memory.stat": "anon 9\ninactive_file 70000",
            },
            270_000,
        ),
        (
            {
                "memory/pod/app/memory.limit_in_bytes": "500000",
                "memory/pod/app/memory.usage_in_bytes": "450000",
                "memory/pod/app/memory.stat": "inactive_file 1\ntotal_inactive_file 50000",
            },
            100_000,
        ),
        ({"pod/app/memory.max": "500000", "pod/app/memory.current": "600000"}, 0),
    ],
    ids=("host", "above with a cache", "old hierarchy", "exceeded"),
)
def test_available_memory(
    groups: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], left: int
) -> None:
    """The host or a control group has the least left, counting the caches that it can drop."""
    put(groups / "meminfo", "MemTotal:  900 kB\nMemAvailable:    800 kB\n")
    monkeypatch.setattr(limits, "_MEMINFO", groups / "meminfo")
    for name, text in files.items():
        put(groups / name, f"{text}\n")
    assert limits.available_memory() == left
    assert limits.resident_memory() > 1 << 20


@pytest.mark.parametrize(
    "error",
    [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))],
    ids=("thread", "process"),
)
@pytest.mark.parametrize("refusals", [0, 3])
def test_a_limit_of_processes_is_no_bug(
    groups: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, refusals: int
) -> None:
    """A lens that cannot start a thread names the group's limit if that refused some, else the user's."""
    of_user = resource.RLIMIT_NPROC
    monkeypatch.setattr(resource, "getrlimit", lambda number: (500, 500) if number == of_user else UNLIMITED)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    put(groups / "pod/app/pids.max", "100\n")
    put(groups / "pod/app/pids.events", f"max {refusals}\n")
    failure = failure_of("drops", error)
    assert "the drops source failed: no thread or process can be started" in failure.what
    assert f"may have 100 processes and threads ({groups}/pod/app/pids.max)" in failure.what
    assert ("RLIMIT_NPROC" in failure.what) == (not refusals)
    assert "TasksMax=" in failure.remedy
    assert "bug" not in failure.remedy


def test_the_limits_of_the_process(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of memory has its own limit, and both are named."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 28, 1 << 28))
    error = limit_reached("numpy cannot be imported", MemoryError())
    assert error is not None
    for word in ("268,435,456 bytes of address space", "RLIMIT_AS", "RLIMIT_DATA"):
        assert word in error.what


@pytest.mark.parametrize(
    ("word", "known", "remedy"),
    [
        ("pids", ["pid", "process", "state"], "did you mean pid"),
        ("PID", ["pid", "process", "state"], "did you mean pid"),
        ("--vieww", ["--view", "--times", "--service", "-t"], "did you mean --view?"),
        ("zzz", ["state", "pid"], "choose from: pid, state"),
    ],
)
def test_an_unknown_word_suggests_the_nearest(word: str, known: list[str], remedy: str) -> None:
    """A typo, or a wrong case, is answered with the intended word, dashes aside; without one, with all words."""
    error = unknown_word("field", word, known)
    assert error.what == f"unknown field {word!r}"
    assert error.remedy.startswith(remedy)


def test_open_files_by_words_and_by_number(groups: Path) -> None:
    """The cause is the same whether bcc describes the error or an exception has an errno."""
    written = "could not open bpf map: hook_check, error: Too many open files"
    for why in (
        written,
        Exception("Failed to load BPF program: Too many open files"),
        OSError(errno.EMFILE, "x"),
    ):
        error = limit_reached("cannot load the programs", why)
        assert isinstance(error, TooManyFiles)
        assert "RLIMIT_NOFILE" in error.what
    failure = failure_of("drops", OSError(errno.ENFILE, "bpf(2)"))
    assert failure.what.startswith("the drops source failed: too many open files in system: ")
    assert "fs.file-max" in failure.remedy


@pytest.mark.parametrize(
    "error", [RuntimeError("wrong"), OSError(errno.EINVAL, "Invalid argument"), KeyError("x")]
)
def test_a_failure_without_a_limit_is_a_bug(groups: Path, error: Exception) -> None:
    """No limit, however small, is blamed for unrelated errors."""
    put(groups / "pod/app/pids.max", "100")
    put(groups / "pod/app/memory.max", "100")
    failure = failure_of("drops", error)
    assert isinstance(failure, SourceFailed)
    assert failure.remedy == "please report this as a bug"


_RESIDENT_AFTER = """
import numpy as np
from nettop.process.limits import set_up_process

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

set_up_process()
large = np.ones(3 << 20, np.uint8)
del large  # glibc would take this size as its threshold from here on
begin = resident()
arrays, kept = [], []
for _ in range(200):
    arrays.append(np.ones(1 << 20, np.uint8))
    kept.append(np.ones(64 << 10, np.uint8))
arrays.clear()
print(resident() - begin)
"""


def test_freed_arrays_are_returned_to_the_kernel() -> None:
    """200 MB of arrays are returned even though smaller ones between them, 13 MB in all, are kept."""
    assert int(ran("-c", _RESIDENT_AFTER).stdout) < 26 << 20
