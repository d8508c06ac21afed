// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Samples of what CPUs do inside the network stack. A clock on each CPU runs a program that counts the tick
// and, if the CPU is doing network work, records the kernel stack. nettop.probes.cpu.samples prepends the
// structs of the map values and the slices of kernel structs to this file.

#include <uapi/linux/ptrace.h>

#define AF_UNIX 1
#define AF_NETLINK 16
#define AF_ALG 38
#define S_IFMT 0170000
#define S_IFSOCK 0140000
#define PF_IO_WORKER 0x00000010 /* include/linux/sched.h */
#define PF_KTHREAD 0x00200000
#define EEXIST 17

#define barrier() asm volatile("" ::: "memory")

struct clock_tick {
  struct pt_regs regs;
};

struct bpf_iter__task_file {
  struct bpf_iter_meta *meta;
  struct task_struct *task;
  u32 fd, pad;
  void *file;
};

// Stacks by a hash of their addresses. BPF_MAP_TYPE_STACK_TRACE has one slot for many hashes: if two hot
// stacks share a slot, one of them is never recorded.
BPF_TABLE("hash", u64, struct stack, stacks, STACKS_MAX);
BPF_PERCPU_ARRAY(scratch, struct stack, 1);
// The function that runs softirqs.
BPF_ARRAY(softirqs, struct bounds, 1);
// Samples by a hash of stack, process, CPU and entry point.
BPF_TABLE("hash", u64, struct counted, counted, COUNTED_MAX);
BPF_PERCPU_ARRAY(sampled, struct sampled, 1);

// The last tick in a softirq of each CPU, until a socket is served.
BPF_PERCPU_ARRAY(ticked, struct ticked, 1);
// Ticks in softirqs, by the address of the socket that was served. Maps written by sampling programs are
// preallocated: older kernels allow no others in these programs.
BPF_TABLE("hash", u64, u64, served, SERVED_MAX);

// --- tasks ------------------------------------------------------------------------------------------------

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

// --- system calls ----------------------------------------------------------------------------------------

// The entry point of a system call, 0 for none: always, or if its first or third argument is a network
// socket.
struct call {
  u8 always, first, third;
};

#ifdef __aarch64__
// The number follows the registers that user space sees (arch/arm64/include/asm/ptrace.h).
#define CALL_NUMBER(regs) (((s32 *)((regs) + 1))[2])
#define CALL_FIRST(regs) ((u64 *)((regs) + 1))[0]
#define CALL_THIRD(regs) (regs)->regs[2]
#else
// -1 unless a system call entered the kernel (arch/x86/entry/entry_64.S).
#define CALL_NUMBER(regs) ((s32)(regs)->orig_ax)
#define CALL_FIRST(regs) (regs)->di
#define CALL_THIRD(regs) (regs)->dx
#endif
#define TS_COMPAT 0x0002

// 32-bit system calls have other numbers.
static __always_inline bool has_other_numbers(struct task_struct *task) {
#ifdef HAS_TASK_STRUCT_STATUS
  return task->status & TS_COMPAT;
#else
  return false;
#endif
}

// Returns the entry point of a system call, or 0.
static __always_inline u32 entry_of_call(u32 number, u64 first, u64 third) {
  struct call call = {};
  switch (number) { SOCKET_CALLS } // by nettop.probes.cpu.calls
  if (call.always)
    return call.always;
  if (call.third && network_descriptor(third))
    return call.third;
  return call.first && network_descriptor(first) ? call.first : 0;
}

// --- where a tick interrupts a CPU -----------------------------------------------------------------------

#ifdef __aarch64__
#define TICK_AT(tick) (tick)->regs.pc
#else
#define TICK_AT(tick) (tick)->regs.ip
#endif

static __always_inline bool is_idle(void) { return !(u32)bpf_get_current_pid_tgid(); }

static __always_inline bool in_user_mode(struct clock_tick *tick) { return (s64)TICK_AT(tick) >= 0; }

// Returns the entry point of a thread outside of softirqs. For kernel threads and some calls the stack
// decides.
static __always_inline u32 entry_by_task(struct task_struct *task) {
  if (is_idle())
    return 0;
  if (is_worker(task->flags))
    return THREAD_BY_STACK;
  if (has_other_numbers(task))
    return 0;
  struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
  return entry_of_call(CALL_NUMBER(regs), CALL_FIRST(regs), CALL_THIRD(regs));
}

// --- counting -------------------------------------------------------------------------------------

// The finalizer of MurmurHash3 (public domain), chained.
static __always_inline u64 mixed(u64 hash, u64 word) {
  hash = (hash ^ word) * 0xff51afd7ed558ccd;
  return (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53;
}

// The kernel fills the rest of the buffer with zeros.
static __always_inline u64 hash_of(struct stack *stack) {
  u64 hash = 0;
#pragma clang loop unroll(disable)
  for (int at = 0; at < STACK_DEPTH && stack->addresses[at]; at++)
    hash = mixed(hash, stack->addresses[at]);
  return hash;
}

static __always_inline bool is_same(struct stack *first, struct stack *second) {
#pragma clang loop unroll(disable)
  for (int at = 0; at < STACK_DEPTH; at++) {
    if (first->addresses[at] != second->addresses[at])
      return false;
    if (!first->addresses[at])
      break;
  }
  return true;
}

// Returns the stack that the tick interrupted, or null. It is overwritten by the next tick.
static __always_inline struct stack *take_stack(struct clock_tick *tick) {
  int first = 0;
  struct stack *stack = scratch.lookup(&first);
  return stack && bpf_get_stack(tick, stack, sizeof(*stack), 0) > 0 ? stack : 0;
}

// Returns whether a stack is that of a softirq.
static __always_inline bool in_softirq(struct stack *stack) {
  int first = 0;
  struct bounds *runs = softirqs.lookup(&first);
  if (!runs || !stack)
    return false;
#pragma clang loop unroll(disable)
  for (int at = 0; at < STACK_DEPTH && stack->addresses[at]; at++)
    if (stack->addresses[at] - runs->begin < runs->size)
      return true;
  return false;
}

// Records a stack. Returns its key, or NO_STACK.
static __always_inline u64 record_stack(struct stack *stack, struct sampled *here) {
  if (!stack) {
    here->failed++;
    return NO_STACK;
  }
  u64 key = hash_of(stack);
  struct stack *known = stacks.lookup(&key);
  if (known && !is_same(known, stack)) {
    here->collisions++;
    return NO_STACK;
  }
  int error = known ? 0 : stacks.insert(&key, stack);
  if (error && error != -EEXIST) { // EEXIST: another CPU inserted it at the same time
    here->map_full++;
    return NO_STACK;
  }
  return key;
}

// Counts a sample of a task, or of no process if that is null.
static __always_inline void count_sample(struct stack *stack, struct sampled *here, u32 entry,
                                         struct task_struct *task) {
  struct counted none = {
      .stack = record_stack(stack, here),
      .cpu = bpf_get_smp_processor_id(),
      .entry = entry,
  };
  struct process process = {};
  if (task)
    process = process_of(task);
  none.started = process.started;
  none.pid = process.pid;
  u64 where = (u64)none.pid << 32 | (u64)none.cpu << 16 | none.entry;
  u64 key = mixed(mixed(mixed(0, none.stack), where), none.started);
  struct counted *known = counted.lookup(&key);
  if (!known) {
    if (task)
      read_name(none.comm, task);
    known = counted.lookup_or_try_init(&key, &none);
  }
  here->samples++;
  if (known && known->stack == none.stack && known->started == none.started && known->pid == none.pid &&
      known->cpu == none.cpu && known->entry == entry)
    known->samples++; // the key contains the CPU, so there is no other writer
  else
    here->uncounted++;
}

// --- the clock ------------------------------------------------------------------------------------

// The stack shows whether a softirq runs, and which.
int sample__tick(struct clock_tick *tick) {
  int first = 0;
  struct task_struct *task = current_task();
  struct ticked *last = ticked.lookup(&first);
  struct sampled *here = sampled.lookup(&first);
  if (!last || !here)
    return 0;
  here->ticks++;
  here->busy += !is_idle();
  if (in_user_mode(tick))
    return 0;
  struct stack *stack = take_stack(tick);
  if (in_softirq(stack)) {
    here->busy += is_idle();
    last->at = bpf_ktime_get_ns();
    count_sample(stack, here, SOFTIRQ_BY_STACK, 0);
    return 0;
  }
  u32 entry = entry_by_task(task);
  if (entry)
    count_sample(stack, here, entry, task);
  return 0;
}

// --- sockets that softirqs serve ---------------------------------------------------------------------

// Charges the last tick to a socket that a softirq serves: packets pass the driver and IP before their socket
// is known. A socket that is served soon after the tick is taken to belong to the same softirq.
static __always_inline int serve(u64 sk) {
  int first = 0;
  struct ticked *last = ticked.lookup(&first);
  if (!last || !last->at)
    return 0;
  u64 at = last->at, none = 0;
  last->at = 0;
  last->served = sk;
  barrier(); // the address is read back: the verifier allows no pointer as a key
  u64 socket = last->served;
  if (bpf_ktime_get_ns() - at >= SOFTIRQ_NS)
    return 0;
  u64 *number = served.lookup_or_try_init(&socket, &none);
  if (number)
    __sync_fetch_and_add(number, 1);
  else
    __sync_fetch_and_add(&last->unserved, 1);
  return 0;
}

int tp_btf__tcp_probe(u64 *ctx) { return serve(ctx[0]); }

int tp_btf__sk_data_ready(u64 *ctx) { return serve(ctx[0]); }

// --- owners of sockets --------------------------------------------------------------------------------

BPF_ITER(task_file) {
  struct task_struct *task = ctx->task;
  void *file = ctx->file;
  if (!task || !file)
    return 0;
  struct socket *socket = (struct socket *)bpf_sock_from_file(file);
  if (!socket)
    return 0;
  struct sock *sk = (struct sock *)socket->sk;
  if (!sk || !is_network_family(sk->skc_family))
    return 0;
  struct process process = process_of(task);
  struct owner owner = {.socket = (u64)sk, .started = process.started, .pid = process.pid};
  read_name(owner.comm, task);
  bpf_seq_write((void *)ctx->meta->seq, &owner, sizeof(owner));
  return 0;
}
