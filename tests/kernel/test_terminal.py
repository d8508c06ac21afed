# SPDX-License-Identifier: Apache-2.0
"""The screens on a real terminal with real sockets start, refresh, and restore the terminal."""

import os
import signal
from pathlib import Path

import pytest

from nettop.kernel.bpf import program_cache

from . import bpf_objects, traffic
from .lab import Lab, until
from .terminal import Terminal
from .traffic import Call

pytestmark = pytest.mark.kernel

LEAVE_ALTERNATE_SCREEN, SHOW_CURSOR = b"\x1b[?1049l", b"\x1b[?25h"
MOUSE_OFF = b"\x1b[?1000l"


def visible(lab: Lab, name: str = "seenworker") -> None:
    """Open a connection of a process with that name."""
    worker = lab.worker(lab.namespace(), name)
    port = worker.call(traffic.listen, "listener", "127.0.0.1")
    worker.call(traffic.connect_at_once, [Call(("127.0.0.1", port))])


@pytest.mark.parametrize("ending", ["q", "SIGHUP"])
def test_terminal_is_sane_afterwards(lab: Lab, ending: str) -> None:
    """However the user ends the screens, the terminal is restored and the kernel has nothing left."""
    visible(lab)
    before = bpf_objects.existing()
    with Terminal("--filter", "seenworker") as terminal:
        settings = terminal.settings()
        terminal.shows(b"seenworker")
        assert terminal.settings() != settings
        if ending == "q":
            terminal.type(b"q")
        else:
            os.kill(terminal.pid, getattr(signal, ending))
        assert terminal.wait() == 0
        assert terminal.settings() == settings
        for wanted in (LEAVE_ALTERNATE_SCREEN, SHOW_CURSOR, MOUSE_OFF):
            assert terminal.output.rfind(wanted) > terminal.output.rfind(b"seenworker")
        assert b"Traceback" not in terminal.output
    bpf_objects.nothing_new_since(before)


def test_screens_leave_out_what_they_do_not_use(lab: Lab) -> None:
    """The screens map neither OpenSSL, which asyncio loads if it can, nor numpy's random numbers: 9 MB."""
    visible(lab)
    with Terminal("--filter", "seenworker") as terminal:
        terminal.shows(b"seenworker")
        mapped = Path(f"/proc/{terminal.pid}/maps").read_text()
    assert "_multiarray_umath" in mapped
    assert not [line for line in mapped.splitlines() if "libcrypto" in line or "numpy/random/" in line]


@pytest.mark.parametrize("ending", ["q", "SIGTERM"])
def test_end_while_lenses_load(nothing_cached: None, ending: str) -> None:
    """If nettop is ended while five lenses load, it compiles none of the programs that remain."""
    with Terminal() as terminal:
        terminal.shows(b"PROCESS")
        for digit in b"23457":
            terminal.type(bytes([digit]))
            terminal.take_in(0.2)
        held = bpf_objects.held(terminal.pid)
        if ending == "q":
            terminal.type(b"q")
        else:
            os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.wait() == 0
        assert not program_cache.is_complete()
        assert b"Traceback" not in terminal.output
        until(lambda: not held & bpf_objects.existing(), "its programs and maps are gone")
