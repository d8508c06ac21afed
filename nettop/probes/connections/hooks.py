# SPDX-License-Identifier: Apache-2.0
"""Hooks of the events, and the attachment of BPF programs, checked with nettop's own traffic."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain

import numpy as np

from nettop.errors import NettopError
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.mechanisms import ChosenMechanisms, Fallbacks, Mechanism, Refused, attach_best
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.probe import attach_program
from nettop.snapshots.connections import HOOK_ACCEPTS, HOOK_EVENTS, HOOK_ROUTES
from nettop.snapshots.hooks import HookStatus

CHANGES = "tp_btf__inet_sock_set_state"
NESTED = "tp_btf__nested@inet_sock_set_state"
"""Program that handles a state change when the kernel skips the first one because it is already running on this CPU."""

BY_MESSAGES = Mechanism(
    "tp_btf/sock_send_length + sock_recv_length", ("tp_btf__sock_send_length", "tp_btf__sock_recv_length")
)
_MESSAGES = (BY_MESSAGES, Mechanism("tp_btf/tcp_rcv_space_adjust", ("tp_btf__tcp_rcv_space_adjust",)))
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
                    f"fexit/inet_csk_accept + {messages.name}", ("fexit__inet_csk_accept", *messages.programs)
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
        ),
    ),
)
FOLLOWED = "bpf_iter__task"
"""Program that finds the followed process; run once."""
FOLLOW_HOOKS = ("tp_btf__sched_process_fork", "tp_btf__sched_process_free")

_CHECK_ATTEMPTS = 2
_NEVER_CALLED = "attached, but never called by the check's traffic"


def slots_of(all_fallbacks: Iterable[Fallbacks]) -> dict[str, int]:
    """Map each program of these mechanisms to the slot of `hook_check` where it records its calls."""
    programs = (mechanism.programs for fallbacks in all_fallbacks for mechanism in fallbacks.mechanisms)
    return {name: slot for slot, name in enumerate(dict.fromkeys(chain.from_iterable(programs)), 1)}


def unavailable(all_fallbacks: Iterable[Fallbacks], error: NettopError) -> tuple[HookStatus, ...]:
    """Return the status of every hook when an error leaves it without a mechanism."""
    return tuple(
        HookStatus(
            fallbacks.hook.name,
            None,
            ((fallbacks.mechanisms[0].name, error.what),),
            fallbacks.hook.fields,
            error.remedy,
            error.exit_code,
        )
        for fallbacks in all_fallbacks
    )


class Hooks:
    """Attached programs: for each hook, the best mechanism of this kernel. Closing detaches them.

    The hooks after the first depend on it. `statuses` says which mechanism each hook uses, `gaps` maps other failures
    to their reasons. With a check, programs must be seen called; all ignore its traffic until `finish`, which must be
    called after the last of it.
    """

    def __init__(
        self,
        program: Program,
        all_fallbacks: Sequence[Fallbacks],
        *,
        loader: Loader,
        chosen: ChosenMechanisms,
        check: HookCheck | None,
    ) -> None:
        self._program = program
        self._loader = loader
        self._slots = slots_of(all_fallbacks)
        self._attached: dict[str, ExitStack] = {}
        self.gaps: dict[str, str] = {}
        self._check = check if check is not None and self._make_traffic(check) is not None else None
        if self._check is not None:
            self._ignore(self._check.inode())
        first, *others = all_fallbacks
        status = attach_best(first, self.attach, chosen)
        self.works = status.mechanism is not None
        if self.works:
            self.statuses = (status, *(attach_best(fallbacks, self.attach, chosen) for fallbacks in others))
        else:
            self.statuses = (status, *unavailable(others, Refused(f"{status.hook} are not available")))

    def finish(self) -> None:
        """Unload programs that are not attached, and stop ignoring the check's traffic."""
        if self._check is not None:
            self._ignore(0)  # the inode number of a namespace may be reused
        self._program.keep_only([*self._attached])

    def close(self) -> None:
        """Detach and unload; a second call is a no-op."""
        while self._attached:
            self._attached.popitem()[1].close()
        self._program.close()

    # --- attaching ------------------------------------------------------------------------------------------

    def attach(self, mechanism: Mechanism) -> None:
        """Attach a mechanism's programs and require that they are called.

        Raise NettopError or OSError if that fails; then none is attached.
        """
        with ExitStack() as opened:
            attached = {name: opened.enter_context(ExitStack()) for name in mechanism.programs}
            for name, of_program in attached.items():
                attach_program(self._program, self._loader, name, of_program)
            self._require_calls(mechanism)
            opened.pop_all()
        self._attached |= attached

    def has(self, mechanism: Mechanism) -> bool:
        """Return whether a mechanism's programs are attached."""
        return self._attached.keys() >= set(mechanism.programs)

    def detach(self, mechanism: Mechanism) -> None:
        """Detach a mechanism's programs."""
        for name in mechanism.programs:
            self._attached.pop(name).close()

    # --- the check ------------------------------------------------------------------------------------------

    def _ignore(self, namespace: int) -> None:
        """Make the programs ignore the traffic of this network namespace; 0 for none."""
        bpf.set_element(self._program.maps["hook_check"], bytes(4), namespace.to_bytes(8, sys.byteorder))

    def _make_traffic(self, check: HookCheck) -> frozenset[int] | None:
        """Make traffic in the check's namespace, with one retry: a busy host may answer late.

        Return its address families, or None if hooks cannot be checked; they are then attached unchecked.
        """
        for _ in range(_CHECK_ATTEMPTS):
            try:
                return check.make_traffic()
            except (NettopError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
        self.gaps["hooks"] = f"not checked: {why}"
        return None

    def _require_calls(self, mechanism: Mechanism) -> None:
        """Raise Refused if a program of the mechanism was not called by traffic that must pass it.

        Hooks at messages skip connections only after the first reading of the table, so not yet. The nested program
        runs only by chance.
        """
        if self._check is None or not self._slots.keys() & set(mechanism.programs):
            return
        families = self._make_traffic(self._check)
        if families is None:
            return
        _, called = maps.read_all(self._program.maps["hook_check"], np.dtype("u4"), np.dtype("u8"))
        silent = [
            name.partition("__")[2]
            for name, slot in self._slots.items()
            if name in mechanism.programs
            and name != NESTED
            and not called[slot]
            and (socket.AF_INET6 in families or "v6" not in name)
        ]
        if silent:
            raise Refused(_NEVER_CALLED + (f": {', '.join(silent)}" if len(mechanism.programs) > 1 else ""))
