// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Fills the columns from which nettop.kernel.host.processes names a row's process. The slices of kernel
// structs that process_columns.py declares and pid_namespace.bpf.h come in front of this file.
#pragma once

#include <nettop/verifier.h>

// Copies the process columns from one struct to another.
#define COPY_PROCESS(to, from)                                                                               \
  do {                                                                                                       \
    (to)->pid = (from)->pid;                                                                                 \
    (to)->start_time = (from)->start_time;                                                                   \
    (to)->css_set = (from)->css_set;                                                                         \
    ((u64 *)(to)->comm)[0] = ((u64 *)(from)->comm)[0];                                                       \
    ((u64 *)(to)->comm)[1] = ((u64 *)(from)->comm)[1];                                                       \
  } while (0)

// Fills the process columns from a task: cgroup_id is the lower half of the id of its control group in the
// unified hierarchy. One variable for all pointers saves stack, of which there are 512 bytes.
#define PUT_PROCESS(to, task)                                                                                \
  do {                                                                                                       \
    void *at = NULL;                                                                                         \
    READ_KERNEL((to)->css_set, (task)->cgroups);                                                             \
    at = (void *)(to)->css_set;                                                                              \
    READ_KERNEL(at, ((struct css_set *)at)->dfl_cgrp);                                                       \
    READ_KERNEL(at, ((struct cgroup *)at)->kn);                                                              \
    READ_KERNEL((to)->cgroup_id, ((struct kernfs_node *)at)->id);                                            \
    READ_KERNEL(at, (task)->group_leader);                                                                   \
    READ_KERNEL((to)->start_time, ((struct task_struct *)at)->start_boottime);                               \
    read_kernel((to)->comm, sizeof((to)->comm), ((struct task_struct *)at)->comm);                           \
    (to)->pid = visible_pid(task);                                                                           \
  } while (0)
