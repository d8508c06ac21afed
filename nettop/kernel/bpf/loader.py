# SPDX-License-Identifier: Apache-2.0
"""The child process that compiles and loads programs: `python -m nettop.kernel.bpf.loader DESCRIPTOR`.

Only this module imports bcc.

The process reads ProgramTexts as JSON from the socket, answers each with JSON and descriptors, and exits when the
socket is closed. It also opens kprobes, since it keeps the privileges that nettop started with.
"""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

from nettop.errors import NettopError, PermissionMissing, Unsupported, limit_reached
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import kprobes
from nettop.kernel.bpf.btf import Btf, Slice
from nettop.kernel.bpf.perf_events import why_refused
from nettop.kernel.bpf.program import PART_OF_NETTOP, LoadFailed
from nettop.kernel.host import privileges

_MAX_REQUEST_BYTES = 1 << 20
_OLDEST_BCC = (0, 26)
"""The oldest version tested. Older ones do not declare all helpers: bpf_get_func_ret came with Linux 5.17."""
_METHODS = ("load_func", "dump_func")
"""The methods of bcc.BPF that nettop uses."""
_NOT_AS_RELEASED = "if the file was modified, reinstall nettop: scripts/install-deps.sh"
_TYPED = {
    "tp_btf": (bpf.TRACE_RAW_TP, Btf.tracepoint),
    "fentry": (bpf.TRACE_FENTRY, Btf.function),
    "fexit": (bpf.TRACE_FEXIT, Btf.function),
}


def main() -> None:
    """Serve requests on the socket whose descriptor is the first argument, until it is closed."""
    privileges.keep_only(privileges.for_loading(privileges.LOADER))
    channel = socket.socket(fileno=int(sys.argv[1]))
    bcc = import_bcc()  # slow; meanwhile, the parent writes the request
    loaded: list[Any] = []  # later texts may share tables of earlier ones
    while request := channel.recv(_MAX_REQUEST_BYTES):
        _answer(channel, bcc, json.loads(request), loaded)


def _answer(channel: socket.socket, bcc: Any, request: dict[str, Any], loaded: list[Any]) -> None:
    try:
        if isinstance(bcc, Unsupported):
            raise bcc
        descriptors, answer = (
            _open_probes(**request) if "function" in request else _load(bcc, request, loaded)
        )
        socket.send_fds(channel, [json.dumps(answer).encode()], descriptors)
    except NettopError as error:
        refusal = {"kind": type(error).__name__, "error": error.what, "remedy": error.remedy}
        channel.send(json.dumps(refusal).encode())


def import_bcc() -> Any:
    """Import bcc; return the module, or an Unsupported if it is not usable. Accepts a version that is not a number."""
    try:
        import bcc
    except (ImportError, OSError, AttributeError, MemoryError) as error:
        what = f"cannot import bcc: {str(error) or type(error).__name__}"
        return limit_reached("cannot import bcc", error) or Unsupported(what, _remedy_for_bcc())
    lacking = [name for name in _METHODS if not hasattr(getattr(bcc, "BPF", None), name)]
    if lacking:
        place = getattr(bcc, "__file__", None) or ", ".join(getattr(bcc, "__path__", ()))
        return Unsupported(
            f"the module bcc at {place} is not the BPF compiler: it has no BPF.{lacking[0]}",
            f"remove {place} (if installed by pip: pip uninstall bcc), then run scripts/install-deps.sh again",
        )
    version = str(getattr(bcc, "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= _OLDEST_BCC:
        return bcc
    needed = ".".join(map(str, _OLDEST_BCC))
    return Unsupported(
        f"bcc {version} is too old: nettop needs {needed} or later",
        f"upgrade the distribution's bcc (Debian 12 has {needed}), then run scripts/install-deps.sh again",
    )


def _remedy_for_bcc() -> str:
    """Return a remedy that says whether bcc is missing or installed for another Python."""
    mine = f"Python {sys.version_info[0]}.{sys.version_info[1]} ({sys.executable})"
    places = [
        path for root in ("/usr/lib", "/usr/lib64") for path in Path(root).glob("python3*/*-packages/bcc")
    ]
    others = ", ".join(sorted({str(place.parent) for place in places if str(place.parent) not in sys.path}))
    if others:
        return (
            f"bcc is installed for another Python ({others}), not {mine}: run scripts/install-deps.sh again"
        )
    return f"bcc is not installed for {mine}: run scripts/install-deps.sh"


def _open_probes(function: str, at_return: bool) -> tuple[list[int], dict[str, Any]]:
    """Open a probe at every symbol of a function; return the probes and the symbols."""
    try:
        probes = kprobes.open_probes(function, at_return)
    except PermissionError as error:
        raise why_refused(error) from error
    except OSError as error:
        raise Unsupported(f"the kernel refuses a probe at {function}: {error.strerror}") from error
    return list(probes.values()), {"symbols": list(probes)}


def _load(bcc: Any, request: dict[str, Any], loaded: list[Any]) -> tuple[list[int], dict[str, Any]]:
    """Return the descriptors of functions, then maps, in the request's order, and why functions were refused."""
    sources = list(map(Path, request["sources"]))
    btf = Btf()
    for function in request["needs"]:
        btf.function(function)
    slices = "".join(btf.header(Slice(**piece)) for piece in request["slices"])
    files = "".join(f'#line 1 "{path.name}"\n{_text_of(path)}' for path in sources)
    flags = ["-w", *(f"-D{name}={value}" for name, value in request["defines"].items())]
    try:
        program = bcc.BPF(text=request["header"] + slices + files, cflags=flags)
    except Exception as error:  # bcc raises bare Exception for everything
        raise LoadFailed(f"{sources[-1].name} does not compile ({error})", _NOT_AS_RELEASED) from error
    loaded.append(program)
    functions, refused = [], {}
    for name, kind in request["functions"].items():
        try:
            functions.append(_load_function(program, btf, name, kind))
        except Exception as error:  # bcc raises bare Exception for everything
            limit = limit_reached(f"cannot load BPF program {name}", error)
            if limit is not None or name not in request["optional"]:
                raise limit or _refusal(name, error) from error
            number = getattr(error, "errno", None)
            why = f"the kernel refuses it: {os.strerror(number) if number else error}"
            refused[name] = error.what if isinstance(error, NettopError) else why
    # bcc's own lookup does not support every table type.
    maps = {name: bcc.lib.bpf_table_fd(program.module, name.encode()) for name in request["maps"]}
    for name, descriptor in maps.items():
        if descriptor < 0:
            raise LoadFailed(f"{sources[-1].name} declares no table {name!r}", _NOT_AS_RELEASED)
    return [*functions, *maps.values()], {"refused": refused}


def _text_of(source: Path) -> str:
    """Read one of nettop's own files. Raises Unsupported if it is missing, empty or unreadable."""
    try:
        text, why = source.read_text(), "is empty"
    except OSError as error:
        if limit := limit_reached(f"{source} cannot be read", error):
            raise limit from error
        text, why = "", f"cannot be read: {(error.strerror or str(error)).lower()}"
    if not text:
        raise Unsupported(f"{source}, {PART_OF_NETTOP}, {why}", "reinstall nettop: scripts/install-deps.sh")
    return text


def _refusal(name: str, error: Exception) -> NettopError:
    if isinstance(error, NettopError):
        return error
    if "super-user" in str(error) or getattr(error, "errno", None) == errno.EPERM:
        return PermissionMissing(
            f"the kernel refuses to load BPF program {name} ({error}), likely by a security module",
            "allow bpf in its policy; it logs what it denies: dmesg, or /var/log/audit/audit.log",
        )
    remedy = (
        "nettop needs Linux 5.12 or later, not booted with lockdown=confidentiality; if this is one, please "
        "report this message"
    )
    return LoadFailed(f"the kernel refuses BPF program {name} ({error})", remedy)


def _load_function(program: Any, btf: Btf, name: str, kind: int) -> int:
    """Load a function. If bcc does not know its type or would attach it, let bcc only compile it, and call bpf(2)."""
    function, _, elsewhere = name.partition("@")
    prefix, _, hook = function.partition("__")
    if prefix not in _TYPED:
        descriptor: int = program.load_func(name, kind).fd
        return descriptor
    attach_type, find = _TYPED[prefix]
    hook = elsewhere or hook
    try:
        return bpf.load_tracing(program.dump_func(function.encode()), function, attach_type, find(btf, hook))
    except FileNotFoundError as error:
        raise Unsupported(kprobes.why_not_found(hook)) from error


if __name__ == "__main__":
    main()
    # The receiver has its own copies of the descriptors. Skip LLVM's destructors, which take 20 ms.
    os._exit(0)
