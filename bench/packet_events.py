# SPDX-License-Identifier: Apache-2.0
"""What latency.py compares the lens with: an event for each packet, decoded in Python as bcc's tools do."""

import ctypes
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

from cpu_cost import CPUCLOCK_SCHED

from nettop.kernel import bpf
from nettop.kernel.btf import Slice
from nettop.kernel.program import Program, ProgramText

TRACING = 26
"""BPF_PROG_TYPE_TRACING."""


class Hooked:
    """Functions of a loaded program, which are attached in their order."""

    def __init__(self, program: Program, names: Sequence[str]) -> None:
        self.program = program
        self._names = names
        self._links: list[int] = []

    def on(self) -> None:
        """Attach them."""
        self._links = [bpf.attach_tracing(self.program.functions[name]) for name in self._names]

    def off(self) -> None:
        """Detach them."""
        while self._links:
            os.close(self._links.pop())


def events_text() -> ProgramText:
    """The program of Events."""
    source = str(Path(__file__).with_name("packet_events.bpf.c"))
    packet = Slice("sk_buff", {name: name for name in ("data", "len")}, {})
    functions = {"tp_btf__netif_receive_skb": TRACING}
    return ProgramText((source,), "#include <linux/types.h>\n", (packet,), functions, ("events",))


class Event(ctypes.Structure):
    """struct event of packet_events.bpf.c."""

    _fields_ = (
        ("time", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("source", "destination", "bytes")),
    )


class Events(Hooked):
    """A program that sends an event for each packet, and a process that decodes them as bcc's tools do."""

    def __init__(self, program: Program) -> None:
        super().__init__(program, list(program.functions))
        self._process = multiprocessing.Process(
            target=decode_events, args=(program.maps["events"],), daemon=True
        )
        self._process.start()
        self._begun_ns = self._cpu_ns = self._on_ns = 0

    @property
    def own_cpu(self) -> float:
        """Percent of a CPU that the process took while events came."""
        return 100 * self._cpu_ns / max(self._on_ns, 1)

    def on(self) -> None:
        """Send events."""
        self._begun_ns = time.monotonic_ns()
        self._cpu_ns -= self._process_ns()
        super().on()

    def off(self) -> None:
        """Send none."""
        super().off()
        self._cpu_ns += self._process_ns()
        self._on_ns += time.monotonic_ns() - self._begun_ns

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()

    def _process_ns(self) -> int:
        return time.clock_gettime_ns(~(self._process.pid or 0) << 3 | CPUCLOCK_SCHED)


def decode_events(descriptor: int) -> None:
    """The main function of that process: bcc's loop over a ring. It keeps the time since each pair's last packet."""
    from bcc.libbcc import _RINGBUF_CB_TYPE, lib

    last: dict[tuple[int, int], int] = {}
    durations: dict[tuple[int, int], int] = {}

    def decode(_context: int, data: int, _size: int) -> int:
        event = ctypes.cast(data, ctypes.POINTER(Event)).contents
        pair = event.source, event.destination
        durations[pair] = event.time - last.get(pair, event.time)
        last[pair] = event.time
        return 0

    called = _RINGBUF_CB_TYPE(decode)
    ring = lib.bpf_new_ringbuf(descriptor, called, None)
    while True:
        lib.bpf_poll_ringbuf(ring, -1)
