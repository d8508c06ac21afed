# SPDX-License-Identifier: Apache-2.0
"""The CPU lens: CPU time of the network stack, by entry point and by part of the stack."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nettop.errors import UsageError
from nettop.snapshots.schema import (
    Field,
    FieldRole,
    Hook,
    Kind,
    Lens,
    Measure,
    Metrics,
    Option,
    Spread,
    Table,
)

# --- entry points into the network stack -------------------------------------------------------------------------

ENTRIES = {
    1: "TX syscalls", 2: "RX syscalls", 3: "TX softirq", 4: "RX softirq", 5: "I/O workers", 6: "NAPI threads",
}  # fmt: skip
"""Entry points. Time is charged to the innermost one: a softirq that interrupts a system call is charged as softirq."""

TX_SYSCALLS, RX_SYSCALLS, TX_SOFTIRQ, RX_SOFTIRQ, IO_WORKERS, NAPI_THREADS = ENTRIES

TIME_OF = {
    TX_SYSCALLS: "tx_syscalls_ns", RX_SYSCALLS: "rx_syscalls_ns", TX_SOFTIRQ: "tx_softirq_ns",
    RX_SOFTIRQ: "rx_softirq_ns", IO_WORKERS: "io_workers_ns", NAPI_THREADS: "napi_threads_ns",
}  # fmt: skip
"""The time column of each entry point in `cpus`."""

VECTORS = ("hi", "timer", "net_tx", "net_rx", "block", "irq_poll", "tasklet", "sched", "hrtimer", "rcu")
"""Softirqs by their number (include/linux/interrupt.h)."""

NET_TX, NET_RX = VECTORS.index("net_tx"), VECTORS.index("net_rx")

ENABLES_INTERRUPTS = frozenset(
    {
        "_raw_spin_unlock_irq", "_raw_spin_unlock_irqrestore", "_raw_read_unlock_irqrestore",
        "_raw_write_unlock_irqrestore", "finish_task_switch", "handle_softirqs", "__do_softirq",
    }
)  # fmt: skip
"""Functions that enable interrupts. The sampling clock is an interrupt too: a tick due while interrupts are disabled is
counted here, although the time was spent between the function that disabled them and this one."""


def enables_interrupts(symbol: str) -> bool:
    """Return whether samples in the function itself are mostly ticks delayed by disabled interrupts."""
    return symbol.partition(".")[0] in ENABLES_INTERRUPTS


# --- categories within it -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Category:
    """A part of the network stack. A sample belongs to the category of its deepest frame that is in `symbols`.

    `functions` are the names of these in all supported kernels, as they change between versions, without suffixes such
    as .isra.0. `letter` marks the category where there are no colours.
    """

    label: str
    letter: str
    help: str
    functions: str = ""

    @property
    def symbols(self) -> frozenset[str]:
        """The functions as a set."""
        return frozenset(self.functions.split())


OTHER, NETTOP = 0, 18
CATEGORIES: dict[int, Category] = {
    1: Category("driver poll", "P", "devices' poll functions and the per-CPU backlog",
                "__napi_poll napi_poll process_backlog napi_complete_done napi_busy_loop __napi_busy_loop veth_poll "
                "veth_xdp_rcv veth_xdp_rcv_skb veth_xdp_rcv_one gro_cell_poll"),
    2: Category("XDP", "X", "XDP programs and what they redirect",
                "bpf_prog_run_xdp do_xdp_generic netif_receive_generic_xdp bpf_prog_run_generic_xdp xdp_do_redirect "
                "xdp_do_generic_redirect xdp_do_flush bq_xmit_all bq_enqueue dev_map_enqueue cpu_map_enqueue "
                "__xsk_map_redirect xsk_rcv xsk_generic_rcv"),
    3: Category("GRO", "G", "merging received segments",
                "napi_gro_receive gro_receive_skb dev_gro_receive napi_gro_frags napi_gro_complete gro_complete "
                "napi_gro_flush __gro_flush gro_flush_normal gro_normal_list gro_normal_one skb_gro_receive "
                "skb_gro_receive_list gro_cells_receive inet_gro_receive ipv6_gro_receive tcp4_gro_receive "
                "tcp6_gro_receive tcp_gro_receive udp4_gro_receive udp6_gro_receive udp_gro_receive "
                "inet_gro_complete ipv6_gro_complete tcp4_gro_complete tcp6_gro_complete tcp_gro_complete "
                "udp4_gro_complete udp6_gro_complete udp_gro_complete eth_gro_receive"),
    4: Category("core receive", "C", "handing packets to protocols",
                "__netif_receive_skb_core __netif_receive_skb_one_core __netif_receive_skb_list_core "
                "netif_receive_skb_list_internal netif_receive_skb_internal netif_receive_skb __netif_receive_skb "
                "__netif_receive_skb_list netif_receive_skb_list netif_rx netif_rx_internal __netif_rx "
                "enqueue_to_backlog __dev_forward_skb __dev_forward_skb2 packet_rcv tpacket_rcv vlan_do_receive"),
    5: Category("TC", "Q", "traffic control: classifiers, actions and their programs",
                "tcf_classify __tcf_classify cls_bpf_classify fl_classify u32_classify mall_classify tc_run tcx_run "
                "sch_handle_ingress sch_handle_egress tcf_action_exec"),
    6: Category("bridging", "B", "software bridges",
                "br_handle_frame br_handle_frame_finish br_forward __br_forward br_forward_finish br_flood "
                "br_dev_xmit br_dev_queue_push_xmit br_pass_frame_up br_nf_pre_routing br_nf_forward "
                "br_nf_forward_ip br_nf_forward_finish br_nf_post_routing br_nf_dev_queue_xmit "
                "br_nf_pre_routing_finish br_nf_pre_routing_ipv6 br_nf_hook_thresh br_handle_local_finish "
                "br_netif_receive_skb maybe_deliver"),
    7: Category("netfilter", "F", "nftables, iptables and other hooks",
                "nf_hook_slow nf_hook_slow_list nft_do_chain ipt_do_table ip6t_do_table nf_flow_offload_ip_hook "
                "nf_flow_offload_ipv6_hook"),
    8: Category("connection tracking", "K", "conntrack and NAT",
                "nf_conntrack_in nf_conntrack_confirm __nf_conntrack_confirm nf_confirm ipv4_confirm "
                "ipv4_conntrack_in ipv4_conntrack_local ipv4_conntrack_defrag ipv6_conntrack_in ipv6_conntrack_local "
                "ipv6_defrag nf_nat_inet_fn nf_nat_packet nf_nat_manip_pkt nf_nat_ipv4_fn nf_nat_ipv6_fn"),
    9: Category("IPv4 receive", "I", "IPv4 input, and the route lookup",
                "ip_rcv ip_list_rcv ip_sublist_rcv ip_sublist_rcv_finish ip_list_rcv_finish ip_rcv_finish "
                "ip_rcv_finish_core ip_rcv_core"),
    10: Category("IPv6 receive", "V", "IPv6 input, and the route lookup",
                 "ipv6_rcv ipv6_list_rcv ip6_sublist_rcv ip6_rcv_finish ip6_rcv_core ip6_rcv_finish_core "
                 "ip6_list_rcv_finish"),
    11: Category("local delivery", "L", "packets for this host, before their protocol",
                 "ip_local_deliver ip_local_deliver_finish ip_protocol_deliver_rcu ip6_input ip6_input_finish "
                 "ip6_protocol_deliver_rcu ip_sublist_local_deliver"),
    12: Category("forwarding", "R", "packets for other hosts",
                 "ip_forward ip_forward_finish ip6_forward ip6_forward_finish ip_sublist_forward"),
    13: Category("TCP", "T", "TCP, in softirqs and system calls",
                 "tcp_v4_rcv tcp_v6_rcv tcp_v4_do_rcv tcp_v6_do_rcv tcp_rcv_established tcp_rcv_state_process "
                 "tcp_sendmsg tcp_sendmsg_locked tcp_recvmsg tcp_recvmsg_locked tcp_splice_read tcp_read_sock "
                 "tcp_write_xmit __tcp_transmit_skb __tcp_push_pending_frames tcp_cleanup_rbuf __tcp_cleanup_rbuf"),
    14: Category("UDP", "U", "UDP, in softirqs and system calls",
                 "udp_rcv udpv6_rcv __udp4_lib_rcv __udp6_lib_rcv udp_unicast_rcv_skb udp6_unicast_rcv_skb "
                 "udp_queue_rcv_skb udp_queue_rcv_one_skb udpv6_queue_rcv_skb udpv6_queue_rcv_one_skb "
                 "__udp_enqueue_schedule_skb __udp4_lib_lookup __udp6_lib_lookup udp4_lib_lookup2 udp6_lib_lookup2 "
                 "udp_sendmsg udpv6_sendmsg udp_send_skb udp_v6_send_skb udp_recvmsg udpv6_recvmsg"),
    15: Category("transmit", "S", "sending; in softirqs, replies and forwarded packets",
                 "__dev_queue_xmit ip_output __ip_local_out ip_local_out ip_send_skb __ip_queue_xmit ip_queue_xmit "
                 "ip_finish_output ip_finish_output2 __ip_finish_output ip6_output ip6_xmit inet6_csk_xmit "
                 "ip6_local_out ip6_finish_output ip6_finish_output2 dev_hard_start_xmit sch_direct_xmit __qdisc_run "
                 "net_tx_action validate_xmit_skb"),
    16: Category("socket wake-up", "W", "waking the process that waits for a socket",
                 "sock_def_readable sock_def_write_space sock_def_wakeup sock_def_error_report sk_stream_write_space "
                 "ep_poll_callback"),
    17: Category("softirq loop", "O", "the loop around all of it",
                 "net_rx_action handle_softirqs __do_softirq napi_threaded_poll napi_threaded_poll_loop"),
    NETTOP: Category("nettop itself", "N", "nettop's own BPF programs, and the kernel code that calls BPF programs"),
    19: Category("system call", "Y", "entering the kernel, and the socket calls before their protocol",
                 "do_syscall_64 el0_svc __sys_sendto __sys_recvfrom __sys_sendmsg __sys_recvmsg __sys_sendmmsg "
                 "__sys_recvmmsg ksys_write ksys_read do_sendfile io_worker_handle_work"),
    OTHER: Category("other", "·", "none of these"),
}  # fmt: skip
"""Categories by the number stored in tables. They are disjoint, so shares add up to 100 %."""

CATEGORY_OF = {symbol: number for number, category in CATEGORIES.items() for symbol in category.symbols}
"""The category number of each function."""

# --- tables -------------------------------------------------------------------------------------------------------

_ENTRY = Field("entry", Kind.ENUM, "ENTRY", "entry point into the network stack", importance=90,
               labels=ENTRIES)  # fmt: skip
_CATEGORY = Field("category", Kind.ENUM, "CATEGORY", "part of the network stack, by the deepest function that belongs "
                  "to one", importance=95,
                  labels={number: category.label for number, category in CATEGORIES.items()})  # fmt: skip
_SAMPLES = Field("samples", Kind.COUNTER, "SAMPLES", "CPU samples taken there", width=9, importance=85)
_TIME = Field("time_ns", Kind.COUNTER, "TIME", "CPU time, estimated from samples; its rate is a share of one CPU",
              unit="ns", importance=80, rate_title="SHARE")  # fmt: skip


def _time(name: str, title: str, about: str, importance: int, width: int = 0) -> Field:
    """Return the field of a CPU time."""
    return Field(name, Kind.COUNTER, title, about, unit="ns", width=width, importance=importance)


_OF_ENTRIES = (
    _time("network_ns", "NETWORK", "CPU time of the network stack, the sum of its entry points; its rate is a share of "
          "one CPU", 95),
    _time("tx_syscalls_ns", "TX SYS", "CPU time of system calls that send on sockets", 80),
    _time("rx_syscalls_ns", "RX SYS", "CPU time of system calls that receive from sockets, without waiting", 80),
)  # fmt: skip
_IO_WORKERS = _time("io_workers_ns", "I/O WRK", "CPU time of io_uring workers and kernel threads while they send or "
                    "receive", 60)  # fmt: skip

_VECTOR_HELP = {
    "hi": "high-priority tasklets",
    "timer": "timers, including TCP's: retransmission, delayed acknowledgements",
    "block": "block devices",
    "irq_poll": "polled block devices",
    "tasklet": "tasklets, including TCP sends once a device has room again",
    "sched": "scheduler load balancing",
    "hrtimer": "high-resolution timers, including paced TCP; 30–45 % too low",
    "rcu": "RCU callbacks, including those that free network memory",
}

CPUS = Table(
    name="cpus",
    fields=(
        Field("cpu", Kind.KEY, "CPU", "the processor", "u4", importance=100, role=FieldRole.NUMBER),
        *_OF_ENTRIES,
        _time("tx_softirq_ns", "TX SOFT", "CPU time in the softirq NET_TX", 75),
        _time("rx_softirq_ns", "RX SOFT", "CPU time in the softirq NET_RX; 7–11 % too low if senders sleep between "
              "bursts", 85),
        _IO_WORKERS,
        _time("napi_threads_ns", "NAPI", "CPU time of threads that poll devices (threaded NAPI)", 60),
        *(_time(f"{name}_ns", name.upper(), f"CPU time in the softirq {name.upper()}: {about}", 20, 9)
          for name, about in _VECTOR_HELP.items()),
        _time("stat_softirq_ns", "/PROC/STAT", "time of all softirqs from /proc/stat; 0–40 % off on kernels that count "
              "ticks (no IRQ time accounting)", 15, 9),
    ),
    key="cpu",
    screen=("cpu", "network_ns_per_s", "tx_syscalls_ns_per_s", "rx_syscalls_ns_per_s", "tx_softirq_ns_per_s",
            "rx_softirq_ns_per_s", "io_workers_ns_per_s", "napi_threads_ns_per_s"),
    text=("cpu", "network_ns", "tx_syscalls_ns", "rx_syscalls_ns", "tx_softirq_ns", "rx_softirq_ns", "io_workers_ns",
          "napi_threads_ns", "timer_ns", "hrtimer_ns", "tasklet_ns", "sched_ns", "rcu_ns", "stat_softirq_ns"),
    sort="cpu",
    hooks=("samples",),
    metrics=(
        Metrics(
            ("cpu",),
            (
                Spread("network_ns", "entry", {ENTRIES[entry]: column for entry, column in TIME_OF.items()},
                       "CPU time of the network stack, by its entry point"),
                Spread("softirqs_ns", "softirq", {name: f"{name}_ns" for name in _VECTOR_HELP},
                       "CPU time in other softirqs, only partly spent on networking"),
            ),
        ),
    ),
)  # fmt: skip

STACKS = Table(
    name="stacks",
    fields=(
        Field("id", Kind.KEY, "ID", "sequence number of the stack", importance=2, role=FieldRole.NUMBER),
        _ENTRY,
        Field("cpu", Kind.LABEL, "CPU", "the processor", importance=60),
        Field("process", Kind.TEXT, "PROCESS", "name of the process that made the call; none in softirqs",
              importance=70),
        _CATEGORY,
        _SAMPLES,
        _TIME,
        Field("stack", Kind.TEXT, "STACK", "kernel functions from the entry point inwards, separated by ;", width=60,
              importance=100, role=FieldRole.SYMBOLS),
    ),
    screen=("entry", "cpu", "process", "category", "time_ns_per_s", "samples", "stack"),
    text=("entry", "cpu", "process", "category", "samples", "time_ns", "stack"),
    sort="-samples",
    begins_at_zero=True,
    hooks=("samples",),
    exports=("folded", "speedscope", "svg"),
    metrics=(Metrics(("cpu", "entry", "category"), ("time_ns",), prefix="cpu_category"),),
)  # fmt: skip

CATEGORY_SHARES = Table(
    name="categories",
    fields=(
        Field("id", Kind.KEY, "ID", "entry point and category, as one number", importance=2, role=FieldRole.NUMBER),
        _ENTRY,
        _CATEGORY,
        _SAMPLES,
        Field("entry_samples", Kind.COUNTER, "OF", "samples of the entry point", width=9, importance=2),
        Field("share", Kind.RATIO, "OF ENTRY", "share of the entry point's samples", importance=92,
              parts=("samples", "entry_samples"), formula="samples / entry_samples"),
        _TIME,
        Field("note", Kind.TEXT, "NOTE", "why a number is missing", width=40, importance=40, role=FieldRole.PROSE),
    ),
    screen=("entry", "category", "share", "time_ns_per_s", "samples", "note"),
    text=("entry", "category", "samples", "share", "time_ns", "note"),
    sort="-samples",
    text_sort="id",
    default_filter="samples>0",
    begins_at_zero=True,
    hooks=("samples",),
    adds_up=False,
    metrics=(Metrics(("entry", "category"), ("samples",), prefix="cpu_category"),),
    measures=(
        Measure("CPU", ("category",), "time_ns", 5e6, "{category} takes {now} of a CPU, {before} before"),
    ),
)  # fmt: skip

NO_PROCESS = "(no process)"
"""Process name for softirqs that served no known process."""

PROCESSES = Table(
    name="processes",
    fields=(
        Field("id", Kind.KEY, "ID", "sequence number of the process", importance=2, role=FieldRole.NUMBER),
        Field("process", Kind.TEXT, "PROCESS", f"name of the process. {NO_PROCESS} stands for softirqs that served no "
              "socket of a known process: they forward, bridge, drop or reply, or ran before the socket was known. "
              "They are charged to no process", importance=100),
        Field("pid", Kind.LABEL, "PID", "process ID", width=8, importance=90),
        *_OF_ENTRIES,
        _IO_WORKERS,
        _time("softirq_ns", "SOFTIRQ", "CPU time of softirqs and of threads that poll devices. A process has what "
              f"served its sockets, by samples; {NO_PROCESS} has the rest. The sum equals that of `cpu`", 70),
    ),
    screen=("process", "pid", "network_ns_per_s", "tx_syscalls_ns_per_s", "rx_syscalls_ns_per_s",
            "softirq_ns_per_s", "io_workers_ns_per_s"),
    text=("process", "pid", "network_ns", "tx_syscalls_ns", "rx_syscalls_ns", "io_workers_ns", "softirq_ns"),
    sort="-network_ns_per_s",
    begins_at_zero=True,
    cumulative=True,
    hooks=("samples",),
    metrics=(
        Metrics(
            ("process",),
            (Spread("network_ns", "entry",
                    {ENTRIES[entry]: TIME_OF[entry] for entry in (TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS)}
                    | {"softirqs": "softirq_ns"},
                    "CPU time of the network stack, by process and entry point"),),
            prefix="cpu_by_process",
            top="process",
            limit=20,
        ),
    ),
    measures=(
        Measure("CPU of processes", ("process",), "network_ns", 5e6,
                "the network stack takes {now} of a CPU for {process}, {before} before"),
    ),
)  # fmt: skip

# --- hooks --------------------------------------------------------------------------------------------------------

HOOK_SAMPLES = Hook("samples", "what CPUs do inside the network stack, sampled many times a second",
                    ("stack", "category", "samples", "entry_samples", "time_ns", "network_ns", "softirq_ns",
                     *TIME_OF.values(), *(f"{name}_ns" for name in _VECTOR_HELP)))  # fmt: skip
HOOK_SERVED = Hook("served", "the sockets that softirqs serve", ("softirq_ns",), requires=HOOK_SAMPLES.name)

# --- options ------------------------------------------------------------------------------------------------------

MIN_SAMPLES = 10
"""Minimum samples of a CPU per interval, so that each represents at most a tenth of it."""


def _check_frequency(frequency_hz: int, interval_s: float) -> None:
    """Raise UsageError if an interval would have too few samples."""
    if frequency_hz * interval_s < MIN_SAMPLES:
        raise UsageError(
            f"--frequency {frequency_hz} is too low for {interval_s:g} s: "
            f"a sample would represent more than 1/{MIN_SAMPLES} of that time",
            f"give --frequency {math.ceil(MIN_SAMPLES / interval_s)} or more, or a longer time",
        )


FREQUENCY = Option(
    "frequency",
    "Samples of each CPU per second",
    default=997,  # a prime, to avoid lockstep with other periodic work
    metavar="HZ",
    minimum=1,
    maximum=10_000,
    check=_check_frequency,
)

LENS = Lens(
    id="cpu",
    title="CPU",
    order=2,
    digit="2",
    question="what the network stack costs in CPU time, and where",
    tables=(CPUS, STACKS, CATEGORY_SHARES, PROCESSES),
    hooks=(HOOK_SAMPLES, HOOK_SERVED),
    names=frozenset({NO_PROCESS}),
    losses={
        "sockets": "samples in softirqs whose socket had no room in the map",
        "recursion": "hook runs that the kernel skipped because the hook was already running on that CPU",
        "rows": "processes without a row: beyond the maximum, those that used the network least",
        "ticks": "ticks that the clock missed: the others of that CPU stand for their time",
        "walks": "samples whose stack the kernel could not walk",
        "collisions": "samples whose stack has the same hash as another stack",
        "stacks": "samples whose stack had no room in the map",
        "not_kept": "samples whose stack had no room for a row",
        "cpus": "online CPUs without a sampling clock: they are not sampled",
    },
    options=(FREQUENCY,),
)
