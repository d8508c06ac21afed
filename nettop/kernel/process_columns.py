# SPDX-License-Identifier: Apache-2.0
"""What programs need to report processes, for process.bpf.h, and the columns that these are in."""

from __future__ import annotations

from pathlib import Path

from nettop.kernel import pid_namespace
from nettop.kernel.btf import Slice

SOURCES = (pid_namespace.SOURCE, str(Path(__file__).with_name("process.bpf.h")))
TASK_MEMBERS = ("comm", "start_boottime", "cgroups", *pid_namespace.TASK_MEMBERS)
"""What it reads of struct task_struct."""
SLICES = (
    *pid_namespace.SLICES,
    Slice("css_set", {"dfl_cgrp": "dfl_cgrp"}, {}),
    Slice("cgroup", {"kn": "kn"}, {}),
    Slice("kernfs_node", {"id": "id"}, {}),
)
COLUMNS = (("cgroup_id", "u4"), ("start_time", "u8"), ("css_set", "u8"), ("comm", "S16"))
"""The columns of a process beside its PID."""
