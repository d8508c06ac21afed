# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed at any moment, no program, link, map or process of nettop is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess

import pytest

from nettop.kernel.bpf import program_cache
from nettop.snapshots import lenses

from .command import JSON, Running, living
from .lab import until

pytestmark = pytest.mark.kernel

MOMENTS = 10
STARTING_S, RUNNING_S = 1.0, 3.0
"""Half of the moments are in the first second, the others in the first three."""

FRONTENDS = (
    (*JSON, "--all", "--interval", "0.1"),
    (*JSON, "--view", "connections.events", "--interval", "0.1"),
    (*JSON, "--view", "drops", "--interval", "0.1"),
    ("log", "--log-dir", "none", "--interval", "0.1"),
    ("serve", "--listen", "127.0.0.1:0", "--interval", "0.1"),
)


def descendants(pid: int) -> list[int]:
    """Return all descendants of the process, and the process itself last."""
    children = [child for child, parent, _ in living() if parent == pid]
    return [*(pid for child in children for pid in descendants(child)), pid]


def kill(pid: int) -> None:
    """Kill the process if it still runs."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("seed", range(MOMENTS))
def test_killed_at_a_random_moment(left_clean: None, seed: int) -> None:
    """Killing the parent alone or all processes, during start or later, leaves nothing, in every frontend."""
    chance = random.Random(seed)
    moment = chance.uniform(0, STARTING_S if seed % 2 else RUNNING_S)
    with Running(*FRONTENDS[seed % len(FRONTENDS)]) as running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(moment)
        everyone = descendants(running.pid)
        for victim in chance.choice((everyone[::-1], everyone[-1:])):  # the parent before it can take note
            kill(victim)
        assert running.wait() == -signal.SIGKILL
        until(
            lambda: not {pid for pid, _, _ in living()} & set(everyone), "every process of nettop has ended"
        )
        assert "Traceback" not in running.errors()


@pytest.mark.parametrize("seed", range(3))
def test_a_compiler_killed_at_a_random_moment(nothing_cached: None, left_clean: None, seed: int) -> None:
    """Without the compiler nettop ends with an error message, or goes on without what was not loaded yet."""
    with Running(*FRONTENDS[seed % len(FRONTENDS)]) as running:
        child = until(running.compilers, "a child begins")[0]
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.process.wait(random.Random(seed).uniform(0, 0.5))
        kill(child)
        until(lambda: child not in running.compilers(), "nettop takes note of the child's end")
        running.end()
        until(running.gone, "every process of nettop has ended")
        assert "Traceback" not in running.errors()


@pytest.mark.parametrize("compilers", [1, 3])
@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--listen", "127.0.0.1:0"),
        ("log", "--log-dir", "none", *(word for lens in lenses() for word in ("--lens", lens.id))),
        ("--table", "--view", "connections.events"),
    ],
    ids=lambda words: words[0],
)
def test_an_end_while_programs_are_compiled(
    nothing_cached: None, left_clean: None, words: tuple[str, ...], compilers: int
) -> None:
    """While any lens loads, SIGTERM ends the compiler and drops the queue: nettop exits without the other programs."""
    seen: set[int] = set()

    def is_reached() -> bool:
        seen.update(running.compilers())
        return len(seen) >= compilers or bool(running.text())

    with Running(*words) as running:
        until(is_reached, f"{compilers} compilers have started")
        assert running.end() == 0
        assert not program_cache.is_complete()
        until(running.gone, "every process of nettop has ended")
        assert "Traceback" not in running.errors()
