# SPDX-License-Identifier: Apache-2.0
"""A lens that is opened and left again and again leaves nothing behind in the process, nor in the kernel."""

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
    """What this process holds: of mappings those of kernel objects, such as ring buffers."""
    with open("/proc/self/maps") as mappings:
        of_objects = sum("anon_inode:" in line for line in mappings)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "mappings": of_objects,
        "BPF objects": len(bpf_objects.held(os.getpid())),
    }


def open_and_leave(lens: str) -> None:
    """Opens the lens, reads it, and leaves it."""
    source = probe_of(lens)
    try:
        source.start()
        source.read(time.monotonic_ns())
    finally:
        source.close()


@pytest.mark.parametrize("lens", [lens.id for lens in lenses()])
def test_nothing_grows(lens: str) -> None:
    """What the first openings leave, as a loader and its threads, is all: further ones add nothing."""
    for _ in range(AT_FIRST):
        open_and_leave(lens)
    before = held()
    for _ in range(AGAIN):
        open_and_leave(lens)
    try:
        until(lambda: all(now <= before[what] for what, now in held().items()), "nothing more is held", 10)
    except NotInTimeError:
        assert held() == before
