# SPDX-License-Identifier: Apache-2.0
"""Attachment of BPF programs, checked with nettop's own traffic."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping

import numpy as np

from nettop.errors import NettopError
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import kprobes, maps
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, Refused
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.net.hook_check import HookCheck
from nettop.snapshots.hooks import HookStatus

PROBED = ("entry__", "return__")
"""Name prefixes of programs that run at kprobes."""
_CHECK_ATTEMPTS = 2
_NEVER_CALLED = "attached, but never called by the check's traffic"


def program_names(all_fallbacks: Iterable[Fallbacks]) -> tuple[str, ...]:
    """Return the programs of all mechanisms, without duplicates."""
    return tuple(
        dict.fromkeys(
            name
            for fallbacks in all_fallbacks
            for mechanism in fallbacks.mechanisms
            for name in mechanism.programs
        )
    )


def slots_of(names: Iterable[str]) -> dict[str, int]:
    """Map each program to the slot of `hook_check` where it records its calls."""
    return {name: slot for slot, name in enumerate(names, 1)}


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
    """Attached programs; closing detaches them. The check must see those in `slots` called.

    All programs ignore the check's traffic until `finish`, which must be called after the last of it. `gaps` maps other
    failures to their reasons.
    """

    def __init__(
        self, program: Program, loader: Loader, check: HookCheck | None, slots: Mapping[str, int]
    ) -> None:
        self._program = program
        self._loader = loader
        self._slots = slots
        self._links: dict[str, int] = {}
        self.gaps: dict[str, str] = {}
        self._check = check if check is not None and self._make_traffic(check) is not None else None
        if self._check is not None:
            self._ignore(self._check.inode())

    def finish(self) -> None:
        """Unload programs that are not attached, and stop ignoring the check's traffic."""
        if self._check is not None:
            self._ignore(0)  # the inode number of a namespace may be reused
        self._program.keep_only([link.split()[0] for link in self._links])

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        self._detach(list(self._links))

    # --- attaching ------------------------------------------------------------------------------------------

    def attach(self, mechanism: Mechanism) -> None:
        """Attach a mechanism's programs and require that they are called.

        Raises NettopError or OSError if that fails; then none is attached.
        """
        before = set(self._links)
        try:
            for name in mechanism.programs:
                self._attach(name)
            self._require_calls(mechanism)
        except BaseException:
            self._detach(self._links.keys() - before)
            raise

    def _attach(self, name: str) -> None:
        """Attach a program by a link, or by a probe at each symbol of the function."""
        if name not in self._program.functions:
            raise Refused(self._program.refused[name])
        program = self._program.functions[name]
        if not name.startswith(PROBED):
            self._links[name] = bpf.attach_tracing(program)
            return
        probes = self._loader.open_probes(name.partition("__")[2], name.startswith("return__"))
        self._links |= {f"{name} {symbol}": probe for symbol, probe in probes.items()}
        for probe in probes.values():
            kprobes.attach_program(probe, program)

    def _detach(self, links: Iterable[str]) -> None:
        for name in links:
            os.close(self._links.pop(name))

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

        Hooks at messages skip connections only after the first reading of the table, so not yet.
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
            and not called[slot]
            and (socket.AF_INET6 in families or "v6" not in name)
        ]
        if silent:
            raise Refused(_NEVER_CALLED + (f": {', '.join(silent)}" if len(mechanism.programs) > 1 else ""))
