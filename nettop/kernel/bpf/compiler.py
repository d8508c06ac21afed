# SPDX-License-Identifier: Apache-2.0
"""The child process that compiles programs: `python -m nettop.kernel.bpf.compiler DESCRIPTOR`.

Only this module imports bcc.

The process reads ProgramTexts as JSON from the socket, answers each with JSON and the descriptor of a file that holds
the compiled program, and exits when the socket is closed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nettop.errors import NettopError, Unsupported, limit_reached
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.btf import Btf, MissingInKernel, Slice
from nettop.kernel.bpf.compiled import Compiled, Function, LoadFailed, find_operands, marks_of, with_numbers
from nettop.kernel.bpf.program_text import PART_OF_NETTOP
from nettop.kernel.host import privileges
from nettop.writing import memory_file

_MAX_REQUEST_BYTES = 1 << 20
_OLDEST_BCC = (0, 26)
"""The oldest version tested. Older ones do not declare all helpers: bpf_get_func_ret came with Linux 5.17."""
_NOT_AS_RELEASED = "if the file was modified, reinstall nettop: scripts/install-deps.sh"
_Operands = Callable[[bytes], tuple[dict[int, str], dict[int, str]]]
_HOOKS: dict[str, tuple[int, Callable[[Btf, str], int]]] = {
    "bpf_iter": (bpf.TRACE_ITER, lambda btf, hook: btf.function(f"bpf_iter_{hook}")),
    "tp_btf": (bpf.TRACE_RAW_TP, Btf.tracepoint),
    "fentry": (bpf.TRACE_FENTRY, Btf.function),
    "fexit": (bpf.TRACE_FEXIT, Btf.function),
}
"""The attach type and the hook's type id by the prefix of a program's name; other programs have no typed hook."""


def main() -> None:
    """Serve requests on the socket whose descriptor is the first argument, until it is closed."""
    privileges.keep_only(privileges.for_loading(privileges.LOADER))
    channel = socket.socket(fileno=int(sys.argv[1]))
    while request := channel.recv(_MAX_REQUEST_BYTES):
        _answer(channel, json.loads(request))


def _answer(channel: socket.socket, request: dict[str, Any]) -> None:
    try:
        encoded = _compile(import_bcc(), request).encode()
        compiled = memory_file("nettop-program")
        os.write(compiled, encoded)
        socket.send_fds(channel, [b"{}"], [compiled])
        os.close(compiled)
    except NettopError as error:
        refusal = {"kind": type(error).__name__, "error": error.what, "remedy": error.remedy}
        channel.send(json.dumps(refusal).encode())


def import_bcc() -> Any:
    """Return the module bcc. Raise Unsupported if it is not usable; accepts a version that is not a number."""
    try:
        import bcc
    except (ImportError, OSError, AttributeError, MemoryError) as error:
        what = f"cannot import bcc: {str(error) or type(error).__name__}"
        raise limit_reached("cannot import bcc", error) or Unsupported(what, _remedy_for_bcc()) from error
    if not hasattr(getattr(bcc, "BPF", None), "dump_func"):
        place = getattr(bcc, "__file__", None) or ", ".join(getattr(bcc, "__path__", ()))
        raise Unsupported(
            f"the module bcc at {place} is not the BPF compiler: it has no BPF.dump_func",
            f"remove {place} (if installed by pip: pip uninstall bcc), then run scripts/install-deps.sh again",
        )
    version = str(getattr(bcc, "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) >= _OLDEST_BCC:
        return bcc
    needed = ".".join(map(str, _OLDEST_BCC))
    raise Unsupported(
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


def _compile(bcc: Any, request: dict[str, Any]) -> Compiled:
    """Compile a text. bcc also creates its tables, until the returned object is all that is left."""
    sources = list(map(Path, request["sources"]))
    btf = Btf()
    for function in request["needs"]:
        btf.function(function)
    slices = "".join(btf.header(Slice(**piece)) for piece in request["slices"])
    files = "".join(f'#line 1 "{path.name}"\n{_text_of(path)}' for path in sources)
    marks = marks_of(request["values"])
    flags = ["-w", *(f"-D{name}={value}" for name, value in {**request["defines"], **marks}.items())]
    try:
        program = bcc.BPF(text=request["header"] + slices + files, cflags=flags)
    except Exception as error:  # bcc raises bare Exception for everything
        raise LoadFailed(f"{sources[-1].name} does not compile ({error})", _NOT_AS_RELEASED) from error
    maps = _maps(bcc.lib, program.module)
    for name in request["maps"]:
        if name not in maps:
            raise LoadFailed(f"{sources[-1].name} declares no table {name!r}", _NOT_AS_RELEASED)
    names = {descriptor: name for name, descriptor in maps.items()}
    operands = partial(find_operands, maps=names, marks=marks)
    functions, missing = {}, {}
    for name, kind in request["functions"].items():
        try:
            functions[name] = _function(program, btf, name, kind, operands)
        except MissingInKernel as error:
            if name not in request["optional"]:
                raise
            missing[name] = error.what
    tables = {name: bpf.map_attributes(descriptor) for name, descriptor in maps.items()}
    program.cleanup()
    return Compiled(tables, functions, missing)


def _maps(lib: ctypes.CDLL, module: ctypes.c_void_p) -> dict[str, int]:
    """Return the descriptors of a module's maps by name; bcc's own lookup does not support every type."""
    lib.bpf_table_name.restype = ctypes.c_char_p
    lib.bpf_table_name.argtypes = lib.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    lib.bpf_num_tables.argtypes = [ctypes.c_void_p]
    return {
        lib.bpf_table_name(module, at).decode(): lib.bpf_table_fd_id(module, at)
        for at in range(lib.bpf_num_tables(module))
    }


def _function(program: Any, btf: Btf, name: str, kind: int, operands: _Operands) -> Function:
    """Return a compiled function. Raise MissingInKernel for its hook, and LoadFailed."""
    function, _, elsewhere = name.partition("@")
    prefix, _, hook = function.partition("__")
    attach_type, btf_id = bpf.CGROUP_HOOKS.get(function, 0), 0
    if prefix in _HOOKS:
        attach_type, find = _HOOKS[prefix]
        btf_id = find(btf, elsewhere or hook)
    try:
        instructions: bytes = program.dump_func(function.encode())
    except Exception as error:  # bcc raises bare Exception for everything
        raise LoadFailed(f"the text has no function {function} ({error})", _NOT_AS_RELEASED) from error
    tables, values = operands(instructions)
    # The descriptors of this process mean nothing to others. Without them, a text always compiles to the same bytes.
    instructions = with_numbers(instructions, dict.fromkeys(tables, 0))
    return Function(function, kind, attach_type, btf_id, instructions, tables, values)


def _text_of(source: Path) -> str:
    """Read one of nettop's own files. Raise Unsupported if it is missing, empty or unreadable."""
    try:
        text, why = source.read_text(), "is empty"
    except OSError as error:
        if limit := limit_reached(f"{source} cannot be read", error):
            raise limit from error
        text, why = "", f"cannot be read: {(error.strerror or str(error)).lower()}"
    if not text:
        raise Unsupported(f"{source}, {PART_OF_NETTOP}, {why}", "reinstall nettop: scripts/install-deps.sh")
    return text


if __name__ == "__main__":
    main()
    # The receiver has its own copies of the descriptors. Skip LLVM's destructors, which take 20 ms.
    os._exit(0)
