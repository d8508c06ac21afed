// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// PIDs in nettop's PID namespace. nettop.kernel.bpf.process_columns puts the slices of kernel structs in
// front of this file, and defines PID_NAMESPACE, an inode number, unless that namespace is the initial one. A
// task stores its PID in the initial namespace; struct pid has one for each namespace down to the task's own.
#pragma once

#include <nettop/verifier.h>

#define MAX_PID_NS_LEVEL 32 /* include/linux/pid_namespace.h */
#define UNKNOWN_PID (~0U)

// Returns the PID of a task's process; UNKNOWN_PID if it is outside the namespace.
static __always_inline u32 visible_pid(struct task_struct *task) {
#ifdef PID_NAMESPACE
  struct task_struct *leader = (struct task_struct *)task->group_leader;
  struct pid *pid = NULL;
  u32 deepest = 0, namespace = 0;
  // Uses the helper because the verifier allows no arithmetic on a typed pointer.
  read_kernel(&pid, sizeof(pid), &leader->thread_pid);
  read_kernel(&deepest, sizeof(deepest), &pid->level);
#pragma clang loop unroll(disable)
  for (u32 level = 1; level <= MAX_PID_NS_LEVEL && level <= deepest; level++) {
    struct upid number = {};
    read_kernel(&number, sizeof(number), (struct upid *)pid->numbers + level);
    read_kernel(&namespace, sizeof(namespace), &((struct pid_namespace *)number.ns)->inum);
    if (namespace == PID_NAMESPACE)
      return number.nr;
  }
  return UNKNOWN_PID;
#else
  return task->tgid;
#endif
}
