# SPDX-License-Identifier: Apache-2.0
"""Opening and closing a lens repeatedly leaves nothing behind in the process or the kernel."""

import os
import time

import pytest

from nettop.engine.source import probe_of
from nettop.snapshots import lenses

from . import bpf_objects
from .lab import NotInTimeError, until

pytestmark = pytest.mark.kernel

AT_FIRST, AGAIN = 1, 2

Held = dict[str, int]


def held() -> Held:
    """List this process's descriptors, threads, and mappings of kernel objects such as ring buffers."""
    with open("/proc/self/maps") as mappings:
        of_objects = sum("anon_inode:" in line for line in mappings)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mappings": of_objects,
        "BPF objects": len(bpf_objects.held(os.getpid())),
    }


def open_and_leave(lens: str) -> None:
    """Open the lens, read it, and close it."""
    source = probe_of(lens)
    try:
        source.start()
        source.read(time.monotonic_ns())
    finally:
        source.close()


@pytest.mark.parametrize("lens", [lens.id for lens in lenses()])
def test_nothing_grows(lens: str) -> None:
    """Only the first openings leave something, such as a loader and its threads; further ones add nothing."""
    for _ in range(AT_FIRST):
        open_and_leave(lens)
    before = held()
    for _ in range(AGAIN):
        open_and_leave(lens)
    try:
        until(lambda: all(now <= before[what] for what, now in held().items()), "nothing more is held", 10)
    except NotInTimeError:
        assert held() == before
