// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What CPUs do inside the network stack. A clock on each CPU runs one of two programs many times a second: it
// counts the tick and, where the tick meets network work, the stack of kernel functions. cpu.bpf.h comes in
// front of this file, and before that the structs of what is kept and told.

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

// Stacks by a hash of their addresses. A map of the kernel's own kind for them has one place for all of
// hundreds of millions of hashes, so that of two stacks in use all the time one may be lost for good.
BPF_TABLE("hash", u64, struct stack, stacks, STACKS_MAX);
BPF_PERCPU_ARRAY(met, struct stack, 1);
// Ticks by a hash of where they met a CPU.
BPF_TABLE("hash", u64, struct counted, counted, COUNTED_MAX);
BPF_PERCPU_ARRAY(sampled, struct sampled, 1);

// --- where a tick meets a CPU ---------------------------------------------------------------------

#ifdef __aarch64__
#define TICK_AT(tick) (tick)->regs.pc
#else
#define TICK_AT(tick) (tick)->regs.ip
#endif

static __always_inline bool in_user_mode(struct clock_tick *tick) { return (s64)TICK_AT(tick) >= 0; }

// What a thread does outside of softirqs. Of a kernel thread, and of some calls, only the stack will tell.
static __always_inline u32 entry_by_task(struct task_struct *task) {
  if (!task->pid)
    return 0;
  if (is_worker(task->flags))
    return THREAD_BY_STACK;
  if (has_other_numbers(task))
    return 0;
  struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
  return entry_of_call(CALL_NUMBER(regs), CALL_FIRST(regs), CALL_THIRD(regs));
}

// --- counting -------------------------------------------------------------------------------------

// The finalizer of MurmurHash3 (public domain), begun with what came before.
static __always_inline u64 mixed(u64 hash, u64 word) {
  hash = (hash ^ word) * 0xff51afd7ed558ccd;
  return (hash ^ hash >> 33) * 0xc4ceb9fe1a85ec53;
}

static __always_inline u64 key_of(u64 hash, u64 now) { return (hash & ~1ULL) | now; }

// The kernel fills what is behind a stack's last function with zeros.
static __always_inline u64 hash_of(struct stack *stack) {
  u64 hash = 0;
#pragma clang loop unroll(disable)
  for (int at = 0; at < STACK_DEPTH && stack->addresses[at]; at++)
    hash = mixed(hash, stack->addresses[at]);
  return hash;
}

static __always_inline bool is_same(struct stack *one, struct stack *other) {
#pragma clang loop unroll(disable)
  for (int at = 0; at < STACK_DEPTH; at++) {
    if (one->addresses[at] != other->addresses[at])
      return false;
    if (!one->addresses[at])
      break;
  }
  return true;
}

// The key of the stack that the tick met, or NO_STACK.
static __always_inline u64 stack_now(struct clock_tick *tick, struct sampled *here, u64 now) {
  int first = 0;
  struct stack *stack = met.lookup(&first);
  if (!stack || bpf_get_stack(tick, stack, sizeof(*stack), 0) <= 0) {
    here->failed++;
    return NO_STACK;
  }
  u64 key = key_of(hash_of(stack), now);
  struct stack *known = stacks.lookup(&key);
  if (known && !is_same(known, stack)) {
    here->collisions++;
    return NO_STACK;
  }
  int refused = known ? 0 : stacks.insert(&key, stack);
  if (refused && refused != -EEXIST) { // another CPU met it at the same time
    here->no_room++;
    return NO_STACK;
  }
  return key;
}

static __always_inline void count_sample(struct clock_tick *tick, struct sampled *here, u32 entry, u32 tgid) {
  u64 now = generation_now();
  struct counted none = {
      .stack = stack_now(tick, here, now),
      .tgid = tgid,
      .cpu = bpf_get_smp_processor_id(),
      .entry = entry,
  };
  u64 where = (u64)none.tgid << 32 | (u64)none.cpu << 16 | none.entry;
  u64 key = key_of(mixed(mixed(0, none.stack), where), now);
  struct counted *known = counted.lookup_or_try_init(&key, &none);
  here->samples++;
  if (known && known->stack == none.stack && known->tgid == tgid && known->cpu == none.cpu &&
      known->entry == entry)
    known->samples++; // no other CPU has this key
  else
    here->uncounted++;
}

// --- the clock ------------------------------------------------------------------------------------

static __always_inline int on_tick(struct clock_tick *tick, bool by_ticks) {
  int first = 0;
  u32 tgid = 0;
  struct cpu_state *state = this_cpu();
  struct sampled *here = sampled.lookup(&first);
  if (!state || !here)
    return 0;
  here->ticks++;
  if (in_user_mode(tick)) {
    state->task = 0; // a hook missed the end of a call
    return 0;
  }
  u32 entry = entry_now(state);
  if (by_ticks && !entry && !vector_now(state)) {
    struct task_struct *task = (struct task_struct *)bpf_get_current_task_btf();
    entry = entry_by_task(task);
    tgid = task->tgid;
  }
  if (!entry)
    return 0;
  if (vector_now(state) && state->served)
    count_served(state->served, 1);
  else if (vector_now(state))
    state->early++;
  count_sample(tick, here, entry, tgid);
  return 0;
}

// Where hooks tell when calls on sockets begin and end.
int sample__entries(struct clock_tick *tick) { return on_tick(tick, false); }

// Where the ticks themselves have to.
int sample__calls(struct clock_tick *tick) { return on_tick(tick, true); }

// --- whose sockets --------------------------------------------------------------------------------

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
  struct holder holder = {.socket = (u64)sk, .tgid = task->tgid};
  bpf_seq_write((void *)ctx->meta->seq, &holder, sizeof(holder));
  return 0;
}
