# SPDX-License-Identifier: Apache-2.0
"""Reports which bcc the loader would use: `python -I -m nettop.doctor.bcc_child` prints it as JSON.

In a process of its own, since bcc brings LLVM's 100 MB along.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from nettop.kernel.loader import import_bcc
from nettop.kernel.proc_files import read_text

_LLVM = re.compile(r"/libLLVM[-.](?:so\.)?(\d+(?:\.\d+)*)")


def main() -> None:
    """Import bcc and report it."""
    bcc = import_bcc()
    if hasattr(bcc, "BPF"):
        mapped = set(_LLVM.findall(read_text(Path("/proc/self/maps"))))
        report = {
            "version": str(getattr(bcc, "__version__", "unknown")),
            "path": str(Path(bcc.__file__).parent),
            "llvm": max(mapped, key=len, default="unknown"),
        }
    else:
        report = {"error": bcc.what, "remedy": bcc.remedy}
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
