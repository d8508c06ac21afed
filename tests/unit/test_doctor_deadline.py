# SPDX-License-Identifier: Apache-2.0
"""The deadline of doctor's steps: doctor exits whatever a step waits for."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from nettop.doctor import deadline
from nettop.errors import SourceFailed
from nettop.process import limits
from nettop.process.limits import ProcessLimit


def wait_for_ever() -> None:
    """Block, as a source may do, even at the end."""
    try:
        threading.Event().wait()
    except Exception:  # noqa: BLE001 - the deadline is none
        pytest.fail("the deadline was taken for an error")
    finally:
        threading.Event().wait()


def test_a_step_that_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A blocked step is abandoned, with its cleanup, whatever it catches; limits that may be the cause are named."""
    monkeypatch.setattr(
        deadline, "memory_limits", lambda _: [ProcessLimit("a process may have 5 bytes", "raise it")]
    )
    monkeypatch.setattr(deadline, "process_limits", lambda _: [])
    monkeypatch.setattr(deadline, "_CLOSING_S", 0.05)
    with pytest.raises(SourceFailed) as failure, deadline.within("it", 0.05):
        wait_for_ever()
    assert failure.value.what == "it timed out after 0.05 s, with limits: a process may have 5 bytes"
    assert "raise the limits" in failure.value.remedy


def test_a_slow_host_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without limits that explain it, the remedy is more time. Those that every user has, and never meets, do not."""
    monkeypatch.setattr(limits.os, "getuid", lambda: 1000)
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (2**40, 2**40))
    with pytest.raises(SourceFailed) as failure, deadline.within("it", 0.05):
        threading.Event().wait()
    assert "allow more with --timeout" in failure.value.remedy


def test_a_step_in_time() -> None:
    """A step that ends in time returns its own result or error."""
    with deadline.within("it"):
        result = 1
    assert result == 1
    with pytest.raises(KeyError), deadline.within("it"):
        raise KeyError


STUCK = """
import ctypes, signal
from nettop.doctor import deadline
deadline._STUCK_S = 0.1
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
with deadline.within("it", 0.1):
    ctypes.PyDLL(None).pause()  # which keeps the interpreter's lock, as a deadlock of the C library would
"""


def test_a_process_that_is_stuck_in_c() -> None:
    """A process stuck in C code, where no exception can be raised, exits and names the step."""
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
