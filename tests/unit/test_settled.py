# SPDX-License-Identifier: Apache-2.0
"""When rights are given up: between the start of the first lens and its first reading, whatever happens."""

from __future__ import annotations

import os
import threading

import pytest

from nettop.commands import invoker
from nettop.commands.invoker import User, may
from nettop.commands.privilege import Rights, opened_session
from nettop.engine.session import Session
from nettop.errors import NettopError, SourceFailed
from nettop.settings import MAX_INTERVAL_S

from .test_engine import DEADLINE_S, Source, published


class Broken(Source):
    """Does not start."""

    def start(self) -> None:
        """Fail."""
        super().start()
        raise SourceFailed("it does not start")


def attached(session: Session, lens: str = "connections") -> NettopError | None:
    """Attaches a lens; why it failed, once it is read or has."""
    event = published(session)
    session.enable(lens)
    assert event.wait(DEADLINE_S)
    return session.bus.failure(lens)


def test_it_is_after_the_start_and_before_anything_is_read() -> None:
    """It happens once, in the thread that reads, however many lenses follow."""
    source, calls = Source(), []

    def settled(rights: frozenset[int]) -> None:
        calls.append((threading.get_ident(), list(source.calls), rights))

    with Session(MAX_INTERVAL_S, lambda lens: source, settled=settled) as session:
        assert attached(session) is None
        assert attached(session, "drops") is None
    ((thread, before, rights),) = calls
    assert (before, rights) == (["start"], frozenset())
    assert source.threads == {thread}


@pytest.mark.parametrize("exists", [True, False], ids=["does not start", "has no probe"])
def test_it_is_after_a_start_that_failed_too(exists: bool) -> None:
    """A lens that does not start leaves no rights behind."""
    source, happened = Broken(), threading.Event()

    def source_of(lens: str) -> Source:
        if not exists:
            raise SourceFailed("it has no probe")
        return source

    with Session(MAX_INTERVAL_S, source_of, settled=lambda rights: happened.set()) as session:
        session.enable("connections")
        assert happened.wait(DEADLINE_S)
    assert "read" not in source.calls


def test_nothing_is_read_where_it_fails() -> None:
    """Rights that cannot be given up are told, and tried again with the next lens: until then none is read."""
    source, refusals = Source(), [NettopError("privileges cannot be given up")]

    def settled(rights: frozenset[int]) -> None:
        if refusals:
            raise refusals.pop()

    with Session(MAX_INTERVAL_S, lambda lens: source, settled=settled) as session:
        failure = attached(session)
        assert failure is not None
        assert failure.what == "privileges cannot be given up"
        assert source.calls == ["start", "close"]
        assert attached(session, "drops") is None
    assert source.calls[2:] == ["start", "read", "close"]


def test_sources_of_its_own_take_no_rights_away() -> None:
    """A session over other sources than probes leaves user and capabilities as they are."""
    with open("/proc/self/status") as file:
        before = [line for line in file if line.startswith(("Uid", "Cap", "NoNewPrivs"))]
    with opened_session(MAX_INTERVAL_S, lambda lens: Source(), Rights(User(65534, 65534, ()))) as session:
        assert attached(session) is None
    with open("/proc/self/status") as file:
        assert [line for line in file if line.startswith(("Uid", "Cap", "NoNewPrivs"))] == before


def test_where_nobody_may_act_as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then that user may do nothing, which is no error: nettop stays who it is."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    for name in ("setgroups", "setegid", "seteuid"):
        monkeypatch.setattr(invoker.os, name, refuse)
    assert not may(User(65534, 65534, ()), os.R_OK, invoker.Path("/"))


def test_what_reading_takes_is_kept() -> None:
    """A source that says which rights its readings take finds them in what is asked for."""

    class Needy(Source):
        def rights(self) -> frozenset[int]:
            return frozenset({2, 19})

    asked: list[frozenset[int]] = []
    with Session(MAX_INTERVAL_S, lambda lens: Needy(), settled=asked.append) as session:
        assert attached(session) is None
    assert asked == [frozenset({2, 19})]
