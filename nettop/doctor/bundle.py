# SPDX-License-Identifier: Apache-2.0
"""The bundle for bug reports: the report, kernel configuration and kernel messages, without addresses or names."""

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
_MAX_MESSAGES = 200
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
    """Return the kernel's build configuration, if it or the distribution provides it."""
    with suppress(OSError):
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode(errors="replace")
    with suppress(OSError):
        return Path(f"/boot/config-{os.uname().release}").read_text(errors="replace")
    return ""


def _kernel_messages() -> list[str]:
    """Return the newest kernel messages about what nettop uses; none if they may not be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SYSLOG_SIZE, None, 0)
    if size <= 0:
        return []
    buffer = ctypes.create_string_buffer(size)
    length = libc.klogctl(_SYSLOG_READ_ALL, buffer, size)
    lines = buffer.raw[: max(length, 0)].decode(errors="replace").splitlines()
    return [line for line in lines if _MESSAGES.search(line)][-_MAX_MESSAGES:]
