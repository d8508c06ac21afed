// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What each CPU does for the network now, and the time that it took so far. Written by the hooks of
// cpu.bpf.c, on its own CPU alone; read by the sampling of cpu_samples.bpf.c. struct cpu_state, the ENTRY_*
// and VECTOR_* numbers and the slices of kernel structs come in front of this file, made by
// nettop.probes.cpu.entries.
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

// What maps had no room for: threads, processes, sockets.
BPF_PERCPU_ARRAY(refused, u64, REFUSED_KINDS);

static __always_inline void count_refused(int which) {
  u64 *number = refused.lookup(&which);
  if (number)
    __sync_fetch_and_add(number, 1);
}

// Everything that ticks meet is kept in two generations: user space empties one while ticks go to the other.
// Bit 0 of each key says to which it belongs.
BPF_ARRAY(generation, u32, 1);

static __always_inline u64 generation_now(void) {
  int first = 0;
  u32 *now = generation.lookup(&first);
  return now ? *now : 0;
}

// Ticks in softirqs by the socket that was served; addresses of sockets are even. Maps that ticks write to
// have their room beforehand: older kernels let programs of this kind use no other.
BPF_TABLE("hash", u64, u64, served, SERVED_MAX);

static __always_inline void count_served(u64 socket, u64 ticks) {
  u64 none = 0, key = socket | generation_now();
  u64 *number = served.lookup_or_try_init(&key, &none);
  if (number)
    __sync_fetch_and_add(number, ticks);
  else
    count_refused(REFUSED_SOCKETS);
}

// One more than the softirq that runs on this CPU, 0 outside of them.
static __always_inline u32 vector_now(struct cpu_state *state) { return state->softirq & STINT_OF; }

static __always_inline u32 entry_of_softirq(u32 vector) {
  return vector == 1 + VECTOR_NET_RX ? ENTRY_RX_SOFTIRQ : vector == 1 + VECTOR_NET_TX ? ENTRY_TX_SOFTIRQ : 0;
}

// The innermost entry point that this CPU is in, 0 for none: in a timer that interrupts a send() it is in
// none.
static __always_inline u32 entry_now(struct cpu_state *state) {
  u32 vector = vector_now(state);
  return vector ? entry_of_softirq(vector) : state->task & STINT_OF;
}

// Whether a task is a thread that works for others: io_uring's, or the kernel's own.
static __always_inline bool is_worker(u32 task_flags) { return task_flags & (PF_KTHREAD | PF_IO_WORKER); }

// --- sockets ---------------------------------------------------------------------------------------------

// Whether what is sent or received there is the network's: the sockets of all families but those that stay in
// this kernel, between processes, with the kernel, or for its ciphers.
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

// Whether that descriptor of the current process is such a socket.
static __always_inline bool network_descriptor(u32 descriptor) {
  struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
  struct fdtable *table = (struct fdtable *)((struct files_struct *)task->files)->fdt;
  struct file *file = 0;
  if (descriptor >= table->max_fds)
    return false;
  bpf_probe_read_kernel(&file, sizeof(file), &((struct file **)table->fd)[descriptor]);
  return is_network_socket(file);
}

// --- system calls ----------------------------------------------------------------------------------------

// By their numbers; struct call and what it says come from nettop.probes.cpu.calls.
BPF_ARRAY(calls, struct call, CALLS_MAX);

#ifdef __aarch64__
// The number stands behind what user space sees of the registers (arch/arm64/include/asm/ptrace.h).
#define CALL_NUMBER(regs) (((s32 *)((regs) + 1))[2])
#define CALL_FIRST(regs) ((u64 *)((regs) + 1))[0]
#define CALL_THIRD(regs) (regs)->regs[2]
#else
// The kernel makes that number −1 where no system call brought it here (arch/x86/entry/entry_64.S).
#define CALL_NUMBER(regs) ((s32)(regs)->orig_ax)
#define CALL_FIRST(regs) (regs)->di
#define CALL_THIRD(regs) (regs)->dx
#endif
#define TS_COMPAT 0x0002

// Calls of another width have other numbers.
static __always_inline bool has_other_numbers(struct task_struct *task) {
#ifdef HAS_TASK_STRUCT_STATUS
  return task->status & TS_COMPAT;
#else
  return false;
#endif
}

// Whether a system call may be on sockets.
static __always_inline bool is_listed(u32 number) {
  struct call *call = calls.lookup(&number);
  return call && (call->always || call->first || call->third);
}

// The entry point that a system call is, 0 for none.
static __always_inline u32 entry_of_call(u32 number, u64 first, u64 third) {
  struct call *call = calls.lookup(&number);
  if (!call)
    return 0;
  if (call->always)
    return call->always;
  if (call->third && network_descriptor(third))
    return call->third;
  return call->first && network_descriptor(first) ? call->first : 0;
}
