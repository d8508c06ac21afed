# SPDX-License-Identifier: Apache-2.0
"""Stacks as trees, totals and windows: nothing is lost, counted twice, or negative."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.snapshots.cpu import CATEGORIES, NETTOP, OTHER, RX_SOFTIRQ, TX_SYSCALLS
from nettop.stacks.counts import (
    MARK_NS,
    MINUTE_NS,
    FlameNode,
    FlameSort,
    StackCount,
    StackHistory,
    StackReading,
    Window,
    category_totals,
    flame_tree,
    grown_rows,
    path_of,
    stack_counts,
)
from tests.builders import example_stacks
from tests.builders.example_stacks import SECOND_NS, SEND, TCP, WAKE, stack_row, stack_rows
from tests.unit.build import Row, Tables

NUMBER_OF = {category.label: number for number, category in CATEGORIES.items()}


def nodes(node: FlameNode) -> Iterator[FlameNode]:
    """Yield the node and all below it."""
    yield node
    for child in node.children:
        yield from nodes(child)


def node_of(tree: FlameNode, symbol: str) -> FlameNode:
    """Return the only node with this name."""
    (node,) = (node for node in nodes(tree) if node.symbol == symbol)
    return node


def totals(counts: Sequence[StackCount]) -> Counter[tuple[object, ...]]:
    """Return samples by entry point, CPU and stack."""
    by_stack: Counter[tuple[object, ...]] = Counter()
    for count in counts:
        by_stack[count.entry, count.cpu, count.frames] += count.samples
    return by_stack


# --- rows ---------------------------------------------------------------------------------------------------------


def test_counts_of_rows() -> None:
    """Each row with samples gives a count; its frames are the functions from the entry point inwards."""
    unknown = stack_row(TCP, 7) | {"stack": None}
    rows = stack_rows(
        [stack_row(SEND, 3, entry=TX_SYSCALLS, cpu=2), stack_row(TCP, 0), stack_row("", 1), unknown]
    )
    frames = ("do_syscall_64", "__sys_sendto", "tcp_sendmsg")
    assert stack_counts(rows) == [
        StackCount(TX_SYSCALLS, 2, frames, NUMBER_OF["TCP"], 3, 3_000_000),
        StackCount(RX_SOFTIRQ, 0, (), OTHER, 1, 1_000_000),
        StackCount(RX_SOFTIRQ, 0, (), NUMBER_OF["TCP"], 7, 7_000_000),
    ]


def test_growth() -> None:
    """Growth is the difference of two snapshots; a new stack counts in full."""
    before = stack_rows([stack_row(TCP, 10, id=1), stack_row(WAKE, 5, id=2)])
    now = stack_rows([stack_row(TCP, 10, id=1), stack_row(WAKE, 9, id=2), stack_row(SEND, 2, id=3)], 1)
    assert [
        (count.frames[-1], count.samples, count.time_ns) for count in stack_counts(grown_rows(now, before))
    ] == [
        ("sock_def_readable", 4, 4_000_000),
        ("tcp_sendmsg", 2, 2_000_000),
    ]
    assert now.array["samples"].tolist() == [10, 9, 2]


# --- the tree -----------------------------------------------------------------------------------------------------


def test_tree() -> None:
    """Below the root are the entry points, below them the functions."""
    rows = stack_rows([stack_row(TCP, 5), stack_row(WAKE, 30, cpu=1), stack_row(SEND, 10, entry=TX_SYSCALLS)])
    tree = flame_tree(stack_counts(rows))
    assert [(child.symbol, child.samples) for child in tree.children] == [
        ("RX softirq", 35),
        ("TX syscalls", 10),
    ]
    assert (node_of(tree, "tcp_v4_rcv").samples, node_of(tree, "tcp_v4_rcv").own_samples) == (35, 5)


def test_order_of_children() -> None:
    """Children are sorted by width or by name, whatever the order of the rows."""
    counts = stack_counts(stack_rows([stack_row("c", 1), stack_row("a", 1), stack_row("b", 9)]))
    for in_any_order in (counts, counts[::-1]):
        assert [child.symbol for child in flame_tree(in_any_order).children[0].children] == ["b", "a", "c"]
        by_name = flame_tree(in_any_order, FlameSort.NAME)
        assert [child.symbol for child in by_name.children[0].children] == ["a", "b", "c"]


def test_category_of_a_node() -> None:
    """A node has the category of its deepest categorized ancestor: one function differs by its callers."""
    counts = stack_counts(
        stack_rows([stack_row(f"{TCP};memcpy", 1), stack_row("memcpy", 1), stack_row("udp_rcv;memcpy", 1)])
    )
    tree = flame_tree(counts)
    labels = {node.symbol: CATEGORIES[node.category].label for node in nodes(tree) if node.symbol != "memcpy"}
    assert labels["all"] == labels["RX softirq"] == "other"
    assert (labels["ip_rcv"], labels["tcp_v4_rcv"], labels["udp_rcv"]) == ("IPv4 receive", "TCP", "UDP")
    copies = {CATEGORIES[node.category].label for node in nodes(tree) if node.symbol == "memcpy"}
    assert copies == {"TCP", "UDP", "other"}


def test_category_of_nettop_itself() -> None:
    """A node with samples of nettop's own programs only has their category, which comes from the source."""
    own = stack_row(f"{TCP};bpf_prog_1f;bpf_helper", 3, category=NETTOP)
    tree = flame_tree(stack_counts(stack_rows([stack_row(TCP, 5), own])))
    assert node_of(tree, "bpf_prog_1f").category == node_of(tree, "bpf_helper").category == NETTOP
    assert node_of(tree, "tcp_v4_rcv").category == NUMBER_OF["TCP"]


@given(example_stacks.counts, st.sampled_from(FlameSort))
def test_samples_are_conserved(counts: list[StackCount], sort: FlameSort) -> None:
    """Children never exceed their parent; own samples sum up to all, and each path keeps its own."""
    tree = flame_tree(counts, sort)
    assert tree.samples == sum(count.samples for count in counts)
    assert tree.time_ns == sum(count.time_ns for count in counts)
    all_rows = list(nodes(tree))
    assert all(node.own_samples >= 0 for node in all_rows)
    assert all(sum(child.time_ns for child in node.children) <= node.time_ns for node in all_rows)
    assert sum(node.own_samples for node in all_rows) == tree.samples
    own: Counter[tuple[str, ...]] = Counter()
    for count in counts:
        own[path_of(count)] += count.samples
    assert own == +Counter(dict(own_samples(tree)))


def own_samples(node: FlameNode, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield each path below a node, and the samples that end there."""
    yield path, node.own_samples
    for child in node.children:
        yield from own_samples(child, (*path, child.symbol))


@given(example_stacks.counts)
def test_categories_add_up(counts: list[StackCount]) -> None:
    """Categories are exclusive: their samples sum up to all, and equal those of the tree's nodes."""
    by_category = category_totals(counts)
    assert sum(samples for samples, _ in by_category.values()) == sum(count.samples for count in counts)
    assert sum(time_ns for _, time_ns in by_category.values()) == sum(count.time_ns for count in counts)
    of_nodes: Counter[int] = Counter()
    for node in nodes(flame_tree(counts)):
        of_nodes[node.category] += node.own_samples
    assert +of_nodes == Counter({number: samples for number, (samples, _) in by_category.items()})


# --- windows ------------------------------------------------------------------------------------------------------


def samples_in(history: StackHistory, window: Window) -> int:
    """Return all samples of a window."""
    return sum(count.samples for count in history.counts(window))


def add(
    history: StackHistory,
    rows: Sequence[Row],
    taken_s: float,
    watched_s: float | None = None,
    texts: Tables | None = None,
) -> None:
    """Add a snapshot `taken_s` after the first; `watched_s` is how long the source had sampled by then."""
    watched_s = taken_s if watched_s is None else watched_s
    history.add(StackReading(stack_rows(rows, taken_s, texts), round(watched_s * SECOND_NS)))


def test_windows() -> None:
    """Windows are the last interval, the last minute, and everything, with their durations."""
    history = StackHistory()
    for second in range(0, 121, 10):
        add(history, [stack_row(TCP, second * second)], second)
    assert samples_in(history, Window.INTERVAL) == 120**2 - 110**2
    assert samples_in(history, Window.MINUTE) == 120**2 - 60**2
    assert samples_in(history, Window.START) == 120**2
    assert [history.span_ns(window) for window in Window] == [10 * 10**9, MINUTE_NS, 120 * 10**9]


def test_first_snapshots() -> None:
    """Before the first snapshot there is nothing; after it only what was counted since the start."""
    history = StackHistory()
    assert [history.counts(window) for window in Window] == [[], [], []]
    assert [history.span_ns(window) for window in Window] == [None, None, None]
    add(history, [stack_row(TCP, 5)], 0)
    assert [samples_in(history, window) for window in Window] == [0, 0, 5]
    assert [history.span_ns(window) for window in Window] == [None, None, 0]


def test_a_history_begins_with_the_snapshot_before() -> None:
    """A paused recording shows one reading, whose interval is known; not with one of another start of the source."""
    before, other, now = (
        StackReading(stack_rows([stack_row(TCP, count)], taken_s), taken_s * SECOND_NS)
        for taken_s, count in ((40, 10), (41, 90), (42, 15))
    )
    for earlier, expected in ((before, 5), (other, 0), (None, 0)):
        history = StackHistory()
        history.add(now, earlier)
        assert samples_in(history, Window.INTERVAL) == samples_in(history, Window.MINUTE) == expected
        assert history.span_ns(Window.MINUTE) == (2 * SECOND_NS if expected else None)


@pytest.mark.parametrize(
    ("first_rows", "watched_s"),
    [
        ([stack_row(TCP, 2, id=1)], 2),
        ([stack_row(WAKE, 9, id=7)], 2),
        ([], 2),
        ([stack_row(TCP, 900, id=1)], 0.5),
    ],
    ids=["numbers fell", "other stacks", "nothing", "less time"],
)
def test_the_source_begins_again(first_rows: list[dict[str, object]], watched_s: float) -> None:
    """After another start of the source all windows begin there, and earlier snapshots are not used."""
    history = StackHistory()
    add(history, [stack_row(TCP, 100, id=1)], 0)
    add(history, [stack_row(TCP, 200, id=1)], 1)
    add(history, first_rows, 2, watched_s)
    assert [samples_in(history, window) for window in (Window.INTERVAL, Window.MINUTE)] == [0, 0]
    for _ in range(2):  # the same snapshot again makes no interval
        add(history, [*first_rows, stack_row(SEND, 4, id=50)], 3, watched_s + 1)
    assert [samples_in(history, window) for window in (Window.INTERVAL, Window.MINUTE)] == [4, 4]


def test_time_without_sampling_does_not_count() -> None:
    """A window is as long as the source has sampled in it; `start` also has what it sampled before."""
    history = StackHistory()
    for taken_s, watched_s in ((0, 100), (10, 110), (20, 110), (30, 120)):
        add(history, [stack_row(TCP, watched_s + 1)], taken_s, watched_s)
    assert [history.span_ns(window) for window in Window] == [10 * SECOND_NS, 20 * SECOND_NS, 120 * SECOND_NS]
    assert samples_in(history, Window.START) == 121


def test_memory_is_bounded() -> None:
    """However often the source is read, few snapshots are kept, and the minute stays a minute."""
    history = StackHistory()
    for step in range(2000):
        add(history, [stack_row(TCP, step + 1)], step * 0.1)
    kept = {id(reading) for reading in (*history._minute, history._before, history._now)}
    assert len(kept) <= 15
    span_ns = history.span_ns(Window.MINUTE)
    assert span_ns is not None
    assert MINUTE_NS <= span_ns < MINUTE_NS + MARK_NS


_growths = st.lists(
    st.tuples(st.floats(0.1, 30), st.lists(st.tuples(example_stacks.stacks, st.integers(0, 50)), max_size=4)),
    min_size=1,
    max_size=12,
)
"""Snapshots: the seconds since the previous one, and the new samples of stacks."""


@given(_growths)
def test_intervals_add_up(growths: list[tuple[float, list[tuple[str, int]]]]) -> None:
    """No count is negative; successive intervals sum up to everything; a minute lies between the two."""
    history, texts = StackHistory(), Tables()
    so_far: dict[str, int] = {}
    added: Counter[tuple[object, ...]] = Counter()
    taken_s = 0.0
    for elapsed_s, grown in growths:
        taken_s += elapsed_s
        for stack, samples in grown:
            so_far[stack] = so_far.get(stack, 0) + samples
        rows = [
            stack_row(stack, samples, id=number) for number, (stack, samples) in enumerate(so_far.items(), 1)
        ]
        first = not history.counts(Window.START) and history.span_ns(Window.START) is None
        add(history, rows, taken_s, texts=texts)
        interval, minute, start = (history.counts(window) for window in Window)
        added += totals(start if first else interval)
        assert added == totals(start)
        assert all(count.samples > 0 and count.time_ns > 0 for count in (*interval, *minute, *start))
        assert totals(interval) <= totals(minute) <= totals(start)
