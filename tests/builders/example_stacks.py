# SPDX-License-Identifier: Apache-2.0
"""Stacks for tests: tables of them, random ones, and a source whose counts grow with each reading."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from nettop.snapshots.cpu import CATEGORY_OF, OTHER, RX_SOFTIRQ, STACKS, TX_SYSCALLS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.snapshots.source import SourceOptions
from nettop.stacks.counts import Profile, StackCount
from tests.unit.build import TAKEN_NS, Row, Tables, make_rows

SECOND_NS = 1_000_000_000
TCP = "handle_softirqs;net_rx_action;__napi_poll;process_backlog;ip_rcv;tcp_v4_rcv"
WAKE = f"{TCP};tcp_rcv_established;sock_def_readable"
SEND = "do_syscall_64;__sys_sendto;tcp_sendmsg"

_SYMBOLS = [
    "net_rx_action",
    "ip_rcv",
    "tcp_v4_rcv",
    "udp_rcv",
    "memcpy",
    "_raw_spin_lock",
    "bpf_prog_1f<&>\"'",
]
stacks = st.lists(st.sampled_from(_SYMBOLS), max_size=6).map(";".join)
"""Random stacks, some with a common prefix."""


def category_of(stack: str) -> int:
    """Return the category of a stack, as the source finds it: that of the deepest function that has one."""
    named = [CATEGORY_OF[symbol] for symbol in stack.split(";") if symbol in CATEGORY_OF]
    return named[-1] if named else OTHER


def stack_row(stack: str, samples: int, *, entry: int = RX_SOFTIRQ, cpu: int = 0, **more: object) -> Row:
    """Return a row of the table `stacks`; a sample stands for 1 ms."""
    row = {"entry": entry, "cpu": cpu, "stack": stack, "samples": samples, "time_ns": samples * 1_000_000}
    return row | {"category": category_of(stack)} | more


def stack_rows(rows: Sequence[Row], taken_s: float = 0, texts: Tables | None = None) -> Rows:
    """Return rows as a table of a snapshot taken `taken_s` after the first one."""
    return make_rows(rows, STACKS, TAKEN_NS + round(taken_s * SECOND_NS), texts=texts)


counts = st.lists(
    st.builds(
        lambda entry, cpu, stack, samples: StackCount(
            entry,
            cpu,
            tuple(filter(None, stack.split(";"))),
            category_of(stack),
            samples,
            samples * 1_000_000,
        ),
        st.sampled_from([RX_SOFTIRQ, TX_SYSCALLS]),
        st.integers(0, 3),
        stacks,
        st.integers(1, 1000),
    ),
    max_size=20,
)
"""Random stacks with counts of samples."""


def profile(counts: Sequence[StackCount]) -> Profile:
    """Return a profile of ten seconds on a host with an awkward name."""
    return Profile(tuple(counts), "web-3 <&>", 1_795_000_000_123_456_789, 10 * SECOND_NS, 997)


class StackSource:
    """A source of the CPU lens: with each reading the samples of each stack grow by `more`."""

    def __init__(self, more: Mapping[str, int] | None = None, hooks: tuple[HookStatus, ...] = ()) -> None:
        self.options: SourceOptions | None = None
        self.closed = False
        self.reads = 0
        self._more = {WAKE: 30, TCP: 5} if more is None else more
        self._hooks = hooks

    def start(self) -> None:
        """Do nothing: there is nothing to attach."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return the stacks so far: each began with 1,000 samples."""
        rows = [stack_row(stack, 1000 + self.reads * count) for stack, count in self._more.items()]
        self.reads += 1
        tables = {"stacks": make_rows(rows, STACKS, taken_ns)}
        lost, counts = {"ticks": self.reads}, {"sampled_hz": 997}
        return Snapshot("cpu", time.time_ns(), taken_ns, tables, counts, lost, self._hooks)

    def configure(self, options: SourceOptions) -> None:
        """Record the options."""
        self.options = options

    def describe(self, key: int) -> dict[str, str]:
        """Return no details."""
        return {}

    def close(self) -> None:
        """Record the call."""
        self.closed = True
