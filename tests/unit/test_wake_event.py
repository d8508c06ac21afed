# SPDX-License-Identifier: Apache-2.0
"""The event that the sampler and the consumers wait for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nettop.process.wake_event import WakeEvent
from tests.builders.in_thread import until

POLLING = {"7", "73", "271"}
"""The numbers of poll(2) and ppoll(2) on x86-64 and arm64."""


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Yield the signals that a handler was called for."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_that_does_not_interrupt_poll_ends_the_wait(handled: list[int]) -> None:
    """As one does that arrives right before poll(2), or in another thread."""
    waiting = Path(f"/proc/self/task/{threading.get_native_id()}/syscall")

    def receive() -> None:
        until(lambda: waiting.read_text().split()[0] in POLLING)
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    receiver = threading.Thread(target=receive)
    with WakeEvent() as event:
        receiver.start()
        event.wait()
        assert handled == [signal.SIGUSR1]
    receiver.join()


def test_signals_are_left_as_they_were(handled: list[int]) -> None:
    """Behind its context no signal reaches it, and in other threads, where Python cannot do that, none ever does."""
    entered: list[WakeEvent] = []

    def enter() -> None:
        with WakeEvent() as event:
            entered.append(event)

    thread = threading.Thread(target=enter)
    with WakeEvent():
        thread.start()
        thread.join()
    assert len(entered) == 1
    assert signal.set_wakeup_fd(-1) == -1
    signal.raise_signal(signal.SIGUSR1)
    assert handled == [signal.SIGUSR1]


def test_setting_it_often_is_setting_it_once() -> None:
    """More often than a pipe holds, it neither waits nor fails, and the next wait ends at once."""
    with WakeEvent() as event:
        for _ in range(70_000):
            event.set()
        assert event.wait() == {}
