# SPDX-License-Identifier: Apache-2.0
"""The child process that compiles and loads: `python -m nettop.kernel.loader DESCRIPTOR`. Only this imports bcc.

It reads ProgramTexts as JSON from the socket, answers each with JSON and descriptors, and exits when the socket is
closed. It also opens kprobes, as it is as privileged as nettop was when it started.
"""

from __future__ import annotations

import array
import errno
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nettop.errors import NettopError, Unsupported
from nettop.kernel import bpf, kprobes, privileges
from nettop.kernel.btf import Btf, Slice

_MAX_REQUEST_BYTES = 1 << 20
_OLDEST_BCC = (0, 26)
"""The oldest that the tests run with. Older ones do not declare all helpers: bpf_get_func_ret came with Linux 5.17."""
_TYPED = {
    "tp_btf": (bpf.TRACE_RAW_TP, Btf.tracepoint),
    "fentry": (bpf.TRACE_FENTRY, Btf.function),
    "fexit": (bpf.TRACE_FEXIT, Btf.function),
}


def main() -> None:
    """Serve the requests on the socket whose descriptor is the first argument, until it is closed."""
    privileges.keep_only(privileges.for_loading(privileges.LOADER))
    channel = socket.socket(fileno=int(sys.argv[1]))
    bcc = import_bcc()  # takes a while, in which the request is being written
    loaded: list[Any] = []  # later texts may share the tables of earlier ones
    while request := channel.recv(_MAX_REQUEST_BYTES):
        _answer(channel, bcc, json.loads(request), loaded)


def _answer(channel: socket.socket, bcc: Any, request: dict[str, Any], loaded: list[Any]) -> None:
    try:
        if isinstance(bcc, _Refused):
            raise bcc
        descriptors, answer = (
            _open_probes(**request) if "function" in request else _load(bcc, request, loaded)
        )
        channel.sendmsg([json.dumps(answer).encode()], [_rights(descriptors)])
    except _Refused as refusal:
        channel.send(json.dumps(refusal.answer).encode())
    except NettopError as error:
        channel.send(json.dumps(_Refused("unsupported", error.what, error.remedy).answer).encode())


class _Refused(Exception):
    """Why there is nothing to pass over; `why` says so for an optional function."""

    def __init__(self, kind: str, what: str, remedy: str = "", why: str = "") -> None:
        super().__init__(what)
        self.answer = {"kind": kind, "error": what, "remedy": remedy}
        self.why = why or what


def import_bcc() -> Any:
    """The module, or why it cannot be used."""
    try:
        import bcc
    except (ImportError, OSError, AttributeError) as error:
        return _Refused("unsupported", f"bcc cannot be imported: {error}", _remedy_for_bcc())
    if not hasattr(bcc, "BPF"):
        return _Refused("unsupported", "the module called bcc is not the BPF compiler", _remedy_for_bcc())
    version = str(getattr(bcc, "__version__", ""))
    return _too_old(version) or bcc


def _too_old(version: str) -> _Refused | None:
    """Why that version of bcc cannot be used; None where it can, or where its builder gave it no number."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= _OLDEST_BCC:
        return None
    needed = ".".join(map(str, _OLDEST_BCC))
    return _Refused(
        "unsupported",
        f"bcc {version} is too old: nettop needs {needed} or later",
        f"upgrade the distribution's bcc (Debian 12 has {needed}), then run scripts/install-deps.sh again",
    )


def _remedy_for_bcc() -> str:
    """Says whether bcc is missing, or installed for another Python."""
    mine = f"Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})"
    places = [
        path for root in ("/usr/lib", "/usr/lib64") for path in Path(root).glob("python3*/*-packages/bcc")
    ]
    others = ", ".join(sorted({str(place.parent) for place in places if str(place.parent) not in sys.path}))
    if others:
        return f"bcc is bound to another Python ({others}) than {mine}: run scripts/install-deps.sh again"
    return f"bcc is not installed for {mine}: run scripts/install-deps.sh"


def _open_probes(function: str, at_return: bool) -> tuple[list[int], dict[str, Any]]:
    """A probe at every symbol of a function, and those symbols."""
    try:
        probes = kprobes.open_probes(function, at_return)
    except OSError as error:
        raise _Refused("unsupported", f"the kernel opens no probe at {function}: {error.strerror}") from error
    return list(probes.values()), {"symbols": list(probes)}


def _load(bcc: Any, request: dict[str, Any], loaded: list[Any]) -> tuple[list[int], dict[str, Any]]:
    """Descriptors of the functions, then of the maps, in the request's order; and why functions were refused."""
    sources = list(map(Path, request["sources"]))
    btf = Btf()
    for function in request["needs"]:
        btf.function(function)
    text = _header(btf, request) + "".join(f'#line 1 "{path.name}"\n{path.read_text()}' for path in sources)
    flags = ["-w", *(f"-D{name}={value}" for name, value in request["defines"].items())]
    try:
        program = bcc.BPF(text=text, cflags=flags)
    except Exception as error:  # bcc raises bare Exception for everything
        raise _Refused("load", f"{sources[-1].name} does not compile ({error})") from error
    loaded.append(program)
    functions, refused = [], {}
    for name, kind in request["functions"].items():
        try:
            functions.append(_load_function(program, btf, name, kind))
        except _Refused as refusal:
            if name not in request["optional"]:
                raise
            refused[name] = refusal.why
    return functions + [program[name].map_fd for name in request["maps"]], {"refused": refused}


def _header(btf: Btf, request: dict[str, Any]) -> str:
    header: str = request["header"]
    return header + "".join(btf.header(Slice(**piece)) for piece in request["slices"])


def _load_function(program: Any, btf: Btf, name: str, kind: int) -> int:
    try:
        prefix = name.partition("__")[0]
        if prefix in _TYPED:
            function = name.partition("@")[0]
            return _load_typed(program.dump_func(function.encode()), btf, name, *_TYPED[prefix])
        descriptor: int = program.load_func(name, kind).fd
    except NettopError as error:
        raise _Refused("unsupported", error.what, error.remedy) from error
    except Exception as error:  # bcc raises bare Exception for everything
        number = getattr(error, "errno", None)
        why = f"the kernel does not load it: {os.strerror(number) if number else error}"
        if "super-user" in str(error) or number == errno.EPERM:
            raise _Refused(
                "permission",
                f"the kernel refuses to load BPF program {name}",
                "run it by sudo; in a container give it CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN; "
                "see /sys/kernel/security/lockdown and the sysctl kernel.unprivileged_bpf_disabled",
                why,
            ) from error
        remedy = "nettop needs Linux 5.12 or later; if this is one, please report these words"
        raise _Refused("load", f"the kernel refuses BPF program {name} ({error})", remedy, why) from error
    return descriptor


def _load_typed(
    instructions: bytes, btf: Btf, name: str, attach_type: int, find: Callable[[Btf, str], int]
) -> int:
    """Load what bcc does not know, or would attach itself: bcc compiles it, and bpf(2) is called directly."""
    function, _, elsewhere = name.partition("@")
    hook = elsewhere or function.partition("__")[2]
    try:
        return bpf.load_tracing(instructions, function, attach_type, find(btf, hook))
    except FileNotFoundError as error:
        raise Unsupported(kprobes.why_nowhere(hook)) from error


def _rights(descriptors: list[int]) -> tuple[int, int, array.array[int]]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)


if __name__ == "__main__":
    main()
    # The receiver has its own copies of the descriptors; LLVM's destructors would take 20 ms.
    os._exit(0)
