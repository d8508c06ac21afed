# SPDX-License-Identifier: Apache-2.0
"""Resources that the probes of a host share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field


@dataclass(slots=True)
class Kept:
    """Resources for all probes that nettop opened at its start, before dropping privileges.

    - `clocks`: events by CPU. They do not tick yet and cost nothing.
    - `symbols`: a descriptor of /proc/kallsyms, which shows addresses to those who opened it with CAP_SYSLOG.
    - `net_loader`: a thread that may load programs for network interfaces.
    - `namespaces`: the `Namespaces` of this host (entered_namespaces.py), each with a thread inside.

    Hold `lock` to read the symbols or to share the namespaces: one lens may be attached while others are read.
    """

    clocks: dict[int, int] = field(default_factory=dict)
    symbols: int | None = None
    net_loader: ThreadPoolExecutor | None = None
    namespaces: object = None
    lock: threading.Lock = field(default_factory=threading.Lock)
