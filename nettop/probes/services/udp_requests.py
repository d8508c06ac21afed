# SPDX-License-Identifier: Apache-2.0
"""UDP requests: those that wait, those that nobody answered, and the last question of each DNS service."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from contextlib import ExitStack, closing

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.iterator import Iterator
from nettop.kernel.bpf.program import Loader
from nettop.kernel.host.facts import Host
from nettop.kernel.host.privileges import LOADING_NET
from nettop.probes.services import udp_programs
from nettop.probes.services.dns_question import question_text
from nettop.probes.services.programs import SERVICES_MAX
from nettop.process.clocks import monotonic_ns
from nettop.snapshots.arrays import Array, Index, copy_columns, positions
from nettop.snapshots.services import HOOK_UDP_REQUESTS, TIMEOUT_S

_NUMBER = np.dtype("u8")
_TIMEOUT_NS = np.uint64(round(TIMEOUT_S * 1e9))


class UdpRequests:
    """The programs that time UDP requests, and what only the reader counts: requests that time out, or whose socket
    was closed."""

    def __init__(self, host: Host, loader: Loader, ports: Iterable[int]) -> None:
        """Load and attach the programs, with the loader that loaded those of slots.bpf.h.

        Raise Unsupported, PermissionMissing or OSError.
        """
        self.unanswered, self.unanswered_ns = np.zeros((2, SERVICES_MAX), np.uint64)
        """Requests that the reader has found to be unanswered, by their service's slot, and how long they waited."""
        with ExitStack() as opened:
            loader.call(host.require_capabilities, LOADING_NET, "programs for UDP requests")
            cgroup = _open_root_cgroup(host)
            opened.callback(os.close, cgroup)
            loader.request(udp_programs.program_text())
            self.program = opened.enter_context(closing(loader.answer()))
            self._questions = opened.enter_context(
                mmap.mmap(self.program.maps["questions"], SERVICES_MAX * udp_programs.QUESTION.itemsize)
            )
            self._set_ports(ports)
            for name in udp_programs.HOOKS:
                # Unlike other programs, the kernel attaches those for packets only with CAP_NET_ADMIN.
                link = loader.call(bpf.link, self.program.functions[name], bpf.CGROUP_HOOKS[name], cgroup)
                opened.callback(os.close, link)
                if name == udp_programs.LAST_BIND and udp_programs.WALK in self.program.functions:
                    with closing(Iterator(self.program.functions[udp_programs.WALK], _NUMBER)) as walk:
                        walk.read()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        self._opened.close()

    def _set_ports(self, ports: Iterable[int]) -> None:
        bits = np.zeros(1 << 16, np.uint8)
        bits[list(ports)] = 1
        words = np.packbits(bits, bitorder="little").view(np.uint64)
        for word in np.flatnonzero(words):
            bpf.set_element(self.program.maps["ports"], np.uint32(word).tobytes(), words[word].tobytes())

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self) -> Array:
        """Return the requests that wait: REQUEST_KEY and REQUEST in one row each. Count and remove the others.

        A request is over `TIMEOUT_S` after it was sent, or when its socket is closed. The programs count a response
        that comes later as unanswered too; whoever removes the request counts it.
        """
        cookies, closed_at = maps.read_all(self.program.maps["closed"], _NUMBER, _NUMBER)
        keys, requests = maps.read_all(
            self.program.maps["requests"], udp_programs.REQUEST_KEY, udp_programs.REQUEST
        )
        now_ns = monotonic_ns()
        over_at = requests["since"] + _TIMEOUT_NS
        order = np.argsort(cookies)
        at = positions(keys["cookie"], cookies[order])
        has_closed = at >= 0
        over_at[has_closed] = np.minimum(over_at[has_closed], closed_at[order][at[has_closed]])
        is_over = over_at <= now_ns
        self._count(keys[is_over], over_at[is_over], requests[is_over])
        maps.delete_all(self.program.maps["closed"], cookies)
        waiting = np.zeros(np.count_nonzero(~is_over), udp_programs.OPEN_REQUEST)
        for columns in (keys, requests):
            copy_columns(waiting, columns, columns.dtype.names or (), of=~is_over)
        return waiting

    def _count(self, keys: Array, over_at: Array, requests: Array) -> None:
        table = self.program.maps["requests"]
        final, exists = maps.read_each(table, keys, udp_programs.REQUEST, delete=True)
        if len(keys) and not exists.any():  # before Linux 5.14
            maps.delete_all(table, keys)
            final, exists = requests, np.ones(len(keys), bool)
        counted = exists & (final["since"] == requests["since"])
        slots = final["service"][counted] % SERVICES_MAX
        np.add.at(self.unanswered, slots, 1)
        np.add.at(self.unanswered_ns, slots, over_at[counted] - final["since"][counted])

    def release(self, slots: Index) -> None:
        """Forget the services that left these slots."""
        self.unanswered[slots] = self.unanswered_ns[slots] = 0
        np.frombuffer(self._questions, udp_programs.QUESTION)[slots] = np.zeros(1, udp_programs.QUESTION)

    def last_question(self, slot: int) -> str:
        """Return the last question of the DNS service in a slot; empty if there is none."""
        question = np.frombuffer(self._questions, udp_programs.QUESTION)[slot].copy()
        return question_text(question["text"].tobytes()[: question["bytes"]])


def _open_root_cgroup(host: Host) -> int:
    """Open the directory of the root control group. Raise Unsupported and OSError."""
    place = host.root_cgroup()
    if place is None:
        raise Unsupported("the root of the control groups is not mounted here", HOOK_UDP_REQUESTS.remedy)
    return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
