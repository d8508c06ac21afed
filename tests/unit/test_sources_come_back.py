# SPDX-License-Identifier: Apache-2.0
"""A source that fails is tried again after growing pauses, and everything else goes on."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from nettop.engine import session as session_module
from nettop.engine.session import Session
from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.settings import MIN_INTERVAL_S
from nettop.snapshots.source import SourceOptions
from tests.builders.in_thread import DEADLINE_S
from tests.builders.sources import Source, failing

LENS = "connections"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RETRY_S", (0.0,))


class Watched:
    """A session with a source, and everything that it publishes about its lens, in order."""

    def __init__(self, source_of: Callable[[str], Source], **options: object) -> None:
        self.session = Session(MIN_INTERVAL_S, source_of, **options)  # type: ignore[arg-type]
        self.states: list[NettopError | int] = []
        self._changed = threading.Condition()
        self.session.bus.subscribe(self._note)

    def _note(self) -> None:
        bus = self.session.bus
        failure, frame = bus.failure(LENS), bus.frame(LENS)
        state = failure or (frame and frame.now.boot_ns)
        with self._changed:
            if state is not None and state not in self.states:
                self.states.append(state)
            self._changed.notify_all()

    def until(self, wanted: Callable[[], bool]) -> None:
        """Wait for a publication after which something is true."""
        with self._changed:
            assert self._changed.wait_for(wanted, DEADLINE_S), self.states

    def until_read(self, times: int) -> None:
        """Wait until the lens was read so often since it last failed."""
        self.until(
            lambda: len(self.states) >= times and all(isinstance(s, int) for s in self.states[-times:])
        )

    @property
    def failures(self) -> list[NettopError]:
        """What the bus said while the lens was missing."""
        return [state for state in self.states if isinstance(state, NettopError)]


@pytest.fixture(params=["SourceFailed", "Unsupported", "a bug"])
def error(request: pytest.FixtureRequest) -> Iterator[Exception]:
    """Return what a source may raise."""
    errors = {"SourceFailed": SourceFailed("broken"), "Unsupported": Unsupported("broken")}
    return errors.get(request.param, IndexError("broken"))  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["read", "join", "drain"])
@pytest.mark.parametrize("fails", [1, 3], ids=["once", "for a while"])
def test_a_source_comes_back(method: str, fails: int, error: Exception) -> None:
    """A source of which a reading fails is read again, at the first try that works; readings say nothing else."""
    source = failing(method, lambda number: 2 <= number < 2 + fails, error)
    watched = Watched(lambda lens: source)
    with watched.session as session:
        session.enable(LENS)
        watched.until(lambda: bool(watched.failures))
        watched.until_read(3)
        assert session.bus.failure(LENS) is None
        calls = Counter(source.calls)
    assert len(watched.failures) in range(1, fails + 1)
    assert all(
        "broken" in failure.what and "; not read since 1970-01-" in failure.what
        for failure in watched.failures
    )
    assert (calls["start"], calls["close"]) == (1, 0)
    assert source.calls[-1] == "close"


def test_a_source_that_always_fails_leaves_the_others() -> None:
    """The other lenses are read on time while a source is tried again and again; both are closed at the end."""
    broken, healthy = failing("read", lambda number: True, IndexError("broken")), Source("drops")
    watched = Watched({LENS: broken, "drops": healthy}.__getitem__)
    with watched.session as session:
        session.enable(LENS)
        session.enable("drops")
        watched.until(lambda: healthy.calls.count("read") > 5 and broken.calls.count("read") > 5)
        assert watched.failures[-1].is_retried
        assert session.bus.failure("drops") is None
    assert broken.calls[-1] == healthy.calls[-1] == "close"


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure in a row is followed by the next pause."""
    monkeypatch.setattr(session_module, "RETRY_S", (0.0, 0.0, 1e9))
    broken, healthy = failing("read", lambda number: True, IndexError("broken")), Source("drops")
    watched = Watched({LENS: broken, "drops": healthy}.__getitem__)
    with watched.session as session:
        session.enable(LENS)
        session.enable("drops")
        watched.until(lambda: len(watched.failures) == 3)
        before = healthy.calls.count("read")
        watched.until(lambda: healthy.calls.count("read") > before + 5)
        assert broken.calls.count("read") == 3


def test_a_start_that_fails_is_tried_again() -> None:
    """A lens whose start fails for a reason that may pass is attached later, with its options."""
    source = failing("start", lambda number: number < 2, SourceFailed("the loader exited"))
    watched = Watched(lambda lens: source)
    with watched.session as session:
        session.enable(LENS, SourceOptions(all_rows=True))
        watched.until_read(2)
    assert source.options == SourceOptions(all_rows=True)
    assert [failure.what for failure in watched.failures] == ["the loader exited"] * len(watched.failures)


@pytest.mark.parametrize("refusal", [PermissionMissing("may not"), Unsupported("cannot")])
def test_a_start_that_is_refused_is_final(refusal: NettopError) -> None:
    """What the host or the user does not allow is tried again only for another lease."""
    source, healthy = failing("start", lambda number: True, refusal), Source("drops")
    watched = Watched({LENS: source, "drops": healthy}.__getitem__)
    with watched.session as session:
        session.enable(LENS)
        session.enable("drops")
        watched.until(lambda: healthy.calls.count("read") > 5)
        assert session.bus.failure(LENS) is refusal
        assert not watched.failures[-1].is_retried
    assert source.calls.count("start") == 1


def test_a_lens_that_lost_its_privileges_says_so() -> None:
    """A lens that would be attached again but for privileges dropped meanwhile keeps its cause, and the remedy is to
    start nettop again."""
    errors = [SourceFailed("the loader exited"), PermissionMissing("needs CAP_BPF")]

    def fail() -> None:
        raise errors.pop(0) if len(errors) > 1 else errors[0]

    watched = Watched(lambda lens: Source(start=fail), drop_privileges=lambda needed: None)
    with watched.session as session:
        session.enable(LENS)
        watched.until(lambda: len(watched.failures) == 2)
        failure = watched.failures[-1]
        assert failure.what == "the loader exited"
        assert "start nettop again" in failure.remedy
        assert not watched.failures[-1].is_retried


def test_a_lens_that_nobody_leases_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed lens whose last lease ends is closed. The next lease attaches it, and what it counts from then on is not
    compared with what it counted before."""
    monkeypatch.setattr(session_module, "RETRY_S", (1e9,))
    source, healthy = failing("read", lambda number: number == 2, SourceFailed("broken")), Source("drops")
    watched = Watched({LENS: source, "drops": healthy}.__getitem__)
    with watched.session as session:
        lease = session.enable(LENS)
        session.enable("drops")
        watched.until(lambda: bool(watched.failures))
        lease.release()
        watched.until(lambda: "close" in source.calls)
        session.enable(LENS)
        watched.until(lambda: session.bus.failure(LENS) is None)
        frame = session.bus.frame(LENS)
    assert frame is not None
    last_ns = watched.states[watched.states.index(watched.failures[0]) - 1]
    assert isinstance(last_ns, int)
    assert frame.before is None or frame.before.boot_ns > last_ns
    assert source.calls.count("start") == 2


def test_another_lease_tries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new lease does not wait for the pause."""
    monkeypatch.setattr(session_module, "RETRY_S", (1e9,))
    source = failing("read", lambda number: number == 1, SourceFailed("broken"))
    watched = Watched(lambda lens: source)
    with watched.session as session:
        session.enable(LENS)
        watched.until(lambda: bool(watched.failures))
        session.enable(LENS, SourceOptions(all_rows=True))
        watched.until_read(2)
    assert source.options == SourceOptions(all_rows=True)
    assert source.calls.count("start") == 1


@pytest.mark.parametrize("method", ["describe", "configure"])
def test_a_request_that_fails_does_not_end_the_sampler(method: str) -> None:
    """A bug in a source's answer to a request is an error of that request or lens."""
    source = failing(method, lambda number: number == (method == "configure"), IndexError("broken"))
    watched = Watched(lambda lens: source)
    with watched.session as session:
        session.enable(LENS)
        watched.until_read(1)
        if method == "describe":
            assert isinstance(session.describe(LENS, 1).exception(DEADLINE_S), SourceFailed)
        else:
            session.change(LENS, lambda options: SourceOptions(all_rows=True))
            watched.until(lambda: bool(watched.failures))
        watched.until_read(3)
