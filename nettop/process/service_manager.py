# SPDX-License-Identifier: Apache-2.0
"""Notifications to the service manager, in the protocol of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from functools import lru_cache

_MISSED = 5
"""Intervals that the watchdog waits at least."""


def ready(status: str = "") -> None:
    """Report that the service is ready, at the start or after a reload; `status` is text for people."""
    _notify("READY=1", status)


def reloading() -> None:
    """Report a reload of files; `ready` follows."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(status: str = "") -> None:
    """Report that the service is about to exit."""
    _notify("STOPPING=1", status)


def alive(interval_s: float) -> None:
    """Report to the watchdog, if there is one, that readings advance; call it after each, some `interval_s` apart."""
    usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    if usec:
        _report_alive(4 * time.monotonic_ns() // (1000 * usec), max(usec, round(_MISSED * interval_s * 1e6)))


@lru_cache(1)
def _report_alive(_quarter: int, usec: int) -> None:
    """Report it once in each quarter of the watchdog's time; a long interval extends that time to `usec`."""
    _notify(f"WATCHDOG=1\nWATCHDOG_USEC={usec}")


def _notify(state: str, status: str = "") -> None:
    """Send a state to $NOTIFY_SOCKET, if set. Ignore errors, which are the manager's concern."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    if status:
        state += "\nSTATUS=" + status.replace("\n", " ")
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
        sender.sendto(state.encode(errors="replace"), address)
