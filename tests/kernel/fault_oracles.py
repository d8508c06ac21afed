# SPDX-License-Identifier: Apache-2.0
"""The kernel's own numbers on a namespace, as ss, nstat, tc and iproute2 print them, to prove that a fault is there."""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .fault_programs import pause
from .lab import Namespace

STAT = Path("/proc/stat")
DROPPED, SQUEEZED = 1, 2
"""Columns of softnet_stat."""


@dataclass(frozen=True)
class Line:
    """One socket in ss's output."""

    state: str
    receive_queue: int
    send_queue: int
    local: str
    remote: str
    rest: str

    def number(self, name: str) -> int:
        """Return `name:NUMBER` of the socket's details; 0 if ss left it out."""
        match = re.search(rf"\b{name}:(\d+)", self.rest)
        return int(match[1]) if match else 0

    @property
    def drops(self) -> int:
        """The number of datagrams that found no room in the receive buffer."""
        match = re.search(r"skmem:\(.*?,d(\d+)\)", self.rest)
        return int(match[1]) if match else 0

    @property
    def keepalive_probes(self) -> int:
        """The number of keepalive probes in a row that were not answered."""
        match = re.search(r"timer:\(keepalive,[^,]*,(\d+)\)", self.rest)
        return int(match[1]) if match else 0

    @property
    def is_probing(self) -> bool:
        """Whether the kernel probes a window that the peer has closed."""
        return "timer:(persist" in self.rest


def ss(namespace: Namespace, *words: str) -> list[Line]:
    """Return the sockets of a namespace that ss selects by these options and filters."""
    return [parsed(line) for line in namespace.run("ss", "-HOnieom", *words).splitlines() if line.strip()]


def parsed(line: str) -> Line:
    """Parse a line of ss for one protocol."""
    state, receive, send, local, remote, *rest = line.split(maxsplit=5)
    return Line(state, int(receive), int(send), local, remote, "".join(rest))


def established(namespace: Namespace, where: str) -> list[Line]:
    """Return the established TCP sockets that match ss's filter."""
    return [line for line in ss(namespace, "-ta", where) if line.state == "ESTAB"]


def is_stuck(namespace: Namespace, port: int) -> bool:
    """Return whether a peer at that port has closed its window on a full send queue."""
    lines = established(namespace, f"dport = {port}")
    return any(line.send_queue > 50_000 and line.is_probing for line in lines)


def gets_no_answer(namespace: Namespace, port: int) -> bool:
    """Return whether data to that port is sent again and again."""
    lines = established(namespace, f"dport = {port}")
    return any(
        line.number("backoff") >= 3 and line.number("unacked") and line.send_queue > 5000 for line in lines
    )


def in_state(namespace: Namespace, state: str) -> int:
    """Return the number of TCP sockets in this state, as ss names it."""
    return len(namespace.run("ss", "-Htan", "state", state).splitlines())


def listener(namespace: Namespace, port: int) -> Line:
    """Return the TCP listener on this port: its receive queue is the accept queue, its send queue the limit."""
    (line,) = ss(namespace, "-tl", f"sport = {port}")
    return line


def nstat(namespace: Namespace, name: str) -> int:
    """Return one SNMP counter of a namespace."""
    return int(json.loads(namespace.run("nstat", "-aszj", name))["kernel"][name])


def counted(namespace: Namespace, **least: int) -> bool:
    """Return whether each of these SNMP counters has reached this number."""
    return all(nstat(namespace, name) >= number for name, number in least.items())


def per_second(count: Callable[[], int], seconds: float = 0.5) -> float:
    """Return the growth of a counter per second."""
    first, began = count(), time.monotonic()
    pause(seconds)
    return (count() - first) / (time.monotonic() - began)


def grows(namespace: Namespace, name: str, at_least: float) -> bool:
    """Return whether a counter grows that much per second."""
    return per_second(lambda: nstat(namespace, name)) >= at_least


def link_flags(namespace: Namespace, device: str) -> set[str]:
    """Return the flags that iproute2 shows of a device."""
    return set(namespace.link(device)["flags"])


def transmit_drops(namespace: Namespace, device: str) -> int:
    """Return the device's counter of packets dropped on the way out."""
    return int(namespace.link(device)["stats64"]["tx"]["dropped"])


def queue_drops(namespace: Namespace, device: str) -> int:
    """Return the number of packets that the device's queueing discipline dropped."""
    shown = namespace.run("tc", "-j", "-s", "qdisc", "show", "dev", device)
    return sum(int(load["drops"]) for load in json.loads(shown))


def backlog(column: int) -> int:
    """Return the sum over all CPUs of a column of softnet_stat."""
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[column], 16) for line in lines)


def softirq_share(cpu: int) -> float:
    """Return the share of the next second that a CPU spends in softirqs."""

    def ticks() -> int:
        of_cpu = STAT.read_text().partition(f"cpu{cpu} ")[2]
        return int(of_cpu.split()[6])

    return per_second(ticks, 1) / os.sysconf("SC_CLK_TCK")


def rule_counter(namespace: Namespace) -> int:
    """Return the packets that the rules with a counter have matched."""
    return sum(
        int(packets) for packets in re.findall(r"packets (\d+)", namespace.run("nft", "list", "ruleset"))
    )


def open_files(pid: int) -> tuple[int, int, int]:
    """Return a process's open descriptors, how many of them are sockets, and the soft limit."""
    names = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    limits = Path(f"/proc/{pid}/limits").read_text()
    soft = int(limits.partition("Max open files")[2].split()[0])
    return len(names), sum(name.startswith("socket:") for name in names), soft
