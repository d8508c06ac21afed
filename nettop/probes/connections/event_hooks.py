# SPDX-License-Identifier: Apache-2.0
"""Hooks that report the events: for each, the best mechanism of this kernel, checked with nettop's own traffic."""

from __future__ import annotations

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.mechanisms import ChosenMechanisms, Fallbacks, Mechanism, Refused, attach_best
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.connections.hooks import Hooks, program_names, slots_of, unavailable
from nettop.snapshots.connections import CHILDREN, HOOK_ACCEPTS, HOOK_EVENTS, HOOK_ROUTES

CHANGES = "tp_btf__inet_sock_set_state"
NESTED = "tp_btf__nested@inet_sock_set_state"
"""Program that handles a state change when the kernel skips the first one because it is already running on this CPU."""

_MESSAGES = (
    Mechanism(
        "tp_btf/sock_send_length + sock_recv_length", ("tp_btf__sock_send_length", "tp_btf__sock_recv_length")
    ),
    Mechanism("tp_btf/tcp_rcv_space_adjust", ("tp_btf__tcp_rcv_space_adjust",)),
)
"""Every message passes the first mechanism (since 6.3), every read the second."""

# No fallback gives the same events: a raw tracepoint cannot call the helper that returns the cookie, which joins an
# event to its row; a kprobe on tcp_set_state gets no cookie and misses changes made without that function.
FALLBACKS = (
    Fallbacks(HOOK_EVENTS, (Mechanism("tp_btf/inet_sock_set_state", (CHANGES, NESTED)),)),
    Fallbacks(
        HOOK_ACCEPTS,
        (
            # The accepting process may hand the connection to another; the first message shows which.
            *(
                Mechanism(
                    f"fexit/inet_csk_accept + {messages.name}",
                    ("fexit__inet_csk_accept", *messages.programs),
                )
                for messages in _MESSAGES
            ),
            *_MESSAGES,
            # No hook: the next reading of the table finds the owner; failing that, the owner is the process that
            # closes it.
            Mechanism("descriptors"),
        ),
    ),
    Fallbacks(
        HOOK_ROUTES,
        (
            Mechanism(
                "fexit/tcp_v4_connect + tcp_v6_connect", ("fexit__tcp_v4_connect", "fexit__tcp_v6_connect")
            ),
            Mechanism(
                "kprobe/tcp_v4_connect + tcp_v6_connect",
                (
                    *("entry__tcp_v4_connect", "return__tcp_v4_connect"),
                    *("entry__tcp_v6_connect", "return__tcp_v6_connect"),
                ),
            ),
        ),
    ),
)
FOLLOWED = "bpf_iter__task"
"""Program that finds the followed process; run once."""
FOLLOW_HOOKS = ("tp_btf__sched_process_fork", "tp_btf__sched_process_free")
_NO_EVENTS = "events are not available"


def event_programs() -> tuple[str, ...]:
    """Return the programs of all mechanisms, without duplicates."""
    return program_names(FALLBACKS)


def check_slots() -> dict[str, int]:
    """Map each program to the slot of `hook_check` where it records its calls, except the nested one, which may not
    run."""
    return slots_of(name for name in event_programs() if name != NESTED)


class EventHooks(Hooks):
    """Attached event programs; `statuses` says which mechanism each hook uses."""

    def __init__(
        self, program: Program, loader: Loader, chosen: ChosenMechanisms, check: HookCheck | None
    ) -> None:
        super().__init__(program, loader, check, check_slots())
        events, *others = FALLBACKS
        status = attach_best(events, self.attach, chosen)
        self.works = status.mechanism is not None
        if self.works:
            self.statuses = (status, *(attach_best(fallbacks, self.attach, chosen) for fallbacks in others))
        else:
            self.statuses = (status, *unavailable(others, Refused(_NO_EVENTS)))
        if program.functions.keys() & set(FOLLOW_HOOKS):
            try:
                self.attach(Mechanism("children", FOLLOW_HOOKS))
            except OSError as error:
                self.gaps[CHILDREN] = f"not followed: {error.strerror}"

    def skipped(self) -> int:
        """Return how often the kernel skipped a program because it was already running on that CPU.

        Counts the first program for state changes, for which the nested one may have run, and those at the end of
        connect().
        """
        return sum(
            bpf.recursion_misses(self._program.functions[name])
            for name in {link.split()[0] for link in self._links}
            if name == CHANGES or "_connect" in name
        )
