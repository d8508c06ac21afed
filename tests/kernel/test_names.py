# SPDX-License-Identifier: Apache-2.0
"""Resolving addresses without a name server does not block other threads."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .lab import Lab

pytestmark = pytest.mark.kernel

TIMEOUT_S = 30
"""How long the C library waits for an answer."""
PROGRAM = """
import ipaddress, socket, threading
from nettop.engine.resolver import look_up
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
peer = bytes(10) + b"\\xff\\xff" + ipaddress.ip_address("203.0.113.9").packed
thread = threading.Thread(target=look_up, args=(peer,), daemon=True)
thread.start()
server.recv(512)
thread.join(0.5)
print("goes on" if thread.is_alive() else "waited")
"""


def test_a_look_up_does_not_stop_the_others(lab: Lab, tmp_path: Path) -> None:
    """Other threads run while the C library waits for an answer, in every Python."""
    settings = tmp_path / "resolv.conf"
    settings.write_text(f"nameserver 127.0.0.1\noptions timeout:{TIMEOUT_S} attempts:1\n")
    mount = f'mount --bind {settings} /etc/resolv.conf && exec "$@"'
    words = ("unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", PROGRAM)
    assert lab.namespace().run(*words) == "goes on\n"
