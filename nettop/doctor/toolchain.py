# SPDX-License-Identifier: Apache-2.0
"""What programs are compiled and loaded with: BTF as libbpf reads it, bcc with its LLVM, Python."""

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
from nettop.errors import Unsupported, limit_reached, why_no_numpy
from nettop.kernel.btf import Btf

_TIMEOUT_S = 60.0
_INSTALL = "run scripts/install-deps.sh again"


def check_btf_loads(size: int) -> Check:
    """libbpf reads the kernel's types, of which there are `size` bytes. Raises Unsupported where it does not."""
    Btf().close()
    return Check("btf", "BTF", f"{size:,} bytes, and libbpf reads them", data=size)


def check_python(_: Path) -> Check:
    """Which interpreter runs this: bcc is bound to one."""
    return Check(
        "python", "Python", f"{platform.python_version()} ({sys.executable})", data=platform.python_version()
    )


def check_numpy(_: Path) -> Check:
    """Which numpy there is."""
    error = why_no_numpy()
    if error is not None:
        return bad("numpy", "numpy", error)
    return Check("numpy", "numpy", importlib.import_module("numpy").__version__)


def check_bcc(_: Path) -> Iterable[Check]:
    """Which bcc and LLVM the loader gets, or why none."""
    child = [sys.executable, "-I", "-m", "nettop.doctor.bcc_child"]
    try:
        done = subprocess.run(
            child, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, input=""
        )
        report = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        yield Check("bcc", "bcc", f"importing it takes longer than {_TIMEOUT_S:g} s", Verdict.BAD, _INSTALL)
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


def check_libbpf(_: Path) -> Check:
    """Which libbpf is installed."""
    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        version = library.libbpf_version_string().decode().removeprefix("v")
    except (OSError, AttributeError) as error:
        return Check("libbpf", "libbpf", f"cannot be loaded: {error}", Verdict.BAD, _INSTALL)
    return Check("libbpf", "libbpf", version)
