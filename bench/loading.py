# SPDX-License-Identifier: Apache-2.0
"""Measure how long the programs of each lens take to compile, and to load from the cache: `sudo make bench-loading`.

Nearly all of the time of a load is the verifier's; its work is also printed in instructions, which do not depend on the
machine. Texts that this kernel refuses are named.
"""

import ctypes
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from measure import Figure, arguments, judge

from nettop.errors import Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import program_cache
from nettop.kernel.bpf.program import Loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.probes.precompile import texts
from nettop.snapshots import own_lenses

LOAD_MS = 150
VERIFIED_AT = 216
"""Offset of verified_insns in struct bpf_prog_info (since 5.16)."""


def load(text: ProgramText) -> tuple[float, int]:
    """Load a text; return the milliseconds it took, and the instructions that the verifier processed."""
    begin = time.perf_counter()
    program = Loader().load(text)
    taken = (time.perf_counter() - begin) * 1e3
    verified = sum(map(verified_instructions, program.functions.values()))
    program.close()
    return taken, verified


def verified_instructions(program: int) -> int:
    """Return the instructions that the verifier processed for a program."""
    info = ctypes.create_string_buffer(VERIFIED_AT + 8)
    bpf.call("bpf_obj_get_info_by_fd", program, info, ctypes.byref(ctypes.c_uint32(len(info))))
    number: int = struct.unpack_from("=I", info.raw, VERIFIED_AT)[0]
    return number


def measure(lens: str, runs: int) -> Iterator[Figure]:
    """Compile each text of a lens once, then load it from the cache."""
    names = Counter[str]()
    for text in (text for owner, text in texts() if owner == lens):
        name = Path(text.sources[-1]).name.partition(".")[0]
        names[name] += 1
        name += " of a command" if names[name] > 1 else ""
        try:
            compiled, _ = load(text)
        except Unsupported as refusal:
            print(f"{lens}: {name}: {refusal}", file=sys.stderr)
            continue
        loads = [load(text) for _ in range(runs)]
        yield Figure(f"{name}, compiled and loaded", compiled, "ms")
        yield Figure(f"{name}, loaded from the cache, least of {runs}", min(loads)[0], "ms", LOAD_MS)
        yield Figure(f"{name}, verified", loads[0][1], "insns")


def main() -> int:
    """Measure all lenses, or the named ones."""
    lenses = [lens.id for lens in own_lenses() if lens.id != "flows"]
    options = arguments(__doc__, lenses, runs=(5, "loads from the cache"))
    with tempfile.TemporaryDirectory() as directory:
        program_cache.DIRECTORY = Path(directory, "cache")
        return judge((lens, measure(lens, options.runs)) for lens in options.parts)


if __name__ == "__main__":
    sys.exit(main())
