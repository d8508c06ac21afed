# SPDX-License-Identifier: Apache-2.0
"""Attaches the programs of mechanisms, each checked with traffic of nettop's own."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping

import numpy as np

from nettop.errors import NettopError
from nettop.kernel import bpf, kprobes, maps
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import Fallbacks, Mechanism, Refused
from nettop.kernel.program import Loader, Program
from nettop.snapshots.hooks import HookStatus

PROBED = ("entry__", "return__")
"""How the names of programs begin that run at probes of kernel functions."""
_CHECK_ATTEMPTS = 2
_NEVER_CALLED = "attached, but never called by the check's traffic"


def program_names(all_fallbacks: Iterable[Fallbacks]) -> tuple[str, ...]:
    """The programs of every mechanism, each once."""
    return tuple(
        dict.fromkeys(
            name
            for fallbacks in all_fallbacks
            for mechanism in fallbacks.mechanisms
            for name in mechanism.programs
        )
    )


def slots_of(names: Iterable[str]) -> dict[str, int]:
    """Where in the map `hook_check` each of these programs notes that it was called."""
    return {name: slot for slot, name in enumerate(names, 1)}


def unavailable(all_fallbacks: Iterable[Fallbacks], error: NettopError) -> tuple[HookStatus, ...]:
    """The status of every hook where it has no mechanism, because of an error."""
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
    """The attached programs; closing detaches them. `slots` says which of them have to be seen called.

    They ignore the check's traffic until `finish`, which is to be called when no more of it will come. `gaps` is what
    could not be done beyond the hooks, by name, and why.
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
            self._leave_out(self._check.inode())

    def finish(self) -> None:
        """Unload what is not attached, and ignore nothing any more."""
        if self._check is not None:
            self._leave_out(0)  # the number of a namespace that is gone may be given to another one
        self._program.unload_all_but([link.split()[0] for link in self._links])

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._detach(list(self._links))

    # --- attaching ------------------------------------------------------------------------------------------

    def take(self, mechanism: Mechanism) -> None:
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
