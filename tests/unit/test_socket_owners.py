# SPDX-License-Identifier: Apache-2.0
"""Owners of sockets, read from a /proc made by the test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nettop.kernel.net import socket_owners
from nettop.kernel.net.socket_owners import find_owners

TICK_NS = 10_000_000
KERNEL_THREAD = 0x00200000


def process(
    proc: Path, pid: int, links: dict[int, str], *, comm: str = "web", start: int = 100, flags: int = 0
) -> Path:
    """Return a process that has these descriptors open."""
    folder = proc / str(pid)
    for name in ("fd", "ns", "task"):
        (folder / name).mkdir(parents=True)
    (folder / "ns/net").touch()
    behind = ["S", "1", *["0"] * 4, str(flags), *["0"] * 12, str(start), "0"]
    (folder / "stat").write_text(f"{pid} ({comm}) {' '.join(behind)}\n")
    open_all(folder, links)
    return folder


def open_all(folder: Path, links: dict[int, str]) -> None:
    """Put links into a process's or a thread's table of descriptors."""
    (folder / "fd").mkdir(parents=True, exist_ok=True)
    for fd, target in links.items():
        (folder / "fd" / str(fd)).symlink_to(target)


def descriptors(proc: Path) -> list[tuple[int, int, int]]:
    """Return PID, descriptor, inode of each socket's descriptor."""
    owners = find_owners(proc)
    pids = owners.processes["pid"][owners.process]
    return list(zip(pids.tolist(), owners.fd.tolist(), owners.inode.tolist(), strict=True))


def test_sockets_among_other_descriptors(tmp_path: Path) -> None:
    """Sockets are listed, files and pipes are not; one descriptor may come twice, in one process or in two."""
    assert (descriptors(tmp_path), find_owners(tmp_path).namespaces()) == ([], frozenset())
    process(tmp_path, 7, {0: "/dev/null", 3: "socket:[4294967295]", 4: "pipe:[5]", 9: "socket:[4294967295]"})
    process(tmp_path, 12, {3: "socket:[4294967295]", 5: "socket:[77]"})
    process(tmp_path, 13, {3: "/tmp/socket:[99]"})
    (tmp_path / "net").mkdir()
    assert descriptors(tmp_path) == [
        (7, 3, 4294967295), (7, 9, 4294967295), (12, 3, 4294967295), (12, 5, 77),
    ]  # fmt: skip
    assert find_owners(tmp_path).processes["pid"].tolist() == [7, 12]


@pytest.mark.parametrize("comm", ["web", "(x) S 1 (", "", "sixteen letters!"])
def test_names_with_anything_in_them(tmp_path: Path, comm: str) -> None:
    """A name may contain brackets and spaces; the fields after it are read all the same."""
    process(tmp_path, 7, {3: "socket:[1]"}, comm=comm, start=1234)
    (owners,) = find_owners(tmp_path).processes
    assert (owners["comm"], int(owners["start_time"]) // TICK_NS) == (comm.encode(), 1234)


def test_processes_started_in_one_tick(tmp_path: Path) -> None:
    """PIDs order what began within one clock tick, and never reach into the next."""
    process(tmp_path, 4194304, {3: "socket:[1]"}, start=100)
    process(tmp_path, 9, {3: "socket:[1]"}, start=100)
    process(tmp_path, 8, {3: "socket:[1]"}, start=101)
    starts = {int(row["pid"]): int(row["start_time"]) for row in find_owners(tmp_path).processes}
    assert starts[9] < starts[4194304] < starts[8]


def test_process_in_no_namespace_to_be_seen(tmp_path: Path) -> None:
    """A namespace that is unknown is left out."""
    for pid in (7, 8):
        process(tmp_path, pid, {3: "socket:[5]"})
    (tmp_path / "7/ns/net").unlink()
    owners = find_owners(tmp_path)
    assert owners.namespaces() == {os.stat(tmp_path / "8/ns/net").st_ino}
    assert len(owners.inode) == 2


def test_processes_that_end_while_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that is closed, and a process that ends, are skipped silently."""
    process(tmp_path, 7, {3: "socket:[5]", 4: "socket:[6]"})
    process(tmp_path, 8, {3: "socket:[5]"})
    (tmp_path / "8/stat").unlink()
    (tmp_path / "9").mkdir()
    read = os.readlink

    def readlink(name: str, *, dir_fd: int) -> str:
        if name == "4":
            raise FileNotFoundError
        return read(name, dir_fd=dir_fd)

    monkeypatch.setattr(socket_owners.os, "readlink", readlink)
    assert descriptors(tmp_path) == [(7, 3, 5)]
    assert find_owners(tmp_path).hidden == 0


def test_invisible_processes_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other users' processes are counted; the kernel's own threads, which hold nothing, are not."""
    process(tmp_path, 2, {3: "/"}, flags=KERNEL_THREAD)
    for pid in (7, 8):
        process(tmp_path, pid, {3: "socket:[5]"})
    process(tmp_path, 9, {})

    def refuse(name: str, *, dir_fd: int) -> str:
        raise PermissionError

    monkeypatch.setattr(socket_owners.os, "readlink", refuse)
    owners = find_owners(tmp_path)
    assert (len(owners.inode), owners.hidden) == (0, 2)
