# SPDX-License-Identifier: Apache-2.0
"""Signals end nettop whenever they arrive."""

import gc
import signal
import weakref
from collections.abc import Callable

import pytest

from nettop import interrupts
from nettop.interrupts import ended_by_signals

LIMIT_S = 60


class Signals:
    """Raises a signal when it is destroyed, where Python drops exceptions."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def in_a_destructor() -> None:
    """The signal arrives while an object is destroyed."""
    Signals()


def in_a_callback() -> None:
    """The signal arrives in the callback of a weak reference."""

    class Referent:
        """Something to refer to."""

    referent = Referent()
    reference = weakref.ref(referent, lambda _: signal.raise_signal(signal.SIGTERM))
    del referent
    assert reference() is None


def in_a_collection() -> None:
    """The signal arrives in a callback of the garbage collector."""
    started = [signal.SIGTERM]

    def collects(*_: object) -> None:
        if started:
            signal.raise_signal(started.pop())

    gc.callbacks.append(collects)
    try:
        gc.collect()
    finally:
        gc.callbacks.remove(collects)


@pytest.mark.parametrize("signalled", [in_a_destructor, in_a_callback, in_a_collection])
def test_no_signal_is_dropped(capfd: pytest.CaptureFixture[str], signalled: Callable[[], None]) -> None:
    """Where Python drops the exception of a signal, it is raised a moment later, and nothing is printed."""

    def go_on() -> None:
        signalled()
        signal.sigtimedwait([], LIMIT_S)

    with pytest.raises(KeyboardInterrupt) as ended, ended_by_signals():
        go_on()
    assert ended.value.args == (signal.SIGTERM,)
    assert capfd.readouterr() == ("", "")


def test_nothing_is_raised_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that was dropped at the very end is not raised when nothing handles it any more."""
    monkeypatch.setattr(interrupts, "_RESEND_S", 3600.0)  # not before the end, however slowly that comes
    with ended_by_signals():
        in_a_destructor()
    assert signal.setitimer(signal.ITIMER_REAL, 0) == (0, 0)


def test_other_errors_are_reported(capfd: pytest.CaptureFixture[str]) -> None:
    """What else goes wrong in a destructor is on standard error, as Python has it."""

    class Broken:
        def __del__(self) -> None:
            raise ZeroDivisionError("by nought")

    with ended_by_signals():
        Broken()
    assert "by nought" in capfd.readouterr().err
