# SPDX-License-Identifier: Apache-2.0
"""A host of four CPUs that receives, filters, answers and forwards, through the lens `cpu`.

Stacks are those of Linux 6.12 under iperf3 over veth with conntrack, thinned out.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from nettop.snapshots.cpu import (
    CATEGORIES,
    CATEGORY_OF,
    CATEGORY_SHARES,
    CPUS,
    ENTRIES,
    IO_WORKERS,
    LENS,
    NAPI_THREADS,
    NO_PROCESS,
    OTHER,
    PROCESSES,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    STACKS,
    TIME_OF,
    TX_SOFTIRQ,
    TX_SYSCALLS,
    VECTORS,
)
from nettop.snapshots.snapshot import Rows, Snapshot, TextTable
from tests.builders.harness import Step
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_hooks, make_rows

FREQUENCY_HZ = 997
SAMPLE_NS = 1_000_000_000 // FREQUENCY_HZ
SECOND_NS = 1_000_000_000
VIA = {
    "samples": "perf cpu-clock",
    "served": "tp_btf/tcp_probe",
}

_CALLERS = {TX_SYSCALLS: "nginx", RX_SYSCALLS: "haproxy"}
"""The process of each entry point's calls."""

_SEND = """
entry_SYSCALL_64_after_hwframe
 do_syscall_64 1
  __x64_sys_sendto
   __sys_sendto 2
    sock_sendmsg 1
     security_socket_sendmsg 1
     inet_sendmsg
      tcp_sendmsg 1
       lock_sock_nested 1
       tcp_sendmsg_locked 7
        _copy_from_iter
         copy_user_generic 22
        skb_page_frag_refill 2
        tcp_stream_alloc_skb 2
         __alloc_skb 2
          kmem_cache_alloc_node_noprof 3
        tcp_push 1
         __tcp_push_pending_frames
          tcp_write_xmit 4
           tcp_tso_segs 1
           __tcp_transmit_skb 4
            skb_clone 1
            __ip_queue_xmit 2
             ip_local_out
              nf_hook_slow 1
               nf_conntrack_in 3
               nft_do_chain 4
              ip_output
               ip_finish_output2 2
                __dev_queue_xmit 3
                 dev_hard_start_xmit 1
                  veth_xmit 4
                 __qdisc_run
                  sch_direct_xmit 1
                  fq_codel_dequeue 2
     udp_sendmsg 2
      ip_make_skb 1
       __ip_append_data 2
      udp_send_skb 1
       ip_send_skb 1
  __x64_sys_write
   ksys_write 1
    vfs_write 1
     sock_write_iter 1
      unix_stream_sendmsg 3
"""
_RECEIVE = """
entry_SYSCALL_64_after_hwframe
 do_syscall_64 1
  __x64_sys_recvfrom
   __sys_recvfrom 2
    sock_recvmsg 1
     inet_recvmsg
      tcp_recvmsg 1
       tcp_recvmsg_locked 6
        skb_copy_datagram_iter
         __skb_datagram_iter 2
          _copy_to_iter
           copy_user_generic 26
        tcp_cleanup_rbuf 1
         __tcp_send_ack 1
          __tcp_transmit_skb 1
           __ip_queue_xmit 1
        __kfree_skb
         skb_release_data 5
       release_sock 1
        tcp_v4_do_rcv 1
         tcp_rcv_established 2
      udp_recvmsg 3
       __skb_recv_udp 2
       skb_consume_udp 1
"""
_RX_SOFTIRQ = """
handle_softirqs 1
 net_rx_action 3
  __napi_poll 1
   process_backlog 5
    __netif_receive_skb
     __netif_receive_skb_one_core 3
      ip_rcv 4
       ip_rcv_core 5
       nf_hook_slow 2
        nf_conntrack_in 6
         nf_ct_get_tuple 2
         __nf_conntrack_find_get 3
        nft_do_chain 8
         nft_meta_get_eval 2
         nft_immediate_eval 1
        nf_nat_inet_fn 2
       ip_rcv_finish 2
        ip_local_deliver 1
         ip_local_deliver_finish
          ip_protocol_deliver_rcu 1
           tcp_v4_rcv 9
            __inet_lookup_established 5
            tcp_filter 1
             sk_filter_trim_cap 1
            tcp_v4_do_rcv 1
             tcp_rcv_established 11
              tcp_ack 7
               tcp_clean_rtx_queue 6
                __kfree_skb 3
               tcp_rate_skb_delivered 1
               tcp_cong_control 1
                bbr_main 2
              tcp_queue_rcv 3
               tcp_try_coalesce 3
              tcp_data_ready
               sock_def_readable 2
                __wake_up_sync_key 1
                 ep_poll_callback 4
                  __wake_up 1
                   autoremove_wake_function
                    try_to_wake_up 7
                     ttwu_queue_wakelist 1
              __tcp_ack_snd_check 1
               __tcp_send_ack 2
                ip_output 1
                 ip_finish_output2 1
                  __dev_queue_xmit 2
           udp_rcv 1
            __udp4_lib_rcv 4
             udp_queue_rcv_one_skb 3
              __udp_enqueue_schedule_skb 3
               sock_def_readable 1
        ip_forward 2
         ip_forward_finish 1
          ip_output
           ip_finish_output2 1
            __dev_queue_xmit 3
             dev_hard_start_xmit 1
     sch_handle_ingress 1
      tcf_classify 1
       cls_bpf_classify 3
   virtnet_poll 4
    napi_gro_receive 3
     dev_gro_receive 6
      inet_gro_receive 3
       tcp4_gro_receive 4
        skb_gro_receive 6
    virtnet_receive 4
     page_pool_alloc_pages 2
    napi_complete_done 1
     gro_normal_list
      netif_receive_skb_list_internal 1
       __netif_receive_skb_list_core 1
        ip_list_rcv 1
         ip_sublist_rcv 2
          tcp_v4_rcv 2
    bpf_prog_run_xdp 2
     bpf_prog_6deef7357e7b4530_filter 4
  __napi_schedule 1
"""
_TX_SOFTIRQ = """
handle_softirqs 1
 net_tx_action 3
  __qdisc_run 1
   sch_direct_xmit 2
    dev_hard_start_xmit 1
     virtnet_start_xmit 6
  napi_consume_skb
   skb_release_data 2
"""
_IO = """
ret_from_fork_asm
 io_wq_worker
  io_wq_submit_work 1
   io_issue_sqe 1
    io_send 1
     sock_sendmsg
      tcp_sendmsg
       tcp_sendmsg_locked 5
        copy_user_generic 4
"""
_NAPI = """
ret_from_fork_asm
 kthread
  napi_threaded_poll 1
   __napi_poll 1
    veth_poll 3
     veth_xdp_rcv_skb 2
     napi_gro_receive 2
      dev_gro_receive 3
"""
_TREES = {
    TX_SYSCALLS: _SEND,
    RX_SYSCALLS: _RECEIVE,
    TX_SOFTIRQ: _TX_SOFTIRQ,
    RX_SOFTIRQ: _RX_SOFTIRQ,
    IO_WORKERS: _IO,
    NAPI_THREADS: _NAPI,
}

_LOADS: Mapping[int, Mapping[int, float]] = {
    0: {TX_SYSCALLS: 0.060, RX_SYSCALLS: 0.050, TX_SOFTIRQ: 0.012, RX_SOFTIRQ: 0.235, NAPI_THREADS: 0.018},
    1: {TX_SYSCALLS: 0.082, RX_SYSCALLS: 0.011, TX_SOFTIRQ: 0.004, RX_SOFTIRQ: 0.031},
    2: {TX_SYSCALLS: 0.012, RX_SYSCALLS: 0.068, RX_SOFTIRQ: 0.009, IO_WORKERS: 0.021},
    3: {TX_SYSCALLS: 0.004, RX_SOFTIRQ: 0.016},
}
"""The share of each CPU that each entry point takes."""

_OTHER_VECTORS = {"timer": 0.003, "sched": 0.004, "rcu": 0.002, "tasklet": 0.0}


def example_steps(seconds: int = 3, cpus: int = 4, **changed: object) -> list[Snapshot]:
    """Return snapshots a second apart, the first of a source that has just begun; `changed` are members of each."""
    host = _Host(cpus)
    return [host.snapshot(step, changed) for step in range(seconds)]


def idle_steps(seconds: int = 3) -> list[Snapshot]:
    """Return `example_steps` of a host whose network has become idle."""
    return [_later(_Host(4).snapshot(0, {}), step) for step in range(seconds)]


class _Host:
    """Counters that grow from snapshot to snapshot."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus
        self.chance = random.Random(7)
        self.samples: Counter[tuple[int, int, tuple[str, ...]]] = Counter()
        self.texts: dict[str, dict[str, TextTable]] = {table.name: {} for table in LENS.tables}
        self.leaves = {entry: list(_leaves(text)) for entry, text in _TREES.items()}

    def snapshot(self, step: int, changed: Mapping[str, object]) -> Snapshot:
        """Return the newest state, and a second more for the next one."""
        taken_ns = TAKEN_NS + step * SECOND_NS
        cpus = [self._cpu(cpu, step) for cpu in range(self.cpus)]
        made = [
            (CPUS, cpus),
            (STACKS, self._stacks()),
            (CATEGORY_SHARES, self._categories()),
            (PROCESSES, _processes(step, sum(cpu["network_ns"] for cpu in cpus))),
        ]
        tables: dict[str, Rows] = {
            table.name: make_rows(rows, table, taken_ns, texts=self.texts[table.name]) for table, rows in made
        }
        words = {"via": VIA} | dict(changed)
        hooks = make_hooks(words.pop("via"), words.pop("missing", {}))  # type: ignore[arg-type]
        counts = {"sampled_hz": FREQUENCY_HZ, "samples": self.samples.total(), "unresolved": 11 + step}
        counts["watched_ns"] = step * SECOND_NS
        members = {"counts": counts, "lost": {"ticks": 0, "stacks": 0}} | words
        self._run(1)
        return Snapshot(
            "cpu",
            WALL_NS + step * SECOND_NS,
            taken_ns + 5 * SECOND_NS,
            tables,
            hooks=hooks,
            **members,  # type: ignore[arg-type]
        )

    def _run(self, seconds: int) -> None:
        for cpu in range(self.cpus):
            for entry, share in _LOADS[cpu % len(_LOADS)].items():
                paths, weights = zip(*self.leaves[entry], strict=True)
                times = round(share * FREQUENCY_HZ * seconds / (1 + cpu // len(_LOADS)))
                for path in self.chance.choices(paths, weights, k=times):
                    self.samples[entry, cpu, path] += 1

    def _stacks(self) -> list[Row]:
        return [
            {
                "id": at,
                "entry": ENTRIES[entry],
                "cpu": cpu,
                "process": _CALLERS.get(entry),
                "category": CATEGORIES[_category(path)].label,
                "samples": samples,
                "time_ns": samples * SAMPLE_NS,
                "stack": ";".join(path),
            }
            for at, ((entry, cpu, path), samples) in enumerate(self.samples.items(), 1)
        ]

    def _categories(self) -> list[Row]:
        by_entry: Counter[int] = Counter()
        totals: Counter[tuple[int, int]] = Counter()
        for (entry, _, path), samples in self.samples.items():
            by_entry[entry] += samples
            totals[entry, _category(path)] += samples
        rows = [
            {
                "id": entry << 8 | category,
                "entry": ENTRIES[entry],
                "category": CATEGORIES[category].label,
                "samples": samples,
                "entry_samples": by_entry[entry],
                "time_ns": samples * SAMPLE_NS,
            }
            for (entry, category), samples in totals.items()
        ]
        lacking = {"category": "bridging", "samples": None, "entry_samples": None, "time_ns": None}
        why = {"note": "n/a: this kernel has none of br_forward, br_handle_frame"}
        return [*rows, {"id": 1 << 16, "entry": None} | lacking | why]

    def _cpu(self, cpu: int, seconds: int) -> Row:
        """Return one row: what the samples say, as exact times would have it."""
        of_entries = dict.fromkeys(ENTRIES, 0)
        for (entry, where, _), samples in self.samples.items():
            if where == cpu:
                of_entries[entry] += samples * SAMPLE_NS
        vectors = {
            f"{name}_ns": round(_OTHER_VECTORS.get(name, 0.0) * seconds * SECOND_NS) for name in VECTORS
        }
        times = {TIME_OF[entry]: time_ns for entry, time_ns in of_entries.items()}
        softirqs = times["tx_softirq_ns"] + times["rx_softirq_ns"] + sum(vectors.values())
        kept = {name: ns for name, ns in vectors.items() if name in CPUS.by_name}
        whole = {"cpu": cpu, "network_ns": sum(of_entries.values()), "stat_softirq_ns": softirqs * 4 // 5}
        return whole | times | kept


def _leaves(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the stacks of an indented tree, and how often each was sampled."""
    path: list[str] = []
    for line in text.strip().splitlines():
        symbol, _, weight = line.strip().partition(" ")
        path[len(line) - len(line.lstrip()) :] = [symbol]
        if weight:
            yield tuple(path), int(weight)


def _category(path: tuple[str, ...]) -> int:
    """Return the category of the deepest function that has one."""
    return next((CATEGORY_OF[symbol] for symbol in reversed(path) if symbol in CATEGORY_OF), OTHER)


def _processes(step: int, network_ns: int) -> list[Row]:
    """Return the time of all CPUs by process; the rest belongs to no process."""
    shares = (
        ("iperf3", 4127, 0.141, 0.114, 0.0, 0.15),
        ("nginx", 1812, 0.012, 0.009, 0.0, 0.03),
        ("postgres", 977, 0.004, 0.006, 0.0, 0.01),
        ("io-bench", 5210, 0.001, 0.0, 0.021, 0.0),
        (None, 6033, 0.0, 0.0, 0.0, 0.02),
    )
    names = ("tx_syscalls_ns", "rx_syscalls_ns", "io_workers_ns", "softirq_ns")
    rows = [
        {"id": at, "process": process, "pid": pid, "network_ns": round(sum(parts) * step * SECOND_NS)}
        | {name: round(part * step * SECOND_NS) for name, part in zip(names, parts, strict=True)}
        for at, (process, pid, *parts) in enumerate(shares, 2)
    ]
    left_ns = network_ns - sum(row["network_ns"] for row in rows)
    nobodys = {"id": 1, "process": NO_PROCESS, "network_ns": left_ns, "softirq_ns": left_ns}
    return [nobodys, *rows]


def _later(snapshot: Snapshot, seconds: int) -> Snapshot:
    """Return the same numbers, some seconds later."""
    step = seconds * SECOND_NS
    tables = {
        name: dataclasses.replace(rows, taken_ns=rows.taken_ns + step)
        for name, rows in snapshot.tables.items()
    }
    counts = {**snapshot.counts, "watched_ns": snapshot.counts["watched_ns"] + step}
    snapshot = dataclasses.replace(snapshot, counts=counts)
    return dataclasses.replace(
        snapshot, wall_ns=snapshot.wall_ns + step, boot_ns=snapshot.boot_ns + step, tables=tables
    )


def without(steps: list[Snapshot], *, via: dict[str, str]) -> list[Step]:
    """Return the example on a kernel without some points."""

    return [replace(step, hooks=make_hooks(VIA | via)) for step in steps]


def make_missing(field: str, why: str) -> tuple[Any, ...]:
    """Return a hook that gives nothing."""

    return make_hooks({}, {field: why})
