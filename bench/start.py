# SPDX-License-Identifier: Apache-2.0
"""Start: from the command to the first row, and from a lens's key to its table."""

import resource
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from harness import Sample, Scale, Target, Turn, Turns, benchmark
from programs import NETTOP, READY_WITHIN_S, Screens, cpu_ns, run
from sockets import own_namespace
from table import to_its_end

from nettop.snapshots import lenses

HEADS = {
    "cpu": b"full bar",
    "bandwidth": b"INTERFACE",
    "latency": b"STAGE",
    "drops": b"REASON",
    "services": b"SERVICE",
}
"""What each lens shows with its first reading, and no other one shows."""
QUIET_S = 0.3
UNITS = {"time": "s", "CPU": "s"}


def until_exit(*words: str) -> Turn:
    """Return a turn that runs a command until it exits, and measures the CPU time of all its processes."""

    def turn() -> Sample:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result: Any = to_its_end(words)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"time": result["time"], "CPU": sum(after[:2]) - sum(before[:2])}

    return turn


def until_row() -> Sample:
    """Measure the screens until they show the row of a listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Screens(
            "--all", "--columns", "local,state", "--numeric", "--filter", f"local_port={port}"
        ) as screens:
            took = screens.read_for(READY_WITHIN_S, f"127.0.0.1:{port}".encode())
            if took is None:
                raise SystemExit("the screens show no row of a listening socket")
            return {"time": took, "CPU": cpu_ns(screens.pid) / 1e9}


def until_lens(lens: str) -> Callable[[], Sample]:
    """Return a turn of the screens, from a lens's key until they show its table."""
    digit = next(known_lens.digit for known_lens in lenses() if known_lens.id == lens).encode()

    def turn() -> Sample:
        with Screens() as screens:
            screens.read_for(READY_WITHIN_S, b"PROCESS")
            screens.last_byte(QUIET_S)
            screens.output.clear()
            spent_ns, screens.started = cpu_ns(screens.pid), time.perf_counter()
            screens.type(digit)
            took = screens.read_for(READY_WITHIN_S, HEADS[lens])
            if took is None:
                raise SystemExit(f"the screens do not show {lens}")
            return {"time": took, "CPU": (cpu_ns(screens.pid) - spent_ns) / 1e9}

    return turn


@benchmark(
    "start", "Start", UNITS, rounds=5, has_reference=True,
    targets=tuple(Target(0.4, "time", subject=subject) for subject in ("screens", "text", "run -- true")),
)  # fmt: skip
def start(_: Scale) -> Iterator[Turns]:
    """From the command to the first row on the screens, or until text and `nettop run` exit, with programs compiled."""
    own_namespace()
    turns: Turns = {
        "screens": until_row,
        "text": until_exit(NETTOP, "--table", "--once"),
        "run -- true": until_exit(NETTOP, "run", "--", "true"),
    }
    for turn in turns.values():  # the first one compiles modules and programs
        turn()
    yield turns


@benchmark(
    "start_of_lens", "Start of a lens", UNITS, rounds=3,
    targets=tuple(Target(0.5, "time", subject=head) for head in HEADS),
)  # fmt: skip
def start_of_lens(scale: Scale) -> Iterator[Turns]:
    """From a lens's key on the screens until its table is shown, with programs compiled."""
    run(NETTOP, "compile")
    yield {lens: until_lens(lens) for lens in scale.pick(list(HEADS), ["services"])}
