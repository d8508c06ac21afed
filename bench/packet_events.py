# SPDX-License-Identifier: Apache-2.0
"""The baseline of latency.py: an event per packet, decoded in Python as bcc's tools do."""

import contextlib
import ctypes
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from programs import cpu_ns

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.program import Program, ProgramText

TRACING = 26
"""BPF_PROG_TYPE_TRACING."""


class Hooked:
    """Functions of a loaded program, attached in this order."""

    def __init__(self, program: Program, names: Sequence[str]) -> None:
        self.program = program
        self._names = names

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Attach the functions inside the `with` block."""
        links = self._links()
        try:
            yield
        finally:
            for link in links:
                os.close(link)

    def _links(self) -> list[int]:
        return [bpf.attach_tracing(self.program.functions[name]) for name in self._names]


def empty_text(names: Sequence[str]) -> ProgramText:
    """Return programs for these hooks that do nothing."""
    functions = dict.fromkeys(name.partition("@")[0] for name in names)
    header = "".join(f"int {function}(u64 *ctx) {{ return 0; }}\n" for function in functions)
    return ProgramText((), header, (), dict.fromkeys(names, TRACING))


def events_text() -> ProgramText:
    """Return the program of Events."""
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
        self._cpu_ns = self._on_ns = 0

    @property
    def own_cpu(self) -> float:
        """Percent of a CPU that the decoding process used while events arrived."""
        return 100 * self._cpu_ns / max(self._on_ns, 1)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Send events inside the `with` block."""
        pid = self._process.pid or 0
        started_ns, spent_ns = time.monotonic_ns(), cpu_ns(pid)
        with super().attached():
            yield
        self._cpu_ns += cpu_ns(pid) - spent_ns
        self._on_ns += time.monotonic_ns() - started_ns

    def close(self) -> None:
        """Kill the decoding process."""
        self._process.kill()
        self._process.join()


def decode_events(descriptor: int) -> None:
    """Main of the decoding process: run bcc's loop over a ring and record the time since each pair's last packet."""
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
