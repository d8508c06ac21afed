# SPDX-License-Identifier: Apache-2.0
"""The hooks behind the events: the best mechanism that this kernel supports, each checked with traffic of nettop's."""

from __future__ import annotations

import itertools
import os
import socket
import sys
from collections.abc import Iterable

import numpy as np

from nettop.errors import NettopError
from nettop.kernel import bpf, kprobes, maps
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import ChosenMechanisms, Fallbacks, Mechanism, Refused, attach_best
from nettop.kernel.program import Loader, Program
from nettop.snapshots.connections import HOOK_ACCEPTS, HOOK_EVENTS, HOOK_ROUTES
from nettop.snapshots.snapshot import HookStatus

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
FOLLOW_HOOKS = ("tp_btf__sched_process_fork", "tp_btf__sched_process_free")
PROBED = ("entry__", "return__")
"""How the names of programs begin that run at probes of kernel functions."""
_NO_EVENTS = "there are no events that it could add to"
_CHECK_ATTEMPTS = 2
_NEVER_CALLED = "attached, but never called by the check's traffic"


def event_programs() -> tuple[str, ...]:
    """The programs of every mechanism, each once."""
    mechanisms = itertools.chain.from_iterable(fallbacks.mechanisms for fallbacks in FALLBACKS)
    return tuple(dict.fromkeys(name for mechanism in mechanisms for name in mechanism.programs))


def check_slots() -> dict[str, int]:
    """Where in the map `hook_check` each program notes that it was called. The nested program need not be."""
    return {name: slot for slot, name in enumerate((name for name in event_programs() if name != NESTED), 1)}


def unavailable(why: str) -> tuple[HookStatus, ...]:
    """The status of every hook where it has no mechanism."""
    return tuple(
        HookStatus(fallbacks.hook.name, None, ((fallbacks.mechanisms[0].name, why),), fallbacks.hook.fields)
        for fallbacks in FALLBACKS
    )


class EventHooks:
    """The attached programs; closing detaches them.

    `statuses` says which mechanism each hook uses, `gaps` what else could not be done, by name, and why.
    """

    def __init__(
        self, program: Program, loader: Loader, chosen: ChosenMechanisms, check: HookCheck | None
    ) -> None:
        self._program = program
        self._loader = loader
        self._links: dict[str, int] = {}
        self.gaps: dict[str, str] = {}
        self._check = check if check is not None and self._make_traffic(check) is not None else None
        if self._check is not None:
            self._leave_out(self._check.inode())
        events, *others = FALLBACKS
        status = attach_best(events, self._take, chosen)
        self.works = status.mechanism is not None
        if self.works:
            self.statuses = (status, *(attach_best(fallbacks, self._take, chosen) for fallbacks in others))
        else:
            self.statuses = (status, *unavailable(_NO_EVENTS)[1:])
        if program.functions.keys() & set(FOLLOW_HOOKS):
            try:
                self._take(Mechanism("children", FOLLOW_HOOKS))
            except OSError as error:
                self.gaps["children"] = f"not followed: {error.strerror}"
        if self._check is not None:
            self._leave_out(0)  # the number of a namespace that is gone may be given to another one
        program.unload_all_but([link.split()[0] for link in self._links])

    def skipped(self) -> int:
        """How often the kernel skipped a program because it was running on that CPU already: the first one for changes
        of state, which the nested one may have replaced, and those at the end of connect()."""
        return sum(
            bpf.recursion_misses(self._program.functions[name])
            for name in {link.split()[0] for link in self._links}
            if name == CHANGES or "_connect" in name
        )

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._detach(list(self._links))

    # --- attaching ------------------------------------------------------------------------------------------

    def _take(self, mechanism: Mechanism) -> None:
        """Attach a mechanism's programs and see them called. Raises NettopError or OSError where that fails, and leaves
        none of them attached."""
        before = set(self._links)
        try:
            for name in mechanism.programs:
                self._attach(name)
            self._require_calls(mechanism)
        except BaseException:
            self._detach(self._links.keys() - before)
            raise

    def _attach(self, name: str) -> None:
        """Attach a program: by a link of its name, or by a probe at each spelling of the function."""
        if name not in self._program.functions:
            raise Refused(self._program.refused[name])
        program = self._program.functions[name]
        if not name.startswith(PROBED):
            self._links[name] = bpf.attach_tracing(program)
            return
        probes = self._loader.open_probes(name.partition("__")[2], name.startswith("return__"))
        self._links |= {f"{name} {symbol}": probe for symbol, probe in probes.items()}
        for probe in probes.values():
            kprobes.run_at(probe, program)

    def _detach(self, links: Iterable[str]) -> None:
        for name in links:
            os.close(self._links.pop(name))

    # --- the check ------------------------------------------------------------------------------------------

    def _leave_out(self, namespace: int) -> None:
        """Have the programs ignore the traffic of the check's network namespace; 0 for none."""
        bpf.set_element(self._program.maps["hook_check"], bytes(4), namespace.to_bytes(8, sys.byteorder))

    def _make_traffic(self, check: HookCheck) -> frozenset[int] | None:
        """Traffic in the check's namespace, once more where it failed: a busy host answers late. Returns its address
        families, or None where hooks cannot be checked; they are then attached unchecked."""
        for _ in range(_CHECK_ATTEMPTS):
            try:
                return check.make_traffic()
            except (NettopError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
        self.gaps["hooks"] = f"not checked: {why}"
        return None

    def _require_calls(self, mechanism: Mechanism) -> None:
        """Raise Refused for a mechanism of which a program was not called by traffic that has to pass it.

        Until the first reading of the table no hook at messages skips a connection, and so not now.
        """
        if self._check is None or not check_slots().keys() & set(mechanism.programs):
            return
        families = self._make_traffic(self._check)
        if families is None:
            return
        _, called = maps.read_all(self._program.maps["hook_check"], np.dtype("u4"), np.dtype("u8"))
        silent = [
            name.partition("__")[2]
            for name, slot in check_slots().items()
            if name in mechanism.programs
            and not called[slot]
            and (socket.AF_INET6 in families or "tcp_v6" not in name)
        ]
        if silent:
            raise Refused(_NEVER_CALLED + (f": {', '.join(silent)}" if len(mechanism.programs) > 1 else ""))
