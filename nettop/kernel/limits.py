# SPDX-License-Identifier: Apache-2.0
"""The limit on the files that this process may have open."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_open_files() -> None:
    """Raise the soft limit to the hard one: the usual 1,024 are meant for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # then the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
