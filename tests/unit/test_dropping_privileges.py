# SPDX-License-Identifier: Apache-2.0
"""Privileges are dropped between the start of the first lens and its first reading, whatever happens."""

from __future__ import annotations

import os
import threading

import pytest

from nettop.commands import invoker
from nettop.commands.invoker import User, has_access
from nettop.commands.privilege import open_session
from nettop.engine.session import Session
from nettop.errors import NettopError, SourceFailed
from nettop.settings import MAX_INTERVAL_S
from tests.builders.in_thread import DEADLINE_S
from tests.builders.sources import Source, failing

from .test_engine import published


def attached(session: Session, lens: str = "connections") -> NettopError | None:
    """Attach a lens and wait for a reading or a failure; return the failure."""
    event = published(session)
    session.enable(lens)
    assert event.wait(DEADLINE_S)
    return session.bus.failure(lens)


@pytest.mark.parametrize(
    ("uid", "gid"),
    [("99999999999", "1"), ("4294967295", "1"), ("9" * 5000, "1"), ("x", "1"), ("1", "-7"), ("1", "²")],
    ids=["11 digits", "-1", "5000 digits", "a letter", "below 0", "no decimal"],
)
def test_an_impossible_user_of_sudo(uid: str, gid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid UID in SUDO_UID is treated as no user."""
    monkeypatch.setenv("SUDO_UID", uid)
    monkeypatch.setenv("SUDO_GID", gid)
    assert invoker.invoking_user() is None
    assert invoker.invalid_caller() == f"there is no user SUDO_UID={uid[:20]} SUDO_GID={gid}"


def test_privileges_are_dropped_after_the_start_and_before_anything_is_read() -> None:
    """They are dropped once, in the thread that reads, however many lenses follow."""
    source, calls = Source(), []

    def drop_privileges(rights: frozenset[int]) -> None:
        calls.append((threading.get_ident(), list(source.calls), rights))

    with Session(MAX_INTERVAL_S, lambda lens: source, drop_privileges=drop_privileges) as session:
        assert attached(session) is None
        assert attached(session, "drops") is None
    ((thread, before, rights),) = calls
    assert (before, rights) == (["configure", "start"], frozenset())
    assert thread in source.threads


@pytest.mark.parametrize("exists", [True, False], ids=["does not start", "has no probe"])
def test_privileges_are_dropped_after_a_start_that_failed(exists: bool) -> None:
    """A lens that does not start leaves no privileges behind."""
    source = failing("start", lambda number: True, SourceFailed("it does not start"))
    dropped = threading.Event()

    def source_of(lens: str) -> Source:
        if not exists:
            raise SourceFailed("it has no probe")
        return source

    with Session(MAX_INTERVAL_S, source_of, drop_privileges=lambda rights: dropped.set()) as session:
        session.enable("connections")
        assert dropped.wait(DEADLINE_S)
    assert "read" not in source.calls


def test_lenses_that_start_together_are_read_after_the_last_one_has_started() -> None:
    """Privileges are dropped once, after all these lenses have started, and no lens is read before."""
    sources = {"connections": Source(), "drops": Source()}
    before: list[list[list[str]]] = []

    def drop_privileges(rights: frozenset[int]) -> None:
        before.append([list(source.calls) for source in sources.values()])

    together = tuple(sources)
    with Session(
        MAX_INTERVAL_S, sources.__getitem__, drop_privileges=drop_privileges, together=together
    ) as session:
        session.enable("connections")
        assert attached(session, "drops") is None
        session.sample_now().result(DEADLINE_S)
    assert before == [[["configure", "start"], ["configure", "start"]]]
    assert all("read" in source.calls for source in sources.values())


@pytest.mark.parametrize("refused", [1, 2])
def test_no_lens_that_starts_together_is_read_with_privileges(refused: int) -> None:
    """A lens for which privileges cannot be dropped is not read; the next one is, if dropping works then."""
    sources = {"connections": Source(), "drops": Source()}
    refusals = [NettopError("cannot drop privileges")] * refused

    def drop_privileges(rights: frozenset[int]) -> None:
        if refusals:
            raise refusals.pop()

    with Session(
        MAX_INTERVAL_S, sources.__getitem__, drop_privileges=drop_privileges, together=tuple(sources)
    ) as session:
        for lens in sources:
            session.enable(lens)
        session.sample_now().result(DEADLINE_S)
    assert ["read" in source.calls for source in sources.values()] == [False, refused == 1]


def test_nothing_is_read_while_privileges_cannot_be_dropped() -> None:
    """The failure is reported, and dropping is tried again with the next lens; no lens is read before it works."""
    source, refusals = Source(), [NettopError("cannot drop privileges")]

    def drop_privileges(rights: frozenset[int]) -> None:
        if refusals:
            raise refusals.pop()

    with Session(MAX_INTERVAL_S, lambda lens: source, drop_privileges=drop_privileges) as session:
        failure = attached(session)
        assert failure is not None
        assert failure.what == "cannot drop privileges"
        assert source.calls == ["configure", "start", "close"]
        assert attached(session, "drops") is None
    assert source.calls[3:] == ["configure", "start", "read", "close"]


def test_other_sources_than_probes_drop_nothing() -> None:
    """A session over sources other than probes keeps user and capabilities."""
    with open("/proc/self/status") as file:
        before = [line for line in file if line.startswith(("Uid", "Cap", "NoNewPrivs"))]
    with open_session(MAX_INTERVAL_S, lambda lens: Source(), User(65534, 65534, ())) as session:
        assert attached(session) is None
    with open("/proc/self/status") as file:
        assert [line for line in file if line.startswith(("Uid", "Cap", "NoNewPrivs"))] == before


def test_no_one_may_act_as_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no change of user is allowed, nettop assumes that the user has no rights; it is no error."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(invoker.os, "geteuid", lambda: 0)
    for name in ("setgroups", "setegid", "seteuid"):
        monkeypatch.setattr(invoker.os, name, refuse)
    assert not has_access(User(65534, 65534, ()), os.R_OK, invoker.Path("/"))


def test_capabilities_for_reading_are_kept() -> None:
    """The capabilities that a source needs for its readings are kept."""

    class Needy(Source):
        def capabilities(self) -> frozenset[int]:
            return frozenset({2, 19})

    kept: list[frozenset[int]] = []
    with Session(MAX_INTERVAL_S, lambda lens: Needy(), drop_privileges=kept.append) as session:
        assert attached(session) is None
    assert kept == [frozenset({2, 19})]
