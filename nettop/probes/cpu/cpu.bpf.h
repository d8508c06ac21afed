// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// State shared by the hooks (cpu.bpf.c) and the sampling programs (samples.bpf.c): each CPU's position in the
// network stack, and the time spent there. Only the hooks write it, each on its own CPU.
// nettop.probes.cpu.entries prepends struct cpu_state, the ENTRY_* and VECTOR_* numbers and the slices of
// kernel structs to this file.
#pragma once

#include <uapi/linux/ptrace.h>

#define AF_UNIX 1
#define AF_NETLINK 16
#define AF_ALG 38
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define PF_IO_WORKER 0x00000010 /* include/linux/sched.h */
#define PF_KTHREAD 0x00200000

BPF_PERCPU_ARRAY(cpus, struct cpu_state, 1);

static __always_inline struct cpu_state *this_cpu(void) {
  int first = 0;
  return cpus.lookup(&first);
}

// How often each map was full: threads, processes, sockets.
BPF_PERCPU_ARRAY(overflows, u64, OVERFLOW_KINDS);

static __always_inline void count_overflow(int which) {
  u64 *number = overflows.lookup(&which);
  if (number)
    __sync_fetch_and_add(number, 1);
}

// Ticks in softirqs, by the address of the socket that was served. Maps written by sampling programs are
// preallocated: older kernels allow no others in these programs.
BPF_TABLE("hash", u64, u64, served, SERVED_MAX);

static __always_inline void count_served(u64 socket, u64 ticks) {
  u64 none = 0;
  u64 *number = served.lookup_or_try_init(&socket, &none);
  if (number)
    __sync_fetch_and_add(number, ticks);
  else
    count_overflow(OVERFLOW_SOCKETS);
}

// Returns the softirq running on this CPU, plus one; 0 outside of softirqs.
static __always_inline u32 vector_now(struct cpu_state *state) { return state->softirq & SPAN_MASK; }

static __always_inline u32 entry_of_softirq(u32 vector) {
  return vector == 1 + VECTOR_NET_RX ? ENTRY_RX_SOFTIRQ : vector == 1 + VECTOR_NET_TX ? ENTRY_TX_SOFTIRQ : 0;
}

// Returns the innermost entry point of this CPU, or 0: a timer softirq that interrupts a send() has none.
static __always_inline u32 entry_now(struct cpu_state *state) {
  u32 vector = vector_now(state);
  return vector ? entry_of_softirq(vector) : state->task & SPAN_MASK;
}

static __always_inline struct task_struct *current_task(void) {
  return (struct task_struct *)bpf_get_current_task_btf();
}

static __always_inline struct process process_of(struct task_struct *task) {
  struct task_struct *leader = (struct task_struct *)task->group_leader;
  struct process process = {.started = leader->start_boottime, .pid = visible_pid(leader)};
  return process;
}

static __always_inline void read_name(char name[16], struct task_struct *task) {
  bpf_probe_read_kernel(name, 16, ((struct task_struct *)task->group_leader)->comm);
}

// Returns whether a task is an io_uring worker or a kernel thread.
static __always_inline bool is_worker(u32 task_flags) { return task_flags & (PF_KTHREAD | PF_IO_WORKER); }

// --- sockets ---------------------------------------------------------------------------------------------

// Every family counts as network, except those whose traffic stays in this kernel.
static __always_inline bool is_network_family(u16 family) {
  return family && family != AF_UNIX && family != AF_NETLINK && family != AF_ALG;
}

static __always_inline bool is_network(struct socket *socket) {
  struct sock *sk = 0;
  u16 family = 0;
  bpf_probe_read_kernel(&sk, sizeof(sk), &socket->sk);
  bpf_probe_read_kernel(&family, sizeof(family), &sk->skc_family);
  return is_network_family(family);
}

static __always_inline bool is_network_socket(struct file *file) {
  struct inode *inode = 0;
  struct socket *socket = 0;
  u16 mode = 0;
  bpf_probe_read_kernel(&inode, sizeof(inode), &file->f_inode);
  bpf_probe_read_kernel(&mode, sizeof(mode), &inode->i_mode);
  if ((mode & S_IFMT) != S_IFSOCK)
    return false;
  bpf_probe_read_kernel(&socket, sizeof(socket), &file->private_data);
  return is_network(socket);
}

// Returns whether a descriptor of the current process is a network socket.
static __always_inline bool network_descriptor(u32 descriptor) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
  struct fdtable *table = (struct fdtable *)((struct files_struct *)task->files)->fdt;
  struct file *file = 0;
  if (descriptor >= table->max_fds)
    return false;
  bpf_probe_read_kernel(&file, sizeof(file), &((struct file **)table->fd)[descriptor]);
  return is_network_socket(file);
}
