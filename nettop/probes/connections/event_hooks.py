# SPDX-License-Identifier: Apache-2.0
"""The hooks that tell of events: ladders, climbed as this kernel offers them, and each hook tried out by traffic."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Collection, Iterable
from dataclasses import replace

import numpy as np

from nettop.errors import NettopError
from nettop.kernel import bpf, kprobes, maps
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import ChosenMechanisms, Fallbacks, Mechanism, Refused, attach_best
from nettop.kernel.program import Loader, Program
from nettop.snapshots.connections import HOOK_ACCEPTS, HOOK_EVENTS, HOOK_ROUTES
from nettop.snapshots.own_cost import LEFT_OUT
from nettop.snapshots.snapshot import HookStatus

_ACCEPTING = (
    Mechanism("fexit/inet_csk_accept", ("fexit__inet_csk_accept",)),
    # Of those that wait in accept() the kernel's pool of return probes leaves some out: they are found as
    # without this hook.
    Mechanism("kretprobe/inet_csk_accept", ("return__inet_csk_accept",)),
)
_USING = (
    Mechanism(
        "tp_btf/sock_send_length + sock_recv_length", ("tp_btf__sock_send_length", "tp_btf__sock_recv_length")
    ),
    Mechanism("tp_btf/tcp_rcv_space_adjust", ("tp_btf__tcp_rcv_space_adjust",)),
)
"""What every message passes (since 6.3), and every reading."""


def _both(one: Mechanism, other: Mechanism) -> Mechanism:
    return Mechanism(f"{one.name} + {other.name}", one.programs + other.programs)


CHANGES = "tp_btf__inet_sock_set_state"
STAND_IN = "tp_btf__stand_in@inet_sock_set_state"
"""Tells a change of state when the kernel skips the first program, because it is at work on this CPU already."""

# No lower way tells the same of events: a plain raw tracepoint may not ask for the cookie that joins an event
# and a row, and a probe at tcp_set_state sees neither the cookie nor changes made without that function.
FALLBACKS = (
    Fallbacks(HOOK_EVENTS, (Mechanism("tp_btf/inet_sock_set_state", (CHANGES, STAND_IN)),)),
    Fallbacks(
        HOOK_ACCEPTS,
        (
            # Who accepts may leave the connection to another process, a child of its own: the first message tells.
            *(_both(accepting, using) for accepting in _ACCEPTING for using in _USING),
            *_USING,
            # No hook: the next reading of the table finds out, or else who closes it.
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
"""How programs begin that run at probes of kernel functions."""
_SHED_IN_TURN = ((HOOK_ACCEPTS.name,), (HOOK_EVENTS.name, HOOK_ROUTES.name))
_NO_EVENTS = "there are no events that it could add to"
_TRIES = 2
_NEVER_CALLED = "attached, but never called in a trial"


def event_programs() -> tuple[str, ...]:
    """The programs of every way, each once."""
    return tuple(
        dict.fromkeys(
            name for fallbacks in FALLBACKS for way in fallbacks.mechanisms for name in way.programs
        )
    )


def marks() -> dict[str, int]:
    """Where in the map `trial` each program says that it was called; not the stand-in, which a trial need not call."""
    return {name: at for at, name in enumerate((one for one in event_programs() if one != STAND_IN), 1)}


def no_hooks(why: str) -> tuple[HookStatus, ...]:
    """How the points are had where the programs are not."""
    return tuple(_no_hook(fallbacks, why) for fallbacks in FALLBACKS)


def _no_hook(fallbacks: Fallbacks, why: str) -> HookStatus:
    return HookStatus(
        fallbacks.hook.name, None, ((fallbacks.mechanisms[0].name, why),), fallbacks.hook.fields
    )


def _ways(hook: HookStatus) -> tuple[Mechanism, ...]:
    return next(fallbacks.mechanisms for fallbacks in FALLBACKS if fallbacks.hook.name == hook.hook)


def _programs(hook: HookStatus) -> tuple[str, ...]:
    """The programs of the way that a point is had by."""
    return next((way.programs for way in _ways(hook) if way.name == hook.mechanism), ())


def _without(hook: HookStatus) -> HookStatus:
    """How the point is had meanwhile: by what takes no program, if anything."""
    spare = next((way.name for way in _ways(hook) if not way.programs), None)
    return replace(hook, mechanism=spare, refused=(*hook.refused, (str(hook.mechanism), LEFT_OUT)))


class EventHooks:
    """The attached programs; closing detaches them.

    `gaps` says what could not be done otherwise, by name, and why.
    """

    def __init__(
        self, program: Program, loader: Loader, asked: ChosenMechanisms, room: HookCheck | None
    ) -> None:
        self._program = program
        self._loader: Loader | None = loader
        self._links: dict[str, int] = {}
        self._left_out: list[dict[str, HookStatus]] = []
        self.gaps: dict[str, str] = {}
        self._room = self._open_room(room)
        self._hooks: dict[str, HookStatus] = {}
        for fallbacks in FALLBACKS:
            has_use = fallbacks.hook == HOOK_EVENTS or self.works
            self._hooks[fallbacks.hook.name] = (
                attach_best(fallbacks, self._take, asked) if has_use else _no_hook(fallbacks, _NO_EVENTS)
            )
        self._follow()
        self._leave_room()
        self._loader = None
        program.unload_all_but([link.split()[0] for link in self._links])

    @property
    def works(self) -> bool:
        """True where the kernel tells of changes at all."""
        return bool(self._links_of(HOOK_EVENTS.name))

    def hooks(self) -> tuple[HookStatus, ...]:
        """How each point of the events is had."""
        return tuple(self._hooks.values())

    def skipped(self) -> int:
        """How often the kernel skipped a program because it was at work on that CPU already: the first one for changes
        of state, for which the stand-in may have told, and those at the end of connect()."""
        programs = _programs(self._hooks[HOOK_EVENTS.name]) + _programs(self._hooks[HOOK_ROUTES.name])
        return sum(
            bpf.recursion_misses(self._program.functions[name]) for name in programs if name != STAND_IN
        )

    def shed(self) -> str | None:
        """Leave out what runs at each accept or message, then all; says what. None when nothing is left."""
        for points in _SHED_IN_TURN:
            before = {point: self._hooks[point] for point in points if self._links_of(point)}
            if before:
                for point in before:
                    self._detach(self._links_of(point))
                self._left_out.append(before)
                self._hooks |= {point: _without(hook) for point, hook in before.items()}
                return " and ".join(map(str, before.values()))
        return None

    def restore(self) -> str | None:
        """Attach again what was left out last, and say what; None where there is nothing, or the kernel refuses."""
        if not self._left_out:
            return None
        before = self._left_out[-1]
        try:
            self._attach_all([name for hook in before.values() for name in _programs(hook)])
        except (NettopError, OSError):
            return None
        self._hooks |= self._left_out.pop()
        return " and ".join(map(str, before.values()))

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._detach(list(self._links))

    # --- a way ----------------------------------------------------------------------------------------------

    def _take(self, way: Mechanism) -> None:
        """Attach a way's programs and see them called. Raises NettopError or OSError where that fails."""
        links = self._attach_all(way.programs)
        try:
            self._try_out(way)
        except BaseException:
            self._detach(links)
            raise

    def _attach_all(self, programs: Collection[str]) -> list[str]:
        """Attach programs, all or none; the names of what holds them."""
        for name in programs:
            if name not in self._program.functions:
                raise Refused(self._program.refused[name])
        links: list[str] = []
        try:
            for name in programs:
                links += self._attach(name)
        except BaseException:
            self._detach(links)
            raise
        return links

    def _attach(self, name: str) -> list[str]:
        """Attach a program: by a link of its name, or by a probe at each spelling of the function."""
        program = self._program.functions[name]
        if not name.startswith(PROBED):
            self._links[name] = bpf.attach_tracing(program)
            return [name]
        probes = {f"{name} {symbol}": probe for symbol, probe in self._open_probes(name).items()}
        self._links |= probes
        try:
            for probe in probes.values():
                kprobes.run_at(probe, program)
        except OSError:
            self._detach(list(probes))
            raise
        return list(probes)

    def _open_probes(self, name: str) -> dict[str, int]:
        """Probes for a program, by the function's spellings: by the loader, as long as that is there."""
        function, at_return = name.partition("__")[2], name.startswith("return__")
        if self._loader is not None:
            return self._loader.open_probes(function, at_return)
        return kprobes.open_probes(function, at_return)

    def _links_of(self, point: str) -> list[str]:
        programs = _programs(self._hooks[point])
        return [link for link in self._links if link.split()[0] in programs]

    def _detach(self, links: Iterable[str]) -> None:
        for name in links:
            os.close(self._links.pop(name))

    def _follow(self) -> None:
        """Attach what follows a process's children, where it was loaded."""
        try:
            self._attach_all(self._program.functions.keys() & set(FOLLOW_HOOKS))
        except OSError as error:
            self.gaps["children"] = f"not followed: {error.strerror}"

    # --- the trial ------------------------------------------------------------------------------------------

    def _open_room(self, room: HookCheck | None) -> HookCheck | None:
        """Have the programs leave the room's traffic out. Where there is no room, or nothing can be done in it, ways
        are taken as they are."""
        if room is None or self._make_traffic(room) is None:
            return None
        self._set_room(room.inode())
        return room

    def _leave_room(self) -> None:
        """The number of a namespace that is gone may be given to another one."""
        if self._room is not None:
            self._set_room(0)
        self._room = None

    def _set_room(self, inode: int) -> None:
        bpf.set_element(self._program.maps["trial"], bytes(4), inode.to_bytes(8, sys.byteorder))

    def _make_traffic(self, room: HookCheck) -> frozenset[int] | None:
        """Traffic in the room, once more where it failed: a busy host answers late. None: nothing can be tried out."""
        for _ in range(_TRIES):
            try:
                return room.make_traffic()
            except (NettopError, OSError) as error:
                why = getattr(error, "strerror", None) or str(error)
        self.gaps["hooks"] = f"not tried out: {why}"
        return None

    def _try_out(self, way: Mechanism) -> None:
        """Raise Refused for a way of which a program was not called by traffic that has to pass it.

        A hook at messages is open to all until the first reading of the table, and so in the trial.
        """
        if self._room is None or not way.programs:
            return
        families = self._make_traffic(self._room)
        if families is None:
            return
        _, called = maps.read_all(self._program.maps["trial"], np.dtype("u4"), np.dtype("u8"))
        silent = [
            name
            for name, mark in marks().items()
            if name in way.programs
            and not called[mark]
            and (socket.AF_INET6 in families or "tcp_v6" not in name)
        ]
        if silent:
            which = (
                "" if len(way.programs) == 1 else f": {', '.join(name.partition('__')[2] for name in silent)}"
            )
            raise Refused(_NEVER_CALLED + which)
