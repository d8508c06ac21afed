# SPDX-License-Identifier: Apache-2.0
"""Report on the bcc that the compiler would use, as JSON: `python -I -m nettop.doctor.bcc_child`.

This is a separate process because bcc loads LLVM, which takes 100 MB.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from nettop.errors import NettopError
from nettop.kernel.bpf.compiler import import_bcc
from nettop.kernel.host.proc_files import read_text

_LLVM = re.compile(r"/libLLVM[-.](?:so\.)?(\d+(?:\.\d+)*)")


def main() -> None:
    """Import bcc and print the report."""
    try:
        bcc = import_bcc()
    except NettopError as error:
        report = {"error": error.what, "remedy": error.remedy}
    else:
        mapped = set(_LLVM.findall(read_text(Path("/proc/self/maps"))))
        report = {
            "version": str(getattr(bcc, "__version__", "unknown")),
            "path": str(Path(bcc.__file__).parent),
            "llvm": max(mapped, key=len, default="unknown"),
        }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
