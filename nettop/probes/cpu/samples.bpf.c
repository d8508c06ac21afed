// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Samples of what CPUs do inside the network stack. A clock on each CPU runs one of two programs: it counts
// the tick and, if the CPU is doing network work, records the kernel stack. nettop.probes.cpu.samples
// prepends the structs of the map values and cpu.bpf.h to this file.

#define EEXIST 17

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

// --- system calls ----------------------------------------------------------------------------------------

// System calls by number. nettop.probes.cpu.calls defines struct call and fills the map.
BPF_ARRAY(calls, struct call, CALLS_MAX);

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
  struct call *call = calls.lookup(&number);
  if (!call)
    return 0;
  if (call->always)
    return call->always;
  if (call->third && network_descriptor(third))
    return call->third;
  return call->first && network_descriptor(first) ? call->first : 0;
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

static __always_inline int on_tick(struct clock_tick *tick, bool finds_calls) {
  int first = 0;
  struct task_struct *task = 0;
  struct cpu_state *state = this_cpu();
  struct sampled *here = sampled.lookup(&first);
  if (!state || !here)
    return 0;
  here->ticks++;
  if (!is_idle() || vector_now(state))
    here->busy++;
  if (in_user_mode(tick)) {
    state->task = 0; // a hook missed the end of the call
    return 0;
  }
  u32 entry = entry_now(state);
  if (!vector_now(state))
    task = current_task();
  if (finds_calls && !entry && task)
    entry = entry_by_task(task);
  if (!entry)
    return 0;
  if (vector_now(state) && state->served)
    count_served(state->served, 1);
  else if (vector_now(state))
    state->early_ticks++;
  count_sample(take_stack(tick), here, entry, task);
  return 0;
}

// For use where hooks mark the start and end of system calls on sockets.
int sample__entries(struct clock_tick *tick) { return on_tick(tick, false); }

// For use where they do not: the tick looks for the system call itself.
int sample__calls(struct clock_tick *tick) { return on_tick(tick, true); }

// For use where no hook marks anything: the stack shows whether a softirq runs, and which.
int sample__alone(struct clock_tick *tick) {
  int first = 0;
  struct task_struct *task = current_task();
  struct cpu_state *state = this_cpu();
  struct sampled *here = sampled.lookup(&first);
  if (!state || !here)
    return 0;
  here->ticks++;
  here->busy += !is_idle();
  if (in_user_mode(tick)) {
    state->task = 0;
    return 0;
  }
  struct stack *stack = take_stack(tick);
  if (in_softirq(stack)) {
    here->busy += is_idle();
    state->early_ticks = 1; // an earlier one was in another softirq
    state->ticked_at = bpf_ktime_get_ns();
    count_sample(stack, here, SOFTIRQ_BY_STACK, 0);
    return 0;
  }
  u32 entry = entry_by_task(task);
  if (entry)
    count_sample(stack, here, entry, task);
  return 0;
}

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
