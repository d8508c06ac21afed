# SPDX-License-Identifier: Apache-2.0
"""The CPU priority with which nettop gets through while the CPUs are full.

Imports next to nothing: the priority is raised before anything else is imported, which takes seconds on full CPUs.
"""

import os

NICE = -20
"""nettop's nice value, inherited by its threads: up to 81 % of a CPU beside 20 busy threads, of which it needs a tenth.
At -10 it would be 32 %, and the first rows five times as late."""
REFUSED = "normal: CAP_SYS_NICE is missing"
state = "normal"
"""The priority with which nettop started, in words."""
_AUTOGROUP = "/proc/self/autogroup"
_is_raised = False
_session: int | None = None
"""Descriptor of the raised session's nice value: only root may open it, and nettop becomes another user."""


def raise_priority() -> None:
    """Run before processes of normal priority. Respect a nice value that was chosen, and a kernel that refuses.

    If the kernel shares the CPUs by session (the sysctl kernel.sched_autogroup_enabled), nice values only count within
    one. Then the session is raised too, with all that runs in it, until `restore_priority`; but not that of the
    shell from which sudo started nettop, unless sudo gave it a session of its own (use_pty).
    """
    global _is_raised, _session, state  # noqa: PLW0603
    if chosen := os.getpriority(os.PRIO_PROCESS, 0):
        state = f"nice {chosen}, as chosen"
        return
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except OSError:
        state = REFUSED
        return
    _is_raised, state = True, f"nice {NICE}"
    if os.getsid(0) not in (os.getpid(), os.getppid()):
        return
    try:
        session = os.open(_AUTOGROUP, os.O_RDWR | os.O_CLOEXEC)
        if os.read(session, 80).endswith(b" nice 0\n"):
            os.write(session, str(NICE).encode())
            _session, state = session, f"{state}, also of the session"
        else:
            os.close(session)
    except OSError:  # the kernel has no such groups, or a container may not change them
        return


def restore_priority() -> None:
    """Undo `raise_priority`, for the calling thread and the session."""
    from contextlib import suppress  # not before the priority is raised

    global _is_raised, _session  # noqa: PLW0603
    if _is_raised:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        _is_raised = False
    if _session is not None:
        with suppress(OSError):  # another nettop's write, less than 0.1 s ago
            os.write(_session, b"0")
        os.close(_session)
        _session = None
