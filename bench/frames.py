# SPDX-License-Identifier: Apache-2.0
"""The screens over rows that change: frames and keys. Only the kernel is simulated."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from harness import OURS, Sample, Scale, Target, Turns, benchmark
from programs import Screens

WARM_UP = 3
"""Frames that also draw what is around the table."""
QUIET_S = 0.2
"""A frame has ended when no output came for this long; the next is due after 0.7 s."""
KEYS = (b"j", b"s", b"S", b"k")
"""Down, the next column to sort by, the other order, up."""


@contextlib.contextmanager
def changing_screen(
    rows: int, sort: str = "-bytes_sent_per_s", nth: int = 1
) -> Iterator[tuple[Screens, int]]:
    """Yield the screens, all of whose rows are new at each refresh, and a pipe with the publication times.

    A publication time is taken just before the snapshot goes to the bus, by the clock of time.perf_counter (ns, 8
    bytes).
    """
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    script = str(Path(__file__).with_name("changing_screen.py"))
    tree = f"PYTHONPATH={os.environ.get('NETTOP_TREE', '')}"
    run_it = (
        "env",
        "COLORTERM=truecolor",
        tree,
        sys.executable,
        script,
        str(rows),
        str(writer),
        sort,
        str(nth),
    )
    with Screens(around=run_it) as screens:
        os.close(writer)
        for _ in range(WARM_UP):
            next_frame(screens, reader)
        yield screens, reader
    os.close(reader)


def next_frame(screens: Screens, publications: int) -> tuple[float, float] | None:
    """Return the milliseconds from the next publication to the last byte written, and the kB; None without output."""
    published, before = int.from_bytes(os.read(publications, 8), sys.byteorder), len(screens.output)
    last = screens.last_byte(QUIET_S)
    return None if last is None else ((last * 1e9 - published) / 1e6, (len(screens.output) - before) / 1e3)


@benchmark(
    "frame", "A frame, all rows changing", {"time": "ms", "output": "kB"}, over="rows", sizes=(5_000, 50_000), rounds=1,
    has_reference=True, targets=(Target(16, "time", 5_000), Target(40, "time", 50_000)),
)  # fmt: skip
def frame(scale: Scale) -> Iterator[Turns]:
    """From the publication of a reading to the last byte on a terminal of 120 × 40, sorted by a rate."""
    with changing_screen(scale.size) as (screens, publications):

        def turn() -> Sample:
            frames = [next_frame(screens, publications) for _ in range(scale.pick(21, 3))]
            drawn = [shown for shown in frames if shown]
            return {"time": [ms for ms, _ in drawn], "output": [kilobytes for _, kilobytes in drawn]}

        yield {OURS: turn}


@benchmark(
    "key", "A key, all rows changing", "ms", over="rows", sizes=(5_000, 50_000), rounds=1, has_reference=True,
)  # fmt: skip
def key(scale: Scale) -> Iterator[Turns]:
    """From a key (down, up, sort by another column, reverse) to the last byte of what it changes."""
    with changing_screen(scale.size) as (screens, publications):

        def press(number: int) -> list[float]:
            next_frame(screens, publications)
            pressed = time.perf_counter()
            screens.type(KEYS[number % len(KEYS)])
            last = screens.last_byte(QUIET_S)
            return [(last - pressed) * 1e3] if last else []

        count = scale.pick(20, 2)
        yield {OURS: lambda: [ms for number in range(count) for ms in press(number)]}
