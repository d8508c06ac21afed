# SPDX-License-Identifier: Apache-2.0
"""What programs need to report PIDs of nettop's PID namespace, for pid_namespace.bpf.h."""

from __future__ import annotations

from pathlib import Path

from nettop.kernel.btf import Slice
from nettop.kernel.facts import INITIAL_PID_NAMESPACE, Host

SOURCE = str(Path(__file__).with_name("pid_namespace.bpf.h"))
TASK_MEMBERS = ("tgid", "group_leader", "thread_pid")
"""What it reads of struct task_struct."""
SLICES = (
    Slice("pid", {"level": "level", "numbers": "numbers"}, {}),
    Slice("upid", {"nr": "nr", "ns": "ns"}, {}),
    Slice("pid_namespace", {"inum": "ns.inum"}, {}),
)


def defines(host: Host) -> dict[str, int]:
    """What the programs are compiled with; nothing in the initial namespace, where a task's own PID is right."""
    namespace = host.pid_namespace()
    return {} if namespace == INITIAL_PID_NAMESPACE else {"PID_NAMESPACE": namespace}
