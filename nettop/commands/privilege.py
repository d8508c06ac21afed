# SPDX-License-Identifier: Apache-2.0
"""The user and the capabilities that nettop runs with, and when it drops the rest.

nettop starts in one thread. There it becomes the user who called it, and keeps the capabilities that starting takes.
The main thread then drops those. The sampler's thread drops them when the first lens has started, before it reads:
no text that others wrote is parsed with a capability that is not kept for good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nettop.commands.invoker import User, become, caller, impossible_caller, may
from nettop.errors import PermissionMissing
from nettop.interrupts import undisturbed
from nettop.limits import set_up_process
from nettop.snapshots.safe_text import safe_text

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.snapshots.source import Source

_READABLE = "install nettop where everybody may read it (/opt/nettop), or run it as another user than root"


@dataclass(frozen=True, slots=True)
class Rights:
    """The user to run as (None: the one who started nettop), and what nettop needs capabilities for.

    `on_screen`: for nothing; screens have no place for warnings. `later_lenses`: to load further lenses when the first
    one is read. `follow_namespaces`: to enter network namespaces that
    appear later. `program_statistics`: to have the kernel measure BPF programs as long as the session is open, at
    some 50 ns for each run of each program on the host.
    """

    user: User | None = None
    on_screen: bool = False
    later_lenses: bool = False
    follow_namespaces: bool = False
    program_statistics: bool = False


@contextmanager
def opened_session(
    interval_s: float,
    source_of: Callable[[str], Source] | None,
    rights: Rights,
    **options: Any,
) -> Iterator[Session]:
    """A session, with no more rights than it needs; `options` are those of Session. Open it while there is one thread.

    `source_of` makes the source of a lens; None: the probes, which alone need rights. With other sources nothing is
    dropped.
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
        from nettop.kernel.facts import Host
        from nettop.kernel.program import no_loading

    Host().require_own_pids()
    privileges.use_permitted()
    warning = why_still_root(rights.user)
    if warning and not rights.on_screen and sys.stderr is not None:
        sys.stderr.write(safe_text(warning) + "\n")
    set_up_process()
    with ExitStack() as resources:
        if rights.program_statistics:
            options["open_statistics"] = _open_statistics(resources)
        become_user(rights.user)
        drop_privileges = partial(_drop_privileges, rights, resources=resources)
        with Session(interval_s, probe_of, drop_privileges=drop_privileges, **options) as session:
            privileges.keep_only(privileges.NOTHING)
            try:
                yield session
            finally:
                resources.enter_context(no_loading())  # the session does not wait for a compiler


def give_up_privileges(user: User | None) -> None:
    """Become the user (None: stay who we are), without any capability. Call it while there is one thread.

    Raises PermissionMissing where that is not possible.
    """
    from nettop.kernel import privileges

    _refuse_to_stay_root(user)
    become_user(user)
    privileges.keep_only(privileges.NOTHING)


def refuse_root_for_caller() -> None:
    """Raise PermissionMissing where nettop would stay root though it was called through sudo: files that the command
    line names are opened as who called it.
    """
    _refuse_to_stay_root(caller())


def _refuse_to_stay_root(user: User | None) -> None:
    if user is not None and (why := _why_not_become(user)):
        raise PermissionMissing(f"nettop would stay root: {why}", _READABLE)


def _open_statistics(resources: ExitStack) -> Callable[[], int]:
    """Have the kernel measure BPF programs until `resources` are closed.

    Returns what gives further descriptors of that, or raises the kernel's OSError.
    """
    from nettop.kernel import bpf

    try:
        descriptor = bpf.open_statistics()
    except OSError:
        return bpf.open_statistics  # refused later too, when privileges have been dropped
    resources.callback(os.close, descriptor)
    return partial(os.dup, descriptor)


def why_still_root(user: User | None) -> str | None:
    """Why nettop stays root though sudo says who called it; None where it becomes `user`, or is not root."""
    if os.geteuid():
        return None
    why = impossible_caller() if user is None else _why_not_become(user)
    return why and f"nettop stays root, without capabilities: {why}"


@contextmanager
def explaining(still_root: str | None, remedy: str) -> Iterator[None]:
    """Explain a missing permission by the reason why nettop is `still_root` (see `why_still_root`), if there is one."""
    try:
        yield
    except PermissionMissing as error:
        if still_root is None or not isinstance(error.__cause__, PermissionError):
            raise
        raise PermissionMissing(f"{error.what}: {still_root}", remedy) from error


def _why_not_become(user: User) -> str | None:
    """Why nettop cannot run as the user. What it imports or starts later is read as that user."""
    from nettop.kernel import privileges

    if not (privileges.held() >= privileges.CHANGING_USER and may(user, os.F_OK, Path("/"))):
        return f"it may not become uid {user.uid}, which takes CAP_SETUID and CAP_SETGID"
    for place in (Path(__file__).parent, Path(sys.executable), Path(os.__file__).parent):
        for part in (*reversed(place.absolute().parents), place):
            if not may(user, (os.R_OK if part == place else 0) | os.X_OK, part):
                return f"uid {user.uid} may not read {part}"
    return None


def become_user(user: User | None) -> None:
    """Become the user, where that is possible, and keep only the capabilities that starting takes."""
    from nettop.kernel import privileges

    if user is not None and _why_not_become(user) is None:
        privileges.keep_only(privileges.STARTING | privileges.CHANGING_USER | privileges.LOWERING)
        with privileges.kept_over_change_of_user():
            become(user)
    # After the last change of user, each of which makes the process dumpable again (commit_creds in kernel/cred.c).
    privileges.refuse_tracing()
    privileges.keep_only(privileges.STARTING)


def _drop_privileges(rights: Rights, needed: frozenset[int], *, resources: ExitStack) -> None:
    """Open what only a privileged thread may open, then drop all capabilities of the sampler's thread but a few.

    `needed` are capabilities that the lens's own readings take; what is opened is closed with `resources`.
    """
    from nettop.kernel import privileges
    from nettop.kernel.entered_namespaces import shared_namespaces
    from nettop.kernel.net_loader import open_net_loader
    from nettop.kernel.perf_events import open_clocks
    from nettop.kernel.symbols import open_symbols

    kept = privileges.for_reading() | needed
    if rights.later_lenses:
        kept |= privileges.for_loading()
        resources.enter_context(open_clocks())
        resources.enter_context(open_net_loader())
    if rights.follow_namespaces:
        kept |= privileges.ENTERING
    namespaces = shared_namespaces()  # kept to the end: lenses that come and go use the same threads
    resources.callback(namespaces.close)
    namespaces.enter()
    open_symbols()
    if not rights.follow_namespaces:
        namespaces.stop_entering()
    namespaces.watch(kept)
    privileges.keep_only(kept)
