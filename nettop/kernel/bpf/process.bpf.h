// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Fills the columns from which nettop.kernel.host.processes names a row's process. The slices of kernel
// structs that process_columns.py declares and pid_namespace.bpf.h come in front of this file.
#pragma once

// Copies the process columns from one struct to another.
#define COPY_PROCESS(to, from)                                                                               \
  do {                                                                                                       \
    (to)->pid = (from)->pid;                                                                                 \
    (to)->start_time = (from)->start_time;                                                                   \
    (to)->css_set = (from)->css_set;                                                                         \
    ((u64 *)(to)->comm)[0] = ((u64 *)(from)->comm)[0];                                                       \
    ((u64 *)(to)->comm)[1] = ((u64 *)(from)->comm)[1];                                                       \
  } while (0)

// Returns the lower half of the id of a task's control group in the unified hierarchy.
static __always_inline u32 cgroup_of(struct task_struct *task) {
  struct css_set *groups = (struct css_set *)task->cgroups;
  struct cgroup *group = (struct cgroup *)groups->dfl_cgrp;
  struct kernfs_node *folder = (struct kernfs_node *)group->kn;
  return folder->id;
}

// Fills the process columns from a task.
#define PUT_PROCESS(to, task)                                                                                \
  do {                                                                                                       \
    struct task_struct *leader = (struct task_struct *)(task)->group_leader;                                 \
    (to)->pid = visible_pid(task);                                                                           \
    (to)->start_time = leader->start_boottime;                                                               \
    (to)->css_set = (task)->cgroups;                                                                         \
    (to)->cgroup_id = cgroup_of(task);                                                                       \
    ((u64 *)(to)->comm)[0] = ((u64 *)leader->comm)[0];                                                       \
    ((u64 *)(to)->comm)[1] = ((u64 *)leader->comm)[1];                                                       \
  } while (0)
