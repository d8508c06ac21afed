# SPDX-License-Identifier: Apache-2.0
"""Slices that process.bpf.h needs to report processes, and the columns it fills."""

from __future__ import annotations

from pathlib import Path

from nettop.kernel.bpf import pid_namespace
from nettop.kernel.bpf.btf import Slice

SOURCES = (pid_namespace.SOURCE, str(Path(__file__).with_name("process.bpf.h")))
TASK_MEMBERS = ("comm", "start_boottime", "cgroups", *pid_namespace.TASK_MEMBERS)
"""The members of struct task_struct that process.bpf.h reads."""
SLICES = (
    *pid_namespace.SLICES,
    Slice("css_set", {"dfl_cgrp": "dfl_cgrp"}, {}),
    Slice("cgroup", {"kn": "kn"}, {}),
    Slice("kernfs_node", {"id": "id"}, {}),
)
COLUMNS = (("cgroup_id", "u4"), ("start_time", "u8"), ("css_set", "u8"), ("comm", "S16"))
"""Columns of a process besides its PID."""
