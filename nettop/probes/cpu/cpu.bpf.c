// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Hooks where CPUs enter and leave the network stack: softirqs, context switches, and system calls on
// sockets. Time is charged once, to the innermost of them. nettop.probes.cpu.entries prepends cpu.bpf.h, the
// structs of the map values and the slices of kernel structs to this file.
//
// The hooks at softirqs and context switches finish before anything else runs on their CPU. The hooks at
// calls do not: a softirq or a context switch may interrupt them at any step, and counts an interruption. A
// hook that detects one restarts its span, or leaves the end of the span to the interrupter: a few ns may be
// missed, but nothing is counted twice.

#define barrier() asm volatile("" ::: "memory")

// Threads that are switched out inside a call or a softirq, by thread ID.
BPF_HASH(waiting, u32, struct inside, WAITING_MAX);

// Time of each process in its calls. Preallocated: before 6.1 the kernel warns about tracing programs that
// allocate.
BPF_TABLE("percpu_hash", struct process, struct spent, callers, CALLERS_MAX);

// --- time ------------------------------------------------------------------------------------------------

static __always_inline u64 span(u64 since, u32 what) { return what ? since << SPAN_BITS | what : 0; }

static __always_inline u64 since(u64 span) { return span >> SPAN_BITS; }

static __always_inline bool is_call(u32 entry) { return entry && entry != ENTRY_NAPI_THREADS; }

static __always_inline struct spent *spent_by_current() {
  struct process caller = process_of(current_task());
  return callers.lookup(&caller);
}

// Charges time to an entry point, and to the calling process if there is one.
static __always_inline void charge(struct cpu_state *state, struct spent *spent, u32 entry, u64 time) {
  if (!entry)
    return;
  __sync_fetch_and_add(&state->entry_ns[entry & SPAN_MASK], time);
  if (spent)
    __sync_fetch_and_add(&spent->entry_ns[entry & SPAN_MASK], time);
}

// Handles an interruption of the running thread: charges it for the time so far, and restarts its span.
static __always_inline void interrupt(struct cpu_state *state, u64 now) {
  u64 task = state->task;
  u32 entry = task & SPAN_MASK;
  state->interruptions++;
  if (!entry)
    return;
  state->task = span(now, entry);
  charge(state, is_call(entry) ? spent_by_current() : 0, entry, now - since(task));
}

// --- softirqs --------------------------------------------------------------------------------------------

static __always_inline void end_softirq(struct cpu_state *state, u64 now) {
  u64 softirq = state->softirq;
  state->softirq = 0;
  state->vector_ns[softirq & SPAN_MASK] += now - since(softirq);
}

int tp_btf__softirq_entry(u64 *ctx) {
  struct cpu_state *state = this_cpu();
  if (!state)
    return 0;
  u64 now = bpf_ktime_get_ns();
  interrupt(state, now);
  state->served = state->early_ticks = 0;
  state->softirq = span(now, 1 + ctx[0]);
  return 0;
}

int tp_btf__softirq_exit(u64 *ctx) {
  struct cpu_state *state = this_cpu();
  if (!state || vector_now(state) != 1 + ctx[0]) // it began before this program was attached
    return 0;
  u64 now = bpf_ktime_get_ns();
  state->task = span(now, state->task & SPAN_MASK);
  end_softirq(state, now);
  return 0;
}

// Records the socket that a softirq serves. Earlier ticks of the softirq are charged to the first socket:
// packets pass the driver and IP before their socket is known. Where no hook marks softirqs, a socket that is
// served soon after a tick is taken to belong to the same softirq.
static __always_inline int serve(u64 sk) {
  struct cpu_state *state = this_cpu();
  if (!state || !(state->softirq || state->early_ticks))
    return 0;
  state->served = sk;
  barrier(); // no tick is early from here on. The address is read back: the verifier allows no arithmetic on
             // a pointer
  if (state->early_ticks && (state->softirq || bpf_ktime_get_ns() - state->ticked_at < SOFTIRQ_NS))
    count_served(state->served, state->early_ticks);
  state->early_ticks = 0;
  return 0;
}

int tp_btf__tcp_probe(u64 *ctx) { return serve(ctx[0]); }

int tp_btf__sk_data_ready(u64 *ctx) { return serve(ctx[0]); }

// --- threads ---------------------------------------------------------------------------------------------

// Kernel threads of threaded NAPI are named napi/DEVICE-NUMBER (net/core/dev.c, napi_kthread_create).
static __always_inline bool polls_devices(struct task_struct *task) {
  if (!(task->flags & PF_KTHREAD))
    return false;
  return task->comm[0] == 'n' && task->comm[1] == 'a' && task->comm[2] == 'p' && task->comm[3] == 'i' &&
         task->comm[4] == '/';
}

static __always_inline void remember(struct task_struct *task, struct inside inside) {
  u32 id = task->pid;
  if ((is_call(inside.entry) || inside.vector) && waiting.update(&id, &inside))
    count_overflow(OVERFLOW_THREADS);
}

static __always_inline struct inside recall(struct task_struct *task) {
  u32 id = task->pid;
  struct inside inside = {};
  struct inside *saved = id ? waiting.lookup(&id) : 0;
  if (saved) {
    inside = *saved;
    waiting.delete(&id);
  }
  if (polls_devices(task)) {
    inside.entry = ENTRY_NAPI_THREADS;
    inside.depth = 1;
  }
  return inside;
}

int tp_btf__sched_switch(u64 *ctx) {
  struct cpu_state *state = this_cpu();
  if (!state)
    return 0;
  struct inside next = recall((struct task_struct *)ctx[2]);
  u32 entry = state->task & SPAN_MASK, vector = vector_now(state);
  state->interruptions++;
  if (!entry && !vector && !next.entry && !next.vector)
    return 0;
  u64 now = bpf_ktime_get_ns();
  if (vector)
    end_softirq(state, now);
  else
    interrupt(state, now);
  // With PREEMPT_RT, threads are switched within softirqs, and a softirq continues with its thread.
  // Otherwise, the end of the softirq was missed.
  struct inside last = {
      .entry = state->task & SPAN_MASK, .depth = state->task_depth, .vector = REAL_TIME ? vector : 0};
  remember((struct task_struct *)ctx[1], last);
  state->task_depth = next.depth;
  state->task = span(now, next.entry);
  state->softirq = span(now, next.vector);
  return 0;
}

// --- calls of threads ------------------------------------------------------------------------------------

// Adds the current process to the map. Processes that started in the same nanosecond count as one until
// another process makes a call on that CPU.
static __always_inline void add_caller(struct cpu_state *state) {
  struct process caller = process_of(current_task());
  if (state->last_caller == caller.started)
    return;
  state->last_caller = caller.started;
  if (callers.lookup(&caller))
    return;
  struct spent none = {};
  read_name(none.comm, current_task());
  if (!callers.lookup_or_try_init(&caller, &none))
    count_overflow(OVERFLOW_PROCESSES);
}

// Returns whether a call that begins now is nested in a timed one, or made by a softirq.
static __always_inline bool is_inside(struct cpu_state *state) {
  if (state->softirq)
    return true;
  if (!(state->task & SPAN_MASK))
    return false;
  state->task_depth++;
  return true;
}

// The start of a hook. The hook's own work is included in the charged time, except entering and leaving
// it.
struct arrival {
  u64 at;
  u32 interruptions;
};

static __always_inline struct arrival arrive(struct cpu_state *state) {
  struct arrival arrival = {.interruptions = state->interruptions};
  barrier();
  arrival.at = bpf_ktime_get_ns();
  return arrival;
}

static __always_inline void begin(struct cpu_state *state, struct arrival arrival, u32 entry) {
  if (is_worker(current_task()->flags))
    entry = ENTRY_IO_WORKERS;
  add_caller(state);
  state->task_depth = 1;
  state->task = span(arrival.at, entry);
  barrier();
  if (state->interruptions == arrival.interruptions)
    return;
  arrival = arrive(state);
  state->task = span(arrival.at, entry);
}

static __always_inline int end(struct cpu_state *state) {
  if (!state || state->softirq || !(state->task & SPAN_MASK)) // it began before this program was attached
    return 0;
  if (state->task_depth > 1) {
    state->task_depth--;
    return 0;
  }
  struct spent *spent = spent_by_current();
  u32 interruptions = state->interruptions;
  barrier();
  u64 task = state->task, now = bpf_ktime_get_ns();
  state->task = 0;
  barrier();
  if (state->interruptions == interruptions)
    charge(state, spent, task & SPAN_MASK, now - since(task));
  return 0;
}

static __always_inline int begin_on_descriptor(u64 descriptor, u32 entry) {
  struct cpu_state *state = this_cpu();
  if (!state || is_inside(state))
    return 0;
  struct arrival arrival = arrive(state);
  if (network_descriptor(descriptor))
    begin(state, arrival, entry);
  return 0;
}

static __always_inline int begin_on_file(u64 file, u32 entry) {
  struct cpu_state *state = this_cpu();
  if (!state || is_inside(state))
    return 0;
  struct arrival arrival = arrive(state);
  if (is_network_socket((struct file *)file))
    begin(state, arrival, entry);
  return 0;
}

static __always_inline int begin_on_iocb(u64 iocb, u32 entry) {
  u64 file = 0;
  bpf_probe_read_kernel(&file, sizeof(file), &((struct kiocb *)iocb)->ki_filp);
  return begin_on_file(file, entry);
}

static __always_inline int begin_on_request(u64 request, u32 entry) {
  u64 file = 0;
#ifdef HAS_IO_KIOCB_FILE
  bpf_probe_read_kernel(&file, sizeof(file), &((struct io_kiocb *)request)->file);
#endif
  return begin_on_file(file, entry);
}

// Processes are counted at their descriptors; workers have only the socket.
static __always_inline int begin_on_socket(u64 socket) {
  struct cpu_state *state = this_cpu();
  if (state && !is_inside(state) && is_worker(current_task()->flags) && is_network((struct socket *)socket))
    begin(state, arrive(state), ENTRY_IO_WORKERS);
  return 0;
}

// At the entry of kernel functions: one program for all functions with the same argument, for fentry and for
// kprobes.
#define AT_ENTRY(name, begin, argument, ...)                                                                 \
  int fentry__##name(u64 *ctx) { return begin(ctx[argument - 1], ##__VA_ARGS__); }                           \
  int entry__##name(struct pt_regs *ctx) { return begin(PT_REGS_PARM##argument(ctx), ##__VA_ARGS__); }

AT_ENTRY(send_by_descriptor, begin_on_descriptor, 1, ENTRY_TX_SYSCALLS)
AT_ENTRY(send_by_iocb, begin_on_iocb, 1, ENTRY_TX_SYSCALLS)
AT_ENTRY(send_by_file, begin_on_file, 1, ENTRY_TX_SYSCALLS)
AT_ENTRY(send_by_second, begin_on_file, 2, ENTRY_TX_SYSCALLS)
AT_ENTRY(send_by_request, begin_on_request, 1, ENTRY_TX_SYSCALLS)
AT_ENTRY(receive_by_descriptor, begin_on_descriptor, 1, ENTRY_RX_SYSCALLS)
AT_ENTRY(receive_by_iocb, begin_on_iocb, 1, ENTRY_RX_SYSCALLS)
AT_ENTRY(receive_by_file, begin_on_file, 1, ENTRY_RX_SYSCALLS)
AT_ENTRY(receive_by_request, begin_on_request, 1, ENTRY_RX_SYSCALLS)
AT_ENTRY(work_on_socket, begin_on_socket, 1)

// At the exit of each of them.
int fexit__call(u64 *ctx) { return end(this_cpu()); }

int return__call(struct pt_regs *ctx) { return end(this_cpu()); }
