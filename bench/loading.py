# SPDX-License-Identifier: Apache-2.0
"""How long the programs of each lens take to compile, and to load from the cache."""

import contextlib
import ctypes
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Sample, Scale, Target, Turns, benchmark

from nettop.errors import Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.program import Loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.precompile import texts
from nettop.snapshots import own_lenses

VERIFIED_AT = 216
"""Offset of verified_insns in struct bpf_prog_info (since 5.16)."""


def load(text: ProgramText) -> tuple[float, int, float]:
    """Load a text; return the milliseconds, the instructions that the verifier processed, and the MB of the maps."""
    begin = time.perf_counter()
    program = Loader().load(text)
    taken = (time.perf_counter() - begin) * 1e3
    verified = sum(map(verified_instructions, program.functions.values()))
    infos = [Path(f"/proc/self/fdinfo/{descriptor}").read_text() for descriptor in program.maps.values()]
    kernel_bytes = sum(int(info.partition("memlock:")[2].split()[0]) for info in infos)
    program.close()
    return taken, verified, kernel_bytes / 1e6


def verified_instructions(program: int) -> int:
    """Return the instructions that the verifier processed for a program."""
    info = ctypes.create_string_buffer(VERIFIED_AT + 8)
    bpf.call("bpf_obj_get_info_by_fd", program, info, ctypes.byref(ctypes.c_uint32(len(info))))
    number: int = struct.unpack_from("=I", info.raw, VERIFIED_AT)[0]
    return number


LENSES = [lens.id for lens in own_lenses() if lens.id not in ("collector", "findings", "self")]


@benchmark(
    "loading", "Loading the programs of a lens",
    {"from the cache": "ms", "verified": "instructions", "kernel memory": "MB"}, rounds=3,
    targets=tuple(Target(150, "from the cache", subject=lens) for lens in LENSES),
)  # fmt: skip
def loading(scale: Scale) -> Iterator[Turns]:
    """The largest program text of each lens, and the kernel memory of all its tables. Nearly all of the time is the
    verifier's, whose work is also in instructions, which do not depend on the machine.
    """

    def turn(lens: str) -> Sample:
        loads = []
        for text in (text for owner, text in texts() if owner == lens):
            with contextlib.suppress(Unsupported):  # this kernel refuses it; nettop uses another
                loads.append(load(text))
        milliseconds, verified, memory = zip(*loads, strict=True)
        return {"from the cache": max(milliseconds), "verified": max(verified), "kernel memory": sum(memory)}

    turns = {lens: lambda lens=lens: turn(lens) for lens in scale.pick(LENSES, ["drops"])}
    for compile_missing in turns.values():
        compile_missing()
    yield turns
