# SPDX-License-Identifier: Apache-2.0
"""What programs need to report PIDs in nettop's PID namespace (pid_namespace.bpf.h), and the columns of a process that
process.bpf.h fills."""

from __future__ import annotations

from pathlib import Path

from nettop.kernel.bpf.btf import Slice
from nettop.kernel.host.facts import INITIAL_PID_NAMESPACE, Host

PID_SOURCE, _SOURCE = (
    str(Path(__file__).with_name(f"{name}.bpf.h")) for name in ("pid_namespace", "process")
)
SOURCES = (PID_SOURCE, _SOURCE)
PID_TASK_MEMBERS = ("tgid", "group_leader", "thread_pid")
TASK_MEMBERS = ("comm", "start_boottime", "cgroups", *PID_TASK_MEMBERS)
"""The members of struct task_struct that the two headers read."""
PID_SLICES = (
    Slice("pid", {"level": "level", "numbers": "numbers"}, {}),
    Slice("upid", {"nr": "nr", "ns": "ns"}, {}),
    Slice("pid_namespace", {"inum": "ns.inum"}, {}),
)
SLICES = (
    *PID_SLICES,
    Slice("css_set", {"dfl_cgrp": "dfl_cgrp"}, {}),
    Slice("cgroup", {"kn": "kn"}, {}),
    Slice("kernfs_node", {"id": "id"}, {}),
)
COLUMNS = (("cgroup_id", "u4"), ("start_time", "u8"), ("css_set", "u8"), ("comm", "S16"))
"""Columns of a process besides its PID."""


def pid_defines(host: Host) -> dict[str, int]:
    """Return the defines for compiling programs; none in the initial namespace, where a task's own PID is right."""
    namespace = host.pid_namespace()
    return {} if namespace == INITIAL_PID_NAMESPACE else {"PID_NAMESPACE": namespace}
