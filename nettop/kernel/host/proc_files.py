# SPDX-License-Identifier: Apache-2.0
"""Files of /proc and /sys below a root that tests may replace: their text, mounts that may hide them, CPU times."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from nettop.errors import Unsupported, limit_reached

_MOUNT = re.compile(r"^\d+ \d+ \S+ (\S+) (\S+) .* - (\S+) \S+ (\S+)$", re.MULTILINE)
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""An escaped character, such as a space, in a mount (proc_pid_mountinfo(5))."""

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""Unit of times in /proc, in ns."""
_CLOCK_MONOTONIC_COARSE = 6


class Mount(NamedTuple):
    """A mount: the part of the file system (`source`, such as `/`), the mount point, the file system's type and
    options."""

    source: str
    point: str
    kind: str
    options: str


def mounts(proc: Path) -> list[Mount]:
    """Return all mounts that this /proc shows, in the order in which they were mounted.

    Text that is not UTF-8 is surrogate-escaped.
    """
    try:
        text = (proc / "self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        return []
    return [
        Mount(*(_ESCAPED.sub(lambda octal: chr(int(octal[1], 8)), word) for word in line))
        for line in _MOUNT.findall(text)
    ]


def mount_of(path: str, root: Path = Path("/")) -> Mount | None:
    """Return the mount at the longest mount point that contains a path; of several there, the last. None if unknown."""
    around = [mount for mount in mounts(root / "proc") if Path(path).is_relative_to(mount.point)]
    deepest = max((len(mount.point) for mount in around), default=0)
    return next((mount for mount in reversed(around) if len(mount.point) == deepest), None)


def what_hides(path: str, root: Path = Path("/")) -> tuple[str, str]:
    """Return why a file of /proc or /sys is hidden, such as ‘/sys is not mounted’, and the remedy.

    Both are empty if nothing hides it, so the kernel lacks the file, or if the mounts are unknown.
    """
    top, kind = ("/proc", "proc") if path.startswith("/proc") else ("/sys", "sysfs")
    if not mounts(root / "proc"):
        return "", ""  # unknown
    mount = mount_of(path, root)
    if mount is None or not Path(mount.point).is_relative_to(top):
        return f"{top} is not mounted", f"mount -t {kind} {kind} {top}"
    if mount.kind != kind:
        where = f"the {mount.kind} mounted at {mount.point}"
        return (
            f"{where} hides it",
            f"umount {mount.point}; in a container, unmask it (docker: systempaths=unconfined)",
        )
    if kind == "proc" and proc_options(root / "proc").get("subset") == "pid":
        return (
            "/proc is mounted with subset=pid",
            "mount -t proc proc /proc (in a systemd unit: ProcSubset=all)",
        )
    return "", ""


def proc_options(proc: Path = Path("/proc")) -> dict[str, str]:
    """Return the mount options of /proc; if it is mounted several times, those of the visible, last mount."""
    mounted = [mount.options for mount in mounts(proc) if (mount.point, mount.kind) == ("/proc", "proc")]
    words = mounted[-1].split(",") if mounted else []
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def read_required(path: str, root: Path = Path("/"), size: int = -1) -> str:
    """Return the text of a file of /proc or /sys. Raise Unsupported with the reason if it cannot be read."""
    try:
        with (root / path.lstrip("/")).open(errors="replace") as file:
            text = file.read(size)
    except OSError as error:
        why, remedy = what_hides(path, root)
        what = f"{path} cannot be read"
        raise limit_reached(what, error) or Unsupported(
            f"{what}: {why or (error.strerror or str(error)).lower()}", remedy
        ) from error
    if not text:
        why, remedy = what_hides(path, root)
        raise Unsupported(f"{path} is empty{f': {why}' if why else ''}", remedy)
    return text


def read_text(path: Path) -> str:
    """Return the text of a file; empty if it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def stat_words(proc: Path, pid: int) -> list[str]:
    """Return the words of /proc/PID/stat from the state on (proc_pid_stat(5)); none if the process is gone. The name
    before them may contain anything."""
    return read_text(proc / str(pid) / "stat").rpartition(")")[2].split()


def is_running(proc: Path, pid: int) -> bool:
    """Return whether any thread of a process runs. One that has exited stays in /proc until its parent waits for it
    (state Z), as does a main thread that ended before the others (proc_pid_stat(5): state, num_threads)."""
    words = stat_words(proc, pid)
    return bool(words) and (words[0] not in "XZ" or words[17] != "1")


def read_sockstat(proc: Path, *names: str) -> dict[str, int]:
    """Return the numbers in these files of the calling thread's namespace: `TCP: inuse 5 tw 2` gives `TCP inuse` and
    `TCP tw`."""
    numbers: dict[str, int] = {}
    for name in names:
        for line in read_text(proc / "thread-self/net" / name).splitlines():
            protocol, _, rest = line.partition(":")
            words = rest.split()
            numbers |= {f"{protocol} {key}": int(n) for key, n in zip(words[::2], words[1::2], strict=False)}
    return numbers


# --- CPU times ------------------------------------------------------------------------------------------------


class CpuTimes(NamedTuple):
    """A CPU's times since boot, in ns. `idle_ns` is the time in which nothing ran: idle, waiting for I/O, or stolen by
    the hypervisor."""

    softirq_ns: int
    idle_ns: int


def read_cpu_times(proc: Path) -> dict[int, CpuTimes]:
    """Read the times of online CPUs by number; empty if the file cannot be read."""
    times: dict[int, CpuTimes] = {}
    for line in read_text(proc / "stat").splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            _, _, _, idle, iowait, _, softirq, steal, *_ = (int(ticks) * TICK_NS for ticks in numbers)
            times[int(name.removeprefix("cpu"))] = CpuTimes(softirq, idle + iowait + steal)
    return times


def jiffy_us() -> int:
    """Return the microseconds in a jiffy, 1,000,000 / CONFIG_HZ: the resolution of coarse clocks
    (kernel/time/posix-timers.c)."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)
