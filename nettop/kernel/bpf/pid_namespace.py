# SPDX-License-Identifier: Apache-2.0
"""Slices and defines that pid_namespace.bpf.h needs to report PIDs in nettop's PID namespace."""

from __future__ import annotations

from pathlib import Path

from nettop.kernel.bpf.btf import Slice
from nettop.kernel.host.facts import INITIAL_PID_NAMESPACE, Host

SOURCE = str(Path(__file__).with_name("pid_namespace.bpf.h"))
TASK_MEMBERS = ("tgid", "group_leader", "thread_pid")
"""The members of struct task_struct that pid_namespace.bpf.h reads."""
SLICES = (
    Slice("pid", {"level": "level", "numbers": "numbers"}, {}),
    Slice("upid", {"nr": "nr", "ns": "ns"}, {}),
    Slice("pid_namespace", {"inum": "ns.inum"}, {}),
)


def defines(host: Host) -> dict[str, int]:
    """Return the defines for compiling programs; none in the initial namespace, where a task's own PID is right."""
    namespace = host.pid_namespace()
    return {} if namespace == INITIAL_PID_NAMESPACE else {"PID_NAMESPACE": namespace}
