# SPDX-License-Identifier: Apache-2.0
"""The hooks behind the events: the best mechanism that this kernel supports, each checked with traffic of nettop's."""

from __future__ import annotations

from nettop.kernel import bpf
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import ChosenMechanisms, Fallbacks, Mechanism, Refused, attach_best
from nettop.kernel.program import Loader, Program
from nettop.probes.connections.hooks import Hooks, program_names, slots_of, unavailable
from nettop.snapshots.connections import CHILDREN, HOOK_ACCEPTS, HOOK_EVENTS, HOOK_ROUTES

CHANGES = "tp_btf__inet_sock_set_state"
NESTED = "tp_btf__nested@inet_sock_set_state"
"""Handles a change of state when the kernel skips the first program, because that is running on this CPU already."""

_MESSAGES = (
    Mechanism(
        "tp_btf/sock_send_length + sock_recv_length", ("tp_btf__sock_send_length", "tp_btf__sock_recv_length")
    ),
    Mechanism("tp_btf/tcp_rcv_space_adjust", ("tp_btf__tcp_rcv_space_adjust",)),
)
"""Every message passes the former (since 6.3), every read the latter."""

# No fallback gives the same events: a plain raw tracepoint may not ask for the cookie that joins an event and a row,
# and a probe at tcp_set_state sees neither the cookie nor changes made without that function.
FALLBACKS = (
    Fallbacks(HOOK_EVENTS, (Mechanism("tp_btf/inet_sock_set_state", (CHANGES, NESTED)),)),
    Fallbacks(
        HOOK_ACCEPTS,
        (
            # The process that accepts may leave the connection to another one: the first message shows which.
            *(
                Mechanism(
                    f"fexit/inet_csk_accept + {messages.name}",
                    ("fexit__inet_csk_accept", *messages.programs),
                )
                for messages in _MESSAGES
            ),
            *_MESSAGES,
            # No hook: the next reading of the table finds the owner, or else it is who closes the connection.
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
"""Finds the process that is followed, when it is run."""
FOLLOW_HOOKS = ("tp_btf__sched_process_fork", "tp_btf__sched_process_free")
_NO_EVENTS = "there are no events that it could add to"


def event_programs() -> tuple[str, ...]:
    """The programs of every mechanism, each once."""
    return program_names(FALLBACKS)


def check_slots() -> dict[str, int]:
    """Where in the map `hook_check` each program notes that it was called. The nested program need not be."""
    return slots_of(name for name in event_programs() if name != NESTED)


class EventHooks(Hooks):
    """The attached programs of the events; `statuses` says which mechanism each hook uses."""

    def __init__(
        self, program: Program, loader: Loader, chosen: ChosenMechanisms, check: HookCheck | None
    ) -> None:
        super().__init__(program, loader, check, check_slots())
        events, *others = FALLBACKS
        status = attach_best(events, self.take, chosen)
        self.works = status.mechanism is not None
        if self.works:
            self.statuses = (status, *(attach_best(fallbacks, self.take, chosen) for fallbacks in others))
        else:
            self.statuses = (status, *unavailable(others, Refused(_NO_EVENTS)))
        if program.functions.keys() & set(FOLLOW_HOOKS):
            try:
                self.take(Mechanism("children", FOLLOW_HOOKS))
            except OSError as error:
                self.gaps[CHILDREN] = f"not followed: {error.strerror}"

    def skipped(self) -> int:
        """How often the kernel skipped a program because it was running on that CPU already: the first one for changes
        of state, which the nested one may have replaced, and those at the end of connect()."""
        return sum(
            bpf.recursion_misses(self._program.functions[name])
            for name in {link.split()[0] for link in self._links}
            if name == CHANGES or "_connect" in name
        )
