# SPDX-License-Identifier: Apache-2.0
"""The user and the capabilities that nettop runs with, and the steps in which it drops the others.

nettop starts with one thread. It becomes the user who called it and keeps only the capabilities needed to start. The
main thread then drops those. The sampler thread drops them once the first lens has started, before the first reading:
no thread that holds a temporary capability parses untrusted text.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nettop.commands.compile import compile_in_background
from nettop.commands.invoker import (
    User,
    become,
    caller,
    file_owner,
    has_access,
    invalid_caller,
    invoking_user,
)
from nettop.commands.options import SourceOf
from nettop.errors import PermissionMissing
from nettop.process.importing import importing
from nettop.snapshots.safe_text import safe_text

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.kernel.host.facts import Host
    from nettop.settings.shared import Watching

_READABLE = "install nettop where every user may read it (/opt/nettop), or run it as a user other than root"


@contextmanager
def open_session(
    interval_s: float,
    source_of: SourceOf,
    user: User | None = None,
    *,
    on_screen: bool = False,
    follow_namespaces: bool = False,
    program_statistics: bool = False,
    ask_firewall: bool = False,
    **options: Any,
) -> Iterator[Session]:
    """Open a session as this user (None: the current one) with the privileges it needs and no more, while there is only
    one thread. `options` are those of Session.

    `source_of` creates the source of a lens; None uses the probes. Only the probes need privileges: with other sources
    none are dropped. Screens load more lenses after the first reading, and have no place for warnings.
    `follow_namespaces` enters network namespaces created later. `program_statistics` lets the kernel measure BPF
    programs while the session is open, at a cost of some 50 ns for each run of each program on the host; the option
    `max_overhead` implies that. `ask_firewall` keeps a thread that may ask for the rules of nftables.
    """
    with importing():
        from nettop.engine.session import Session
        from nettop.engine.source import probe_of

    if source_of is not None:
        with Session(interval_s, source_of, is_local=False, **options) as session:
            yield session
        return
    with importing():
        from nettop.commands.config import report_preferences
        from nettop.kernel.bpf.compiling import no_loading
        from nettop.kernel.host import privileges
        from nettop.kernel.host.facts import Host

    if not on_screen:  # the screens have loaded them
        report_preferences()
    host = Host()
    host.require_own_pids()
    privileges.use_permitted()
    warning = why_still_root(user)
    if warning and not on_screen and sys.stderr is not None:
        sys.stderr.write(safe_text(warning) + "\n")
    with ExitStack() as resources:
        compile_in_background(resources)
        if program_statistics or options.get("max_overhead") is not None:
            options["open_statistics"] = _open_statistics(resources)
        become_user(user)
        options["drop_privileges"] = _Drop(host, resources, on_screen, follow_namespaces, ask_firewall)
        with Session(interval_s, partial(probe_of, host=host), **options) as session:
            privileges.keep_only(privileges.NOTHING)
            try:
                yield session
            finally:
                resources.enter_context(no_loading())  # closing the session must not wait for a compiler


def open_watching(
    settings: Watching, source_of: SourceOf, user: User | None, **options: Any
) -> AbstractContextManager[Session]:
    """Open a session as the settings say; see `open_session`."""
    _, interval_s = settings.watched()
    return open_session(
        interval_s,
        source_of,
        user,
        follow_namespaces=settings.follow_namespaces,
        max_overhead=settings.max_overhead,
        **options,
    )


def give_up_privileges(user: User | None) -> None:
    """Become the user (None: no change) and drop all capabilities. Call it while there is only one thread.

    Raise PermissionMissing if that is not permitted.
    """
    from nettop.kernel.host import privileges

    _refuse_to_stay_root(user)
    become_user(user)
    privileges.keep_only(privileges.NOTHING)


def owner_of_output(path: Path | None) -> User | None:
    """Return the user to become: who should own what is written to `path`, or the caller of sudo if that is None. The
    current user is None.

    Raise PermissionMissing if nettop would stay root under sudo: files named on the command line must be opened as the
    caller; and as `file_owner` does.
    """
    if path is None:
        return invoking_user()
    refuse_root_for_caller()
    return file_owner(path)


def refuse_root_for_caller() -> None:
    """Raise PermissionMissing if nettop would stay root under sudo: files named on the command line must be opened as
    the caller.
    """
    _refuse_to_stay_root(caller())


def _refuse_to_stay_root(user: User | None) -> None:
    if user is not None and (why := _why_not_become(user)):
        raise PermissionMissing(f"nettop would stay root: {why}", _READABLE)


def _open_statistics(resources: ExitStack) -> Callable[[], int]:
    """Let the kernel measure BPF programs until `resources` are closed.

    Return a function that opens further descriptors of these statistics, or raises the kernel's OSError.
    """
    from nettop.kernel import bpf_syscall as bpf

    try:
        descriptor = bpf.open_statistics()
    except OSError:
        return bpf.open_statistics  # will also fail later, after privileges are dropped
    resources.callback(os.close, descriptor)
    return partial(os.dup, descriptor)


def why_still_root(user: User | None) -> str | None:
    """Return why nettop stays root under sudo; None if it becomes `user`, or is not root."""
    if os.geteuid():
        return None
    why = invalid_caller() if user is None else _why_not_become(user)
    return why and f"nettop stays root, without capabilities: {why}"


@contextmanager
def explain_root(user: User | None, source_of: SourceOf, otherwise: str) -> Iterator[None]:
    """Add to a missing permission why nettop stays root instead of becoming the user, if it does, and a remedy: what to
    do `otherwise` than to install it elsewhere. Enter it before nettop becomes the user."""
    still_root = why_still_root(user) if source_of is None else None
    try:
        yield
    except PermissionMissing as error:
        if still_root is None or not isinstance(error.__cause__, PermissionError):
            raise
        remedy = f"install nettop where every user may read it (/opt/nettop), or\n{otherwise}"
        raise PermissionMissing(f"{error.what}: {still_root}", remedy) from error


def _why_not_become(user: User) -> str | None:
    """Return why nettop cannot run as the user, who must be able to read files it imports or executes later."""
    from nettop.kernel.host import privileges

    if not (privileges.held() >= privileges.CHANGING_USER and has_access(user, os.F_OK, Path("/"))):
        return f"changing to uid {user.uid} requires CAP_SETUID and CAP_SETGID"
    for place in (Path(__file__).parent, Path(sys.executable), Path(os.__file__).parent):
        for part in (*reversed(place.absolute().parents), place):
            if not has_access(user, (os.R_OK if part == place else 0) | os.X_OK, part):
                return f"uid {user.uid} may not read {part}"
    return None


def become_user(user: User | None) -> None:
    """Become the user if possible, and keep only the capabilities needed to start."""
    from nettop.kernel.host import privileges

    if user is not None and _why_not_become(user) is None:
        privileges.keep_only(privileges.STARTING | privileges.CHANGING_USER | privileges.DROPPING_BOUNDING)
        with privileges.keep_across_setuid():
            become(user)
    # After the last change of user: each makes the process dumpable again (commit_creds in kernel/cred.c).
    privileges.refuse_tracing()
    privileges.keep_only(privileges.STARTING)


class _Drop(NamedTuple):
    """Opens privileged descriptors, then drops the capabilities that the sampler thread no longer needs.

    `host` keeps the descriptors until `resources` are closed.
    """

    host: Host
    resources: ExitStack
    later_lenses: bool
    follow_namespaces: bool
    ask_firewall: bool

    def __call__(self, needed: frozenset[int]) -> None:
        """Drop them, but those that the lens needs for reading."""
        from nettop.kernel.bpf.perf_events import open_clocks
        from nettop.kernel.bpf.program import open_net_loader
        from nettop.kernel.bpf.symbols import open_symbols
        from nettop.kernel.host import privileges
        from nettop.kernel.net.entered_namespaces import shared_namespaces
        from nettop.kernel.net.nf_rules import open_asker

        kept = privileges.for_reading() | needed
        if self.later_lenses:
            kept |= privileges.for_loading()
            self.host.kept.clocks = self.resources.enter_context(open_clocks())
            self.resources.enter_context(open_net_loader(self.host))
        if self.ask_firewall:
            self.resources.enter_context(open_asker(self.host))
        if self.follow_namespaces:
            kept |= privileges.ENTERING
        namespaces = shared_namespaces(self.host)  # kept until the end: all lenses share these threads
        self.resources.callback(namespaces.close)
        namespaces.enter()
        open_symbols(self.host)
        if not self.follow_namespaces:
            namespaces.stop_entering()
        namespaces.watch(kept)
        privileges.keep_only(kept)
