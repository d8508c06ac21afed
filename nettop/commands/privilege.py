# SPDX-License-Identifier: Apache-2.0
"""As whom a door runs, with which rights, and when the others are given up.

At the start, in the only thread there is, nettop becomes the user that called it and keeps what starting takes. The
main thread then gives up the rest; the one that reads does so when the first lens has started, before it reads: no
text that others wrote is handled with a right that is not kept for good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettop.commands.invoker import User, become, impossible_caller, may
from nettop.errors import PermissionMissing
from nettop.interrupts import undisturbed
from nettop.snapshots.safe_text import safe_text

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.snapshots.source import Source

OpenStatistics = Callable[[], int]
"""Gives a descriptor with which the kernel counts the runs of BPF programs, as long as it is open. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Rights:
    """As whom a door runs (None: who started it), and what it keeps the right to: to load lenses that are opened
    later, and to enter network namespaces that appear later."""

    user: User | None = None
    later_lenses: bool = False
    follow_namespaces: bool = False


@contextmanager
def opened_session(
    interval_s: float,
    source_of: Callable[[str], Source] | None,
    rights: Rights,
    **options: Any,
) -> Iterator[Session]:
    """A session, with rights no longer than needed; `options` are those of Session. Open it while there is one thread.

    `source_of` makes the source of a lens; the probes do if it is None. Only those need rights: with others nothing
    is given up.
    """
    with undisturbed():
        from nettop.engine.session import Session
        from nettop.engine.source import probe_of

    if source_of is not None:
        with Session(interval_s, source_of, **options) as session:
            yield session
        return
    with undisturbed():
        from nettop.kernel import privileges
        from nettop.kernel.limits import raise_open_files
        from nettop.kernel.memory import share_one_arena

    remark = stays_root(rights.user)
    if remark and not rights.later_lenses and sys.stderr is not None:  # the screens have no room for it
        sys.stderr.write(safe_text(remark) + "\n")
    raise_open_files()
    share_one_arena()
    _settle_as(rights.user, privileges.STARTING)
    with (
        ExitStack() as ends,
        Session(
            interval_s, probe_of, settled=lambda needed: _settle(rights, needed, ends), **options
        ) as session,
    ):
        privileges.keep_only(privileges.NOTHING)
        yield session


@contextmanager
def statistics_opener(user: User | None, *, by_keeper: bool) -> Iterator[OpenStatistics]:
    """What has the kernel count the runs of BPF programs, made while nettop has the right to.

    By a keeper (a process of its own, forked now: call it while there is one thread) only while somebody looks;
    otherwise from now on, until this is left.
    """
    with ExitStack() as ends:
        if by_keeper:
            from nettop.kernel.keeper import Keeper
            from nettop.kernel.privileges import CAP_SYS_ADMIN

            keeper = Keeper(lambda: _settle_as(user, frozenset({CAP_SYS_ADMIN})))
            yield ends.enter_context(closing(keeper)).open_statistics
        else:
            yield _copies_of_statistics(ends)


def _copies_of_statistics(ends: ExitStack) -> OpenStatistics:
    from nettop.kernel import bpf

    try:
        descriptor = bpf.open_statistics()
    except OSError as error:
        refusal = error

        def refuse() -> int:
            raise refusal

        return refuse
    ends.callback(os.close, descriptor)
    return lambda: os.dup(descriptor)


def stays_root(user: User | None) -> str | None:
    """Why nettop goes on as root though sudo names who called it; None where it becomes the `user`, or need not."""
    if os.geteuid():
        return None
    why = impossible_caller() if user is None else _why_not_become(user)
    return why and f"nettop stays root, without capabilities: {why}"


@contextmanager
def explaining(barred: str | None, remedy: str) -> Iterator[None]:
    """A permission that is missing while nettop stays root has that reason, `barred` (see `stays_root`), and this
    remedy."""
    try:
        yield
    except PermissionMissing as error:
        if barred is None or not isinstance(error.__cause__, PermissionError):
            raise
        raise PermissionMissing(f"{error.what}: {barred}", remedy) from error


def _why_not_become(user: User) -> str | None:
    """What stands against becoming the user: what is imported, or started, later is read as that user."""
    from nettop.kernel import privileges

    if not (privileges.held() >= privileges.CHANGING_USER and may(user, os.F_OK, Path("/"))):
        return f"it may not become uid {user.uid}, which takes CAP_SETUID and CAP_SETGID"
    for place in (Path(__file__).parent, Path(sys.executable), Path(os.__file__).parent):
        for part in (*reversed(place.absolute().parents), place):
            if not may(user, (os.R_OK if part == place else 0) | os.X_OK, part):
                return f"uid {user.uid} may not read {part}"
    return None


def _settle_as(user: User | None, kept: frozenset[int]) -> None:
    """Become the user, and keep only these capabilities. Where that user cannot be it stays who it is."""
    from nettop.kernel import privileges

    if user is not None and _why_not_become(user) is None:
        privileges.keep_only(kept | privileges.CHANGING_USER | privileges.LOWERING)
        with privileges.kept_over_change_of_user():
            become(user)
    # Each change of user, also for a moment, sets that anew (commit_creds in kernel/cred.c).
    privileges.refuse_tracing()
    privileges.keep_only(kept)


def _settle(rights: Rights, needed: frozenset[int], ends: ExitStack) -> None:
    """Open what takes rights that are not kept, and give those up: for the calling thread, the one that reads.

    `needed` are capabilities that the lens's own readings take; `ends` is what closes it when that thread has ended.
    """
    from nettop.kernel import privileges
    from nettop.kernel.namespaces import shared_namespaces
    from nettop.kernel.perf_events import open_clocks
    from nettop.kernel.symbols import open_symbols

    kept = privileges.for_reading() | needed
    if rights.later_lenses:
        kept |= privileges.for_loading()
        ends.enter_context(open_clocks())
    if rights.follow_namespaces:
        kept |= privileges.ENTERING
    namespaces = shared_namespaces()  # to the end: lenses that come and go use the same threads
    ends.callback(namespaces.close)
    namespaces.enter()
    open_symbols()
    if not rights.follow_namespaces:
        namespaces.settle()
    namespaces.watch(kept)
    privileges.keep_only(kept)
