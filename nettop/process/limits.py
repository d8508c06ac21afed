# SPDX-License-Identifier: Apache-2.0
"""Limits of this process and of its control groups: descriptions and remedies, and raising those that may be raised."""

from __future__ import annotations

import ctypes
import math
import os
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path, PurePosixPath
from typing import NamedTuple

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Options of mallopt(3), from glibc's malloc.h. Other C libraries have none."""
_LARGE = 128 << 10
"""Bytes of an array from which its memory is returned: glibc's initial thresholds."""
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
_NO_LIMIT = 1 << 60
"""Larger values mean no limit in the memory controller of cgroup v1."""
_VMSTAT, _MEMINFO, _STATM = Path("/proc/vmstat"), Path("/proc/meminfo"), Path("/proc/self/statm")
_GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""A control group's limit and use of memory, and the name of the part that it can drop: of version 2, then of 1."""


class ProcessLimit(NamedTuple):
    """A limit in words, and how to raise it."""

    what: str
    remedy: str


ALL_THREADS = ProcessLimit(
    "the host has as many as its kernel allows (kernel.threads-max, kernel.pid_max)", ""
)
ALL_MEMORY = ProcessLimit("the host has too little memory", "free about 300 MB, which loading takes")
"""The cause if neither this process nor its control groups have a limit."""


def set_up_process() -> None:
    """Adjust process limits for every command. Call it before other threads start.

    Raise the soft limit of open files to the hard one, as the usual 1,024 is meant for programs that use select(2).
    Make all threads allocate from one arena, as each further one would hold some megabytes: nettop's threads rarely
    allocate at the same time. Return large arrays to the kernel when they are freed: glibc raises its thresholds to the
    size of each freed array, up to 32 MiB, and then keeps a third of the memory of 10,000 sockets in holes.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # keep the limit if it cannot be raised
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _LARGE)


def open_files() -> int | None:
    """Return how many files this process may have open after its soft limit is raised; None without a limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if hard == resource.RLIM_INFINITY else hard


def of_files() -> ProcessLimit:
    """Return the limit of open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessLimit(
        f"a process may have {files:,} files open here (RLIMIT_NOFILE)",
        "raise the limit: ulimit -n 65536 (in a systemd unit: LimitNOFILE=65536)",
    )


def of_address_space(below: float = math.inf) -> list[ProcessLimit]:
    """Return the limits of this process's mappings, including thread stacks, that are `below` so many bytes."""
    limits = []
    for number, name, kind, letter, setting in (
        (resource.RLIMIT_AS, "RLIMIT_AS", "address space", "v", "LimitAS"),
        (resource.RLIMIT_DATA, "RLIMIT_DATA", "data", "d", "LimitDATA"),
    ):
        size, _ = resource.getrlimit(number)
        if size != resource.RLIM_INFINITY and size < below:
            what = f"a process may have {size:,} bytes of {kind} here ({name})"
            remedy = f"raise the limit: ulimit -{letter} unlimited (in a systemd unit: {setting}=infinity)"
            limits.append(ProcessLimit(what, remedy))
    return limits


def memory_limits(below: float = math.inf) -> list[ProcessLimit]:
    """Return the memory limits of this process, then of its control groups, that are `below` so many bytes."""
    files = "memory.max", "memory.limit_in_bytes"
    remedy = (
        "raise the limit (docker run --memory; in a systemd unit: MemoryMax=): loading takes about 300 MB"
    )
    return of_address_space(below) + [
        ProcessLimit(f"nettop's control group may use {size:,} bytes of memory ({file})", remedy)
        for size, file in _smallest("memory", files, below)
    ]


def process_limits(below: float = math.inf) -> list[ProcessLimit]:
    """Return the limits of processes and threads that are `below` this number, of this process's control groups and of
    its user (not of root, to whom they do not apply).
    """
    limits = []
    count, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if count != resource.RLIM_INFINITY and count < below and os.getuid():
        what = f"a user may have {count:,} processes and threads here (RLIMIT_NPROC)"
        remedy = "raise the limit: ulimit -u unlimited (in a systemd unit: LimitNPROC=infinity)"
        limits.append(ProcessLimit(what, remedy))
    for count, file in _smallest("pids", ("pids.max",), below):
        # pids.events counts how often the kernel refused a process; if it never did, the other limit is the cause.
        if _text_of(file.with_name("pids.events")).partition(" ")[2] not in ("", "0"):
            limits.clear()
        what = f"nettop's control group may have {count:,} processes and threads ({file})"
        remedy = "raise the limit (docker run --pids-limit; in a systemd unit: TasksMax=)"
        limits.insert(0, ProcessLimit(what, remedy))
    return limits


def resident_memory() -> int:
    """Return how many bytes of memory this process takes."""
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def available_memory() -> int:
    """Return how many bytes the host and this process's control groups can still give, caches that they can drop
    included."""
    left = [(_number_of("MemAvailable:", _MEMINFO) or 0) << 10]
    for folder, (most, used, cache) in product(_groups("memory"), _GROUP_FILES):
        limit, usage = _text_of(folder / most), _text_of(folder / used)
        if limit.isdecimal() and usage.isdecimal():
            left.append(int(limit) - int(usage) + (_number_of(cache, folder / "memory.stat") or 0))
    return max(0, min(left))


def _number_of(name: str, file: Path) -> int | None:
    """Return the number after this name in a file; None without one."""
    number = re.search(rf"^{name} +(\d+)", _text_of(file), re.MULTILINE)
    return int(number[1]) if number else None


def out_of_memory_kills() -> int | None:
    """Return how many processes the OOM killer has killed; None if /proc does not report it."""
    return _number_of("oom_kill", _VMSTAT)


def _smallest(controller: str, names: tuple[str, ...], below: float) -> list[tuple[int, Path]]:
    """Return the smallest number in files with these names in this process's control groups, and its file; an empty
    list unless it is `below` this number."""
    files = (folder / name for folder in _groups(controller) for name in names)
    numbers = [(int(text), file) for file in files if (text := _text_of(file)).isdecimal()]
    return sorted(found for found in numbers if found[0] < min(below, _NO_LIMIT))[:1]


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups. In a container its path may not exist, and the top is its own
    group.
    """
    for line in _text_of(_OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = _CGROUPS / controllers if controllers else _CGROUPS
        group = PurePosixPath(path)
        for place in (group, *group.parents):
            yield top / place.relative_to("/")


def _text_of(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
