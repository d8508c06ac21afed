# SPDX-License-Identifier: Apache-2.0
"""Stacks as text and as categories: cut at the entry to the network stack, with each sample in one category."""

import re
import struct
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.probes.cpu.stacks import (
    CALL_BY_STACK,
    IN_HOOK,
    NOT_KEPT,
    THREAD_BY_STACK,
    UNKNOWN_FUNCTION,
    Folded,
    Folder,
    StackRows,
    categories_not_available,
    category_of,
    entry_of,
    softirq_of,
    strip_suffixes,
    trim_to_root,
)
from nettop.snapshots.cpu import (
    CATEGORIES,
    CATEGORY_OF,
    CATEGORY_SHARES,
    ENTRIES,
    IO_WORKERS,
    NETTOP,
    OTHER,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    STACKS,
    TX_SOFTIRQ,
    TX_SYSCALLS,
    VECTORS,
)
from nettop.snapshots.snapshot import Frame, Snapshot, known
from tests.unit.build import make_view

TAG = "bpf_prog_0123456789abcdef_"
SUFFIXES = (
    "",
    ".isra.0",
    ".constprop.0",
    ".constprop.0.isra.0",
    ".part.0",
    ".cold",
    ".llvm.123",
    " [nf_tables]",
)
UNNAMED = ("memcpy_orig", "kmem_cache_alloc_noprof", "irq_exit_rcu", "schedule", "_raw_spin_lock")

entries = st.sampled_from(list(ENTRIES))
functions = st.sampled_from([*CATEGORY_OF, *UNNAMED, UNKNOWN_FUNCTION])
stacks = st.lists(functions, min_size=1, max_size=30)
"""Leaf first."""
folded = st.builds(
    Folded,
    text=st.lists(functions, min_size=1, max_size=4).map(";".join),
    category=st.sampled_from(list(CATEGORIES)),
    entry=entries,
    is_whole=st.booleans(),
)
samples_of_stacks = st.lists(st.tuples(st.integers(0, 3), folded, st.integers(1, 1000)), max_size=40)
"""Samples: CPU, stack, count."""


def number(label: str) -> int:
    """Return the number of a category."""
    (number,) = (number for number, category in CATEGORIES.items() if category.label == label)
    return number


def rows_of(samples: list[tuple[int, Folded, int]], rows_max: int = 10_000) -> StackRows:
    """Return the rows of these samples, of 7 ns each."""
    rows = StackRows(rows_max)
    add_to(rows, samples)
    return rows


def add_to(rows: StackRows, samples: list[tuple[int, Folded, int]]) -> None:
    """Add samples of 7 ns each."""
    at = np.array([rows.place(cpu, "", stack) for cpu, stack, _ in samples], np.intp)
    counts = np.array([count for *_, count in samples], np.uint64)
    rows.add(at, counts, counts * np.uint64(7))


# --- names ------------------------------------------------------------------------------------------------------


@given(st.sampled_from(list(CATEGORY_OF)), st.sampled_from(SUFFIXES))
def test_suffixes_do_not_change_the_category(function: str, suffix: str) -> None:
    """Strip the compiler's suffix and the module from a name."""
    assert strip_suffixes(function + suffix) == function
    assert strip_suffixes(f"partial_isra{suffix}") == "partial_isra"


# --- categories -------------------------------------------------------------------------------------------------


def test_a_function_is_in_one_category() -> None:
    """No function is in two categories, so that shares add up."""
    counts = Counter(symbol for category in CATEGORIES.values() for symbol in category.symbols)
    assert {symbol for symbol, count in counts.items() if count > 1} == set()


@given(stacks)
def test_the_deepest_function_that_names_a_category_decides(frames: list[str]) -> None:
    """A stack has the category of its deepest function that has one."""
    named = [CATEGORY_OF[frame] for frame in frames if frame in CATEGORY_OF]
    assert category_of(frames) == (named[0] if named else OTHER)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (f"{TAG}tp_btf__softirq_entry;bpf_trace_run1;__traceiter_softirq_entry;handle_softirqs", NETTOP),
        ("bpf_trace_run1;__bpf_trace_softirq;handle_softirqs", NETTOP),
        ("bpf_trampoline_6442518281;tcp_sendmsg", NETTOP),
        (
            f"{TAG}their_program;bpf_trace_run1;__traceiter_softirq_entry;handle_softirqs",
            number("softirq loop"),
        ),
        (f"{TAG}xdp_filter;veth_xdp_rcv_skb;veth_poll;__napi_poll", number("XDP")),
        (f"{TAG}cls_main;__netif_receive_skb_core;process_backlog", number("TC")),
        (f"{TAG}cls_main;__dev_queue_xmit;ip_finish_output2", number("TC")),
        (f"{TAG}filter;sk_filter_trim_cap;tcp_v4_rcv", number("TCP")),
    ],
)
def test_programs(frames: str, expected: int) -> None:
    """nettop's programs are its own category; others count as part of their caller."""
    assert category_of(frames.split(";")) == expected


def test_a_category_without_functions_on_this_kernel_is_not_available() -> None:
    """A category is n/a if this kernel has none of its functions; one without functions is always available."""
    everything = set(CATEGORY_OF)
    assert categories_not_available(everything) == {}
    tcp = number("TCP")
    (missing,) = categories_not_available(everything - CATEGORIES[tcp].symbols).items()
    assert missing[0] == tcp
    first, second, third, *others = sorted(CATEGORIES[tcp].symbols)
    assert missing[1] == f"n/a: this kernel has none of {first}, {second}, {third}, {len(others)} more"
    assert categories_not_available(everything - CATEGORIES[tcp].symbols | {"tcp_v4_rcv"}) == {}


# --- cutting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "root"),
    [(RX_SOFTIRQ, "handle_softirqs"), (TX_SOFTIRQ, "__do_softirq"), (TX_SYSCALLS, "do_syscall_64")],
)
@given(
    inside=st.lists(functions.filter(lambda name: not re.search("softirq|do_sys|el0_svc", name)), max_size=9),
    below=stacks,
)
def test_stacks_are_cut_at_their_root(entry: int, root: str, inside: list[str], below: list[str]) -> None:
    """A softirq is cut from what it interrupts, even from another softirq's loop; a call from its entry code."""
    assert trim_to_root([*inside, root, *below], entry) == [*inside, root]


# --- entry points by stack ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "entry", "expected"),
    [
        ("tcp_sendmsg_locked;tcp_sendmsg;io_send;io_issue_sqe;do_syscall_64", CALL_BY_STACK, TX_SYSCALLS),
        ("tcp_recvmsg_locked;io_recv;io_issue_sqe;do_syscall_64", CALL_BY_STACK, RX_SYSCALLS),
        ("__dev_queue_xmit;tcp_cleanup_rbuf;tcp_recvmsg;io_recv;do_syscall_64", CALL_BY_STACK, RX_SYSCALLS),
        ("ext4_file_read_iter;io_read;io_issue_sqe;do_syscall_64", CALL_BY_STACK, 0),
        ("mutex_lock;__do_sys_io_uring_enter;do_syscall_64", CALL_BY_STACK, CALL_BY_STACK),
        ("tcp_sendmsg;sock_sendmsg;svc_tcp_sendto;kthread", THREAD_BY_STACK, IO_WORKERS),
        ("udp_recvmsg;sock_recvmsg;kthread", THREAD_BY_STACK, IO_WORKERS),
        ("shrink_node;balance_pgdat;kswapd;kthread", THREAD_BY_STACK, 0),
        ("schedule;do_syscall_64", TX_SYSCALLS, TX_SYSCALLS),
        ("handle_softirqs;__irq_exit_rcu;tcp_sendmsg;do_syscall_64", TX_SYSCALLS, 0),
        ("net_rx_action;handle_softirqs", RX_SOFTIRQ, RX_SOFTIRQ),
    ],
)
def test_entry_points(frames: str, entry: int, expected: int) -> None:
    """The stack decides for some calls and threads; a tick between a call and its softirq has no entry point."""
    assert entry_of(frames.split(";"), entry) == expected


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ("handle_softirqs;net_rx_action;tcp_v4_rcv", "net_rx"),
        ("handle_softirqs;hrtimer_run_softirq;__hrtimer_run_queues;tcp_pace_kick", "hrtimer"),
        ("handle_softirqs;hrtimer_run_softirq;__hrtimer_run_queues;_raw_spin_unlock_irqrestore", "hrtimer"),
        ("handle_softirqs;_raw_spin_unlock_irqrestore", "hrtimer"),
        ("handle_softirqs;rcu_core;rcu_do_batch;kmem_cache_free", "rcu"),
        ("handle_softirqs;sched_balance_domains;sched_balance_rq", "sched"),
        ("handle_softirqs;rebalance_domains;load_balance", "sched"),
        ("handle_softirqs;tasklet_action_common;tcp_tsq_workfn", "tasklet"),
        ("handle_softirqs;tmigr_handle_remote;timer_expire_remote", "timer"),
        ("handle_softirqs;xfrm_dev_backlog", "net_tx"),
    ],
)
def test_a_softirq_is_known_though_its_action_ends_in_a_jump(frames: str, expected: str) -> None:
    """Recognize a softirq by what its action jumped to, as compilers turn an action's last call into a jump."""
    assert softirq_of(frames.split(";")[::-1]) == VECTORS.index(expected)


@pytest.mark.parametrize(
    "frames",
    [
        f"handle_softirqs;bpf_trace_run1;{TAG}their_program;ktime_get_mono_fast_ns",
        "handle_softirqs;__traceiter_softirq_entry;bpf_trace_run1",
        "handle_softirqs;perf_trace_softirq",
        "handle_softirqs;trace_event_raw_event_softirq;trace_event_buffer_commit",
    ],
)
def test_hooks_around_softirqs_are_told_from_softirqs(frames: str) -> None:
    """A tracer's hook is IN_HOOK, within an action a part of that softirq; the loop itself belongs to no softirq."""
    assert softirq_of(["handle_softirqs"]) is None
    assert softirq_of(frames.split(";")[::-1]) == IN_HOOK
    inside = frames.replace("handle_softirqs;", "handle_softirqs;net_rx_action;")
    assert softirq_of(inside.split(";")[::-1]) == VECTORS.index("net_rx")


# --- folding ----------------------------------------------------------------------------------------------------


def fold(names: dict[int, str], addresses: list[int], entry: int = RX_SOFTIRQ) -> Folded:
    """Return a stack of addresses, by a folder that knows these names."""
    return Folder(names.get).fold(struct.pack(f"={len(addresses)}Q", *addresses), entry)


def test_a_stack_is_text_from_its_root_on() -> None:
    """A stack's text has no suffixes and marks addresses without a name; then it is not whole, unless they are cut."""
    names = {1: "tcp_v4_rcv", 2: "net_rx_action.isra.0", 3: "handle_softirqs"}
    tcp = number("TCP")
    text = "handle_softirqs;net_rx_action;tcp_v4_rcv"
    assert fold(names, [1, 2, 3, 4]) == Folded(text, tcp, RX_SOFTIRQ, True)
    text = f"handle_softirqs;{UNKNOWN_FUNCTION};tcp_v4_rcv"
    assert fold(names, [1, 5, 3]) == Folded(text, tcp, RX_SOFTIRQ, False)


@given(st.lists(st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=12), entries), max_size=20))
def test_a_stack_is_always_folded_alike(requests: list[tuple[list[int], int]]) -> None:
    """A stack has the same text whatever else the folder has seen meanwhile."""
    names = dict(enumerate([*list(CATEGORY_OF)[:25], *UNNAMED], 1))
    folder = Folder(names.get)
    for addresses, entry in [*requests, *requests]:
        stack = struct.pack(f"={len(addresses)}Q", *addresses)
        assert folder.fold(stack, entry) == fold(names, addresses, entry)


# --- rows -------------------------------------------------------------------------------------------------------


@given(samples_of_stacks)
def test_every_sample_is_in_one_row_and_one_category(samples: list[tuple[int, Folded, int]]) -> None:
    """Both tables have every sample once, and the categories of an entry point sum up to it."""
    rows = rows_of(samples)
    total = sum(count for *_, count in samples)
    stacks_table, categories = rows.stacks(1), rows.categories({}, 1)
    assert rows.samples == stacks_table.array["samples"].sum() == categories.array["samples"].sum() == total
    assert stacks_table.array["time_ns"].sum() == categories.array["time_ns"].sum() == 7 * total
    assert set(stacks_table.array["id"].tolist()) == set(range(1, len(stacks_table) + 1))
    by_entry: Counter[int] = Counter()
    for _, stack, count in samples:
        by_entry[stack.entry] += count
    for row in categories.array:
        assert row["entry_samples"] == by_entry[int(row["entry"])]
    assert rows.unresolved <= total


@given(samples_of_stacks)
def test_rows_are_by_cpu_entry_point_and_stack(samples: list[tuple[int, Folded, int]]) -> None:
    """A stack always has the same row, and no other stack has it."""
    expected: Counter[tuple[int, int, int, str]] = Counter()
    for cpu, stack, count in samples:
        expected[cpu, stack.entry, stack.category, stack.text] += count
    table = rows_of(samples).stacks(1)
    counted = {
        (int(row["cpu"]), int(row["entry"]), int(row["category"]), table.texts["stack"][row["stack"]]): row[
            "samples"
        ]
        for row in table.array
    }
    assert counted == expected
    assert len(counted) == len(table)


@given(samples_of_stacks, st.integers(0, 5))
def test_stacks_without_room_for_a_row_keep_their_category(
    samples: list[tuple[int, Folded, int]], rows_max: int
) -> None:
    """Stacks without room are counted in one row per category, and shares do not change."""
    rows, all_rows = rows_of(samples, rows_max), rows_of(samples)
    left = [row for row in rows.stacks(1).array if rows.stacks(1).texts["stack"][row["stack"]] == NOT_KEPT]
    assert rows.not_kept == sum(int(row["samples"]) for row in left)
    assert (rows.not_kept > 0) == (len(all_rows) > rows_max)
    assert np.array_equal(rows.categories({}, 1).array, all_rows.categories({}, 1).array)


def test_a_category_that_is_not_available_has_a_row_without_numbers() -> None:
    """The row of a category that is n/a has a note and no numbers; keys are distinct and ascending."""
    tcp, gro = number("TCP"), number("GRO")
    rows = rows_of([(0, Folded("handle_softirqs", number("softirq loop"), RX_SOFTIRQ, True), 3)])
    loop = number("softirq loop")  # sampled anyway: a module may have been loaded since symbols were read
    table = rows.categories({gro: "n/a: no GRO", tcp: "n/a: no TCP", loop: "n/a"}, 5)
    assert table.table is CATEGORY_SHARES and table.taken_ns == 5
    missing, available = table.array[:2], table.array[2:]
    assert missing["category"].tolist() == [gro, tcp]
    assert available["category"].tolist() == [
        number for number in sorted(CATEGORIES) if number not in (gro, tcp)
    ]
    assert available["samples"][available["samples"] > 0].tolist() == [3]
    for name in ("entry", "samples", "entry_samples", "time_ns"):
        assert not known(missing[name]).any() and known(available[name]).all()
    notes = [table.texts["note"][code] for code in table.array["note"]]
    assert notes == ["n/a: no GRO", "n/a: no TCP", *[""] * len(available)]
    assert np.all(np.diff(table.array["id"].astype(int)) > 0)


@given(samples_of_stacks, samples_of_stacks)
def test_shares_of_an_interval_add_up(
    first: list[tuple[int, Folded, int]], then: list[tuple[int, Folded, int]]
) -> None:
    """Shares add up to 1 even if a category, or an entry point, was first sampled in the interval."""
    rows = rows_of(first)
    before = rows.categories({}, 1)
    add_to(rows, then)
    frame = Frame(
        *(Snapshot("cpu", 0, 0, {table.table.name: table}) for table in (rows.categories({}, 2), before))
    )
    view = make_view(frame, deltas=True)
    sum_by_entry: dict[int, float] = defaultdict(float)
    shares = zip(view.raw("entry").tolist(), view.values("share", np.arange(view.size)), strict=True)
    for entry, share in shares:
        sum_by_entry[entry] += share or 0.0
    grown = {stack.entry for _, stack, _ in then}
    assert sum_by_entry == {entry: pytest.approx(float(entry in grown)) for entry in sum_by_entry}
    assert grown <= sum_by_entry.keys()


def test_names_are_looked_up_again_once_they_are_forgotten() -> None:
    """Look names up again after `forget`, as after a module was loaded."""
    names = {1: "tcp_v4_rcv", 2: "handle_softirqs"}
    folder, stack = Folder(names.get), struct.pack("=2Q", 1, 2)
    assert folder.fold(stack, RX_SOFTIRQ).text == "handle_softirqs;tcp_v4_rcv"
    names[1] = "udp_rcv"
    assert folder.fold(stack, RX_SOFTIRQ).text == "handle_softirqs;tcp_v4_rcv"
    folder.forget()
    assert folder.fold(stack, RX_SOFTIRQ).text == "handle_softirqs;udp_rcv"


def test_rows_that_were_published_do_not_change() -> None:
    """A snapshot's rows do not change when more samples are added."""
    stack = Folded("handle_softirqs", number("softirq loop"), RX_SOFTIRQ, True)
    rows = rows_of([(0, stack, 3)])
    before = rows.stacks(1)
    assert before.table is STACKS
    rows.add(np.array([rows.place(0, "", stack)]), np.array([4], np.uint64), np.array([1], np.uint64))
    assert before.array["samples"].tolist() == [3]
    assert rows.stacks(2).array["samples"].tolist() == [7]
