# SPDX-License-Identifier: Apache-2.0
"""The child that compiles and loads: `python -m nettop.kernel.loader DESCRIPTOR`. The only importer of bcc.

It reads one ProgramText as JSON from the socket, answers with JSON and the descriptors, and exits.
"""

from __future__ import annotations

import array
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from nettop.errors import NettopError
from nettop.kernel.btf import Btf, Slice

_MAX_REQUEST_BYTES = 1 << 20


def main() -> None:
    """Serve the one request on the socket whose descriptor is the first argument."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    bcc = _try_to_import_bcc()  # takes a while, in which the request is being written
    request = channel.recv(_MAX_REQUEST_BYTES)
    if not request:
        return
    try:
        if isinstance(bcc, _Refused):
            raise bcc
        channel.sendmsg([b'{"loaded": true}'], [_rights(_load(bcc, json.loads(request)))])
    except _Refused as refusal:
        channel.send(json.dumps(refusal.answer).encode())


class _Refused(Exception):
    """Why there is nothing to hand over."""

    def __init__(self, kind: str, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.answer = {"kind": kind, "error": what, "remedy": remedy}


def _try_to_import_bcc() -> Any:
    """The module, or why it cannot be had."""
    try:
        import bcc
    except (ImportError, OSError, AttributeError) as error:
        return _Refused("unsupported", f"bcc cannot be imported: {error}", _remedy_for_bcc())
    if not hasattr(bcc, "BPF"):
        return _Refused("unsupported", "the module called bcc is not the BPF compiler", _remedy_for_bcc())
    return bcc


def _remedy_for_bcc() -> str:
    """Says whether bcc is not there at all, or is there for another Python."""
    mine = f"Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})"
    places = [
        found for root in ("/usr/lib", "/usr/lib64") for found in Path(root).glob("python3*/*-packages/bcc")
    ]
    others = ", ".join(sorted({str(place.parent) for place in places if str(place.parent) not in sys.path}))
    if others:
        return f"bcc is bound to another Python ({others}) than {mine}: run scripts/install-deps.sh again"
    return f"bcc is not installed for {mine}: run scripts/install-deps.sh"


def _load(bcc: Any, request: dict[str, Any]) -> list[int]:
    """Descriptors of the functions, then of the maps, in the request's order."""
    text = (
        _header(request) + f'#line 1 "{Path(request["source"]).name}"\n' + Path(request["source"]).read_text()
    )
    flags = ["-w", *(f"-D{name}={value}" for name, value in request["defines"].items())]
    try:
        program = bcc.BPF(text=text, cflags=flags)
    except Exception as error:  # bcc raises bare Exception for everything
        raise _Refused("load", f"{Path(request['source']).name} does not compile ({error})") from error
    functions = [_load_function(program, name, kind) for name, kind in request["functions"].items()]
    return functions + [program[name].map_fd for name in request["maps"]]


def _header(request: dict[str, Any]) -> str:
    header: str = request["header"]
    try:
        btf = Btf()
        return header + "".join(btf.header(Slice(**piece)) for piece in request["slices"])
    except NettopError as error:
        raise _Refused("unsupported", error.what, error.remedy) from error


def _load_function(program: Any, name: str, kind: int) -> int:
    try:
        descriptor: int = program.load_func(name, kind).fd
    except Exception as error:  # bcc raises bare Exception for everything
        if "super-user" in str(error):
            raise _Refused(
                "permission",
                f"the kernel refuses to load BPF program {name}",
                "run it by sudo; in a container give it CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN; "
                "see /sys/kernel/security/lockdown and the sysctl kernel.unprivileged_bpf_disabled",
            ) from error
        remedy = "nettop needs Linux 5.12 or later; if this is one, please report these words"
        raise _Refused("load", f"the kernel refuses BPF program {name} ({error})", remedy) from error
    return descriptor


def _rights(descriptors: list[int]) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)


if __name__ == "__main__":
    main()
    # What was handed over lives on in the receiver; LLVM's own way down would cost 20 ms.
    os._exit(0)
