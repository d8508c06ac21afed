# SPDX-License-Identifier: Apache-2.0
"""Sample the network stack with perf, and classify the samples independently of nettop."""

import contextlib
import os
import re
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from programs import run, running

SAMPLING = ("perf", "record", "-g", "-e", "cpu-clock", "-k", "CLOCK_MONOTONIC")
SAME_HZ = "997"
PERF_HZ = [991 - 4 * cpu for cpu in range(os.cpu_count() or 1)]
"""perf's frequencies by CPU when it runs along with nettop (SAME_HZ). At equal ones each tick would follow nettop's,
or another CPU's, at a fixed distance, and sample delays by that interrupt more often than traffic."""
READ = ("perf", "script", "-F", "comm,tid,cpu,time,ip,sym")

PARTS = {
    "nettop itself": r"bpf_prog_[0-9a-f]{16}\w* bpf_trace_run\d+ __bpf_trace_\w+ __traceiter_\w+ bpf_trampoline_\w+",
    "socket wake-up": r"sock_def_(readable|write_space|wakeup|error_report) sk_stream_write_space ep_poll_callback",
    "connection tracking": r"_*nf_(conntrack|ct|nat)_\w+ nf_confirm hash_conntrack\w* ipv[46]_(conntrack|confirm)\w*",
    "netfilter": r"nf_hook\w* _*nft_\w+ (ip6?|arp)t_\w+ nf_queue\w*",
    "bridging": r"_*br_\w+",
    "TC": r"tcf_\w+ cls_\w+ tcx?_run sch_handle_\w+",
    "GRO": r"(?!gro_cell)\w*gro_\w+",
    "XDP": r"(?!veth_)\w*xdp_\w+",
    "transmit": r"_*dev_(direct|queue|hard_start)_\w*xmit\w* (?!tcp_)\w+_xmit(_skb|_one)? validate_xmit\w+ __qdisc_run"
                r" qdisc_\w+ _*ip6?_((finish_|mc_)?output\d?|local_out|send_skb) neigh_\w+output net_tx_action",
    "TCP": r"_*m?p?tcp_(?!\w*(gro|gso|diag|wfree|early_demux))\w+",
    "UDP": r"_*udp(v?[46])?_(?!\w*(gro|gso|diag|early_demux|tunnel|lib_lookup))\w+",
    "forwarding": r"ip6?_(sublist_)?forward\w*",
    "local delivery": r"ip6?_(sublist_)?(local_deliver|protocol_deliver)\w* ip6_input\w*",
    "IPv4 receive": r"ip_(list_|sublist_)?rcv\w* ip_route_input\w*",
    "IPv6 receive": r"ipv?6_(list_|sublist_)?rcv\w* ip6_route_input\w*",
    "core receive": r"_*netif_r(eceive_skb|x)\w* enqueue_to_backlog",
    "driver poll": r"_*napi_(poll|complete_done|busy_loop)\w* process_backlog \w+_poll veth_xdp_\w+",
    "softirq loop": r"net_rx_action",
}  # fmt: skip
"""Patterns of functions by part; the first match gives a frame's part. nettop uses exact names instead."""

_PARTS = tuple((label, re.compile(f"(?:{'|'.join(words.split())})")) for label, words in PARTS.items())

SOFTIRQ = re.compile(r"handle_softirqs|__do_softirq")
NETWORK_ACTION = {"net_rx_action": "RX softirq", "net_tx_action": "TX softirq"}
SENDS = re.compile(
    r"_*(sys_send(to|m?msg|file(64)?)|sock_(write_iter|sendmsg\w*|splice_eof)|splice_to_socket)"
)
RECEIVES = re.compile(r"_*(sys_recv(from|m?msg)|sock_(read_iter|recvmsg\w*|splice_read))")
LOCAL = re.compile(r"unix_(stream|dgram|seqpacket)_|netlink_(send|recv)msg|alg_|af_alg_")
"""Socket functions that do not count as network."""
SYSTEM_CALL = re.compile(r"do_syscall_64|entry_SYSCALL_64\w*|el0t?_\w*svc\w*")
WRAPPERS = {
    re.compile(r"_*(libc_)?(send(to|msg|mmsg)?|write)(\$\w+)?"): "TX syscalls",
    re.compile(r"_*(libc_)?(recv(from|msg|mmsg)?|read)(\$\w+)?"): "RX syscalls",
}
"""Functions of libc by which the bench's programs make system calls on sockets."""
SUFFIX = re.compile(r"\.(constprop|isra|part|cold|llvm)\b.*")
TRAFFIC = ("iperf3", "flood")


@dataclass(frozen=True)
class Sample:
    """One sample: time (CLOCK_MONOTONIC, s), command, and frames of the kernel and of user space, leaf first."""

    at_s: float
    command: str
    kernel: tuple[str, ...]
    user: tuple[str, ...]


@dataclass
class Seen:
    """Samples inside the network stack by entry point and part; `strange` counts stacks that match no part."""

    parts: Counter[tuple[str, str]] = field(default_factory=Counter)
    strange: Counter[str] = field(default_factory=Counter)
    unresolved: int = 0


def entry_and_frames(sample: Sample) -> tuple[str, Sequence[str]] | None:
    """Return the entry point of a sample and the frames inside it; None outside the network stack.

    A softirq that interrupts a system call is not part of it. Only the innermost softirq counts; the result is None if
    it is not a network softirq, or if the sample is only in the softirq loop.
    """
    kernel = sample.kernel
    for place, name in enumerate(kernel):
        if SOFTIRQ.fullmatch(name):
            entry = NETWORK_ACTION.get(kernel[place - 1]) if place else None
            return (entry, kernel[:place]) if entry else None
    if not any(SYSTEM_CALL.fullmatch(name) for name in kernel) or any(map(LOCAL.match, kernel)):
        return None
    for entry, pattern in (("TX syscalls", SENDS), ("RX syscalls", RECEIVES)):
        if any(pattern.fullmatch(name) for name in kernel):
            return entry, kernel
    if sample.command in TRAFFIC and sample.user:
        for pattern, entry in WRAPPERS.items():
            if pattern.fullmatch(sample.user[0]):
                return entry, kernel
    return None


def part_of(frames: Sequence[str]) -> str | None:
    """Return the part of the innermost frame that belongs to one."""
    return next((label for name in frames for label, pattern in _PARTS if pattern.fullmatch(name)), None)


def classified(samples: Sequence[Sample]) -> Seen:
    """Classify the samples inside the network stack."""
    seen = Seen()
    for sample in samples:
        in_network = entry_and_frames(sample)
        if in_network is None:
            continue
        entry, frames = in_network
        seen.unresolved += frames[0] == "[unknown]"
        part = part_of(frames) or ("system call" if entry.endswith("syscalls") else "other")
        if part == "other":
            seen.strange[";".join(frames)] += 1
        seen.parts[entry, part] += 1
    return seen


def samples_of(text: str) -> Iterator[Sample]:
    """Parse the output of perf script: a header line, a line per frame, an empty line."""
    for block in text.split("\n\n"):
        head, *lines = block.strip("\n").split("\n")
        match = re.match(r"\s*(.+?)\s+\d+\s+\[\d+\]\s+([\d.]+):", head)
        if not match:
            continue
        frames = [line.split(None, 1) for line in lines]
        names = [(int(address, 16), SUFFIX.sub("", name.strip())) for address, name in frames]
        yield Sample(
            float(match[2]),
            match[1],
            tuple(name for address, name in names if address >> 63),
            tuple(name for address, name in names if not address >> 63),
        )


class Recording(contextlib.ExitStack):
    """perf record in the background, one process per CPU; its files are removed when the `with` block exits."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self._files = {folder / f"{cpu}.data": (cpu, hertz) for cpu, hertz in enumerate(PERF_HZ)}
        self._recording = self.enter_context(contextlib.ExitStack())
        for file, (cpu, hertz) in self._files.items():
            words = (*SAMPLING, "-C", str(cpu), "-F", str(hertz), "-o", str(file))
            self._recording.enter_context(running(*words, end_by=signal.SIGINT))

    def is_recording(self) -> bool:
        """Return whether each file has data."""
        return all(file.exists() and file.stat().st_size > 0 for file in self._files)

    def end(self) -> None:
        """End the recording."""
        self._recording.close()

    def samples(self) -> list[Sample]:
        """Return all samples in order of time, after the end of the recording."""
        samples = (sample for file in self._files for sample in samples_of(run(*READ, "-i", str(file))))
        return sorted(samples, key=lambda sample: sample.at_s)
