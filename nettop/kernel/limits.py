# SPDX-License-Identifier: Apache-2.0
"""How many descriptors this process may have."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_open_files() -> None:
    """Take as many as are allowed: the usual 1,024 are meant for programs that use select(2)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # then those there are
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_files() -> int:
    """How many files may be open at a time."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
