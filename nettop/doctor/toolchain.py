# SPDX-License-Identifier: Apache-2.0
"""The toolchain that compiles and loads BPF programs: bcc with its LLVM, Python."""

from __future__ import annotations

import ctypes
import importlib
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from nettop.doctor.report import Check, Verdict, bad
from nettop.errors import Unsupported, limit_reached, numpy_error
from nettop.kernel.bpf import program_cache

_TIMEOUT_S = 60.0
_INSTALL = "run scripts/install-deps.sh again"
_COMPILE = "run sudo nettop compile"
_CLEAN = f"remove it, then {_COMPILE}"


def check_python(_: Path) -> Check:
    """Report the interpreter: bcc is bound to one."""
    return Check(
        "python", "Python", f"{platform.python_version()} ({sys.executable})", data=platform.python_version()
    )


def check_numpy(_: Path) -> Check:
    """Report the version of numpy."""
    error = numpy_error()
    if error is not None:
        return bad("numpy", "numpy", error)
    return Check("numpy", "numpy", importlib.import_module("numpy").__version__)


def check_bcc(_: Path) -> Iterable[Check]:
    """Report which bcc and LLVM the compiler uses, or why there is none."""
    child = [sys.executable, "-I", "-m", "nettop.doctor.bcc_child"]
    try:
        done = subprocess.run(
            child, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, input=""
        )
        report = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        yield Check("bcc", "bcc", f"importing it timed out after {_TIMEOUT_S:g} s", Verdict.BAD, _INSTALL)
        return
    except ValueError:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        failure = limit_reached("importing it fails", done.stderr) or Unsupported(
            f"importing it fails (exit status {done.returncode}): {said}", _INSTALL
        )
        yield bad("bcc", "bcc", failure)
        return
    if "error" in report:
        yield Check("bcc", "bcc", report["error"], Verdict.BAD, report["remedy"])
        return
    yield Check("bcc", "bcc", f"{report['version']} ({report['path']})", data=report["version"])
    yield Check("llvm", "LLVM in bcc", report["llvm"])


def check_program_cache(_: Path) -> Iterable[Check]:
    """Report whether compiled programs are kept for this kernel, and which files in their place are ignored."""
    key, name = "program_cache", "program cache"
    try:
        kept, ignored = program_cache.check()
    except FileNotFoundError:
        kept, ignored = 0, []
    except (OSError, program_cache.Distrusted) as error:
        why = (error.strerror if isinstance(error, OSError) else str(error)) or "cannot be read"
        yield Check(key, name, f"not used: {program_cache.DIRECTORY} {why.lower()}", Verdict.NOTE, _CLEAN)
        return
    yield (
        Check(key, name, f"{kept} programs in {program_cache.DIRECTORY}, those of all lenses among them")
        if program_cache.is_complete()
        else Check(key, name, f"{kept} programs, not all that this kernel needs", Verdict.NOTE, _COMPILE)
    )
    if ignored:
        remedy = f"remove them, then {_COMPILE}"
        yield Check("ignored_programs", "ignored", "; ".join(ignored), Verdict.NOTE, remedy)


def check_libbpf(_: Path) -> Check:
    """Report the version of libbpf."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        version = library.libbpf_version_string().decode().removeprefix("v")
    except (OSError, AttributeError) as error:
        return Check("libbpf", "libbpf", f"cannot be loaded: {error}", Verdict.BAD, _INSTALL)
    return Check("libbpf", "libbpf", version)
