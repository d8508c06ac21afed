# SPDX-License-Identifier: Apache-2.0
"""What a bug report needs, in one file: the report, the kernel's configuration and messages; no addresses, no names."""

from __future__ import annotations

import ctypes
import gzip
import io
import json
import os
import re
import tarfile
import time
from contextlib import suppress
from pathlib import Path

from nettop.doctor.redaction import Redactor, names_here
from nettop.doctor.report import Report
from nettop.doctor.text import report_lines

_FOLDER = "nettop-doctor"
_CONFIG = re.compile(
    r"^(?:# )?CONFIG_\w*(?:BPF|BTF|FTRACE|FPROBE|KPROBE|LOCKDOWN|DIAG|NET_NS|VETH|CGROUPS)\w*\b.*$",
    re.MULTILINE,
)
_MESSAGES = re.compile(r"bpf|btf|lockdown|kprobe|ftrace", re.IGNORECASE)
_MOST_MESSAGES = 200
_SYSLOG_READ_ALL, _SYSLOG_SIZE = 3, 10
"""Actions of syslog(2)."""


def bundle_of(report: Report) -> bytes:
    """Return the bundle, a gzipped tar archive."""
    redactor = Redactor(names_here())
    plain = report.as_json()
    parts = {
        "report.json": json.dumps(redactor.values(plain), indent=2),
        "report.txt": redactor.text("\n".join(report_lines(report))),
        "kernel-config.txt": "\n".join(_CONFIG.findall(_kernel_config())),
        "kernel-messages.txt": redactor.text("\n".join(_kernel_messages())),
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, text in parts.items():
            content = (text or "not available").encode() + b"\n"
            entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _kernel_config() -> str:
    """What the kernel was built with, where it or the distribution says so."""
    with suppress(OSError):
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    with suppress(OSError):
        return Path(f"/boot/config-{os.uname().release}").read_text(errors="replace")
    return ""


def _kernel_messages() -> list[str]:
    """The kernel's newest messages about what nettop uses; none where they may not be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SYSLOG_SIZE, None, 0)
    if size <= 0:
        return []
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(_SYSLOG_READ_ALL, buffer, size)
    lines = buffer.raw[: max(length, 0)].decode(errors="replace").splitlines()
    return [line for line in lines if _MESSAGES.search(line)][-_MOST_MESSAGES:]
