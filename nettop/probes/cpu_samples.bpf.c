// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// What CPUs do inside the network stack. A clock on each CPU runs one of two programs many times a second: it
// counts the tick and, where the tick meets network work, the stack of kernel functions. cpu.bpf.h comes in
// front of this file, and before that struct sampled and struct holder.

#define ENOMEM 12
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

struct stack {
  u64 addresses[STACK_DEPTH];
};

// Stacks are kept in two generations: user space empties one while ticks go to the other. The bits of
// `generation` say to which, and with ALONE that the other one is not to be touched.
BPF_TABLE("stacktrace", int, struct stack, stacks_even, STACKS_MAX);
BPF_TABLE("stacktrace", int, struct stack, stacks_odd, STACKS_MAX);
BPF_ARRAY(generation, u32, 1);
// Ticks by where they met a CPU, and those in softirqs by the socket that was served. Both only grow until
// the generation that their keys name is emptied. They have their room beforehand: older kernels let programs
// of this kind use no other.
BPF_TABLE("hash", u64, u64, counted, COUNTED_MAX);
BPF_TABLE("hash", u64, u64, served, SERVED_MAX);
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

static __always_inline bool count(u64 *number) {
  if (number)
    __sync_fetch_and_add(number, 1);
  return number;
}

static __always_inline u32 generation_now(void) {
  int first = 0;
  u32 *now = generation.lookup(&first);
  return now ? *now : 0;
}

static __always_inline int put_in(struct clock_tick *tick, bool odd, u64 left_out) {
  return odd ? stacks_odd.get_stackid(tick, left_out) : stacks_even.get_stackid(tick, left_out);
}

// A number below 2 * STACKS_MAX. Where another stack has the place the generation that rests lends its own,
// unless it is being emptied.
static __always_inline int put_stack(struct clock_tick *tick, u32 now, u64 left_out) {
  int number = put_in(tick, now & 1, left_out);
  if (number != -EEXIST || now & ALONE)
    return number;
  number = put_in(tick, !(now & 1), left_out);
  return number < 0 ? number : STACKS_MAX + number;
}

// The number of the stack, or NO_STACK. Without its innermost functions it belongs to another place.
static __always_inline u32 stack_now(struct clock_tick *tick, struct sampled *here, u32 now) {
  int number = put_stack(tick, now, 0);
  bool collides = number == -EEXIST;
#pragma unroll
  for (u64 left_out = 1; left_out <= LEFT_OUT_MAX; left_out++)
    if (number == -EEXIST)
      number = put_stack(tick, now, left_out);
  if (number >= 0) {
    here->shortened += collides;
    return number;
  }
  if (collides)
    here->collisions++;
  else if (number == -ENOMEM)
    here->no_room++;
  else
    here->failed++;
  return NO_STACK;
}

static __always_inline void count_sample(struct clock_tick *tick, struct sampled *here, u64 entry, u64 tgid) {
  u64 none = 0, now = generation_now(), cpu = bpf_get_smp_processor_id();
  u64 key = (u64)stack_now(tick, here, now) << STACK_AT | cpu << CPU_AT | entry << ENTRY_AT |
            (now & 1) << GENERATION_AT | tgid << TGID_AT;
  here->samples++;
  if (!count(counted.lookup_or_try_init(&key, &none)))
    here->uncounted++;
}

// Addresses of sockets are even.
static __always_inline void count_served(struct cpu_state *state, struct sampled *here) {
  u64 none = 0, key = state->served | (generation_now() & 1);
  if (!state->served || !count(served.lookup_or_try_init(&key, &none)))
    here->unserved++;
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
  if (vector_now(state))
    count_served(state, here);
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
