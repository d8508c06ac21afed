// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// When CPUs enter and leave the network stack: softirqs, other threads, and the calls of threads on sockets.
// Time goes to the innermost of them, once. cpu.bpf.h, struct caller, struct calls and the slices of kernel
// structs come in front of this file.
//
// A softirq and a change of threads are done with before anything else runs on their CPU. What threads do is
// not: either may come between any two of its steps, and counts as a turn. A thread that finds a turn begins
// its stint anew, or leaves its end to who came between: time may be missed then, the few ns of a step, but
// is never had twice.

#define barrier() asm volatile("" ::: "memory")

// In what calls, and softirqs, threads are that do not run now, by their ids.
BPF_HASH(waiting, u32, struct inside, WAITING_MAX);

// What each process spent in its calls. It has its room beforehand: before 6.1 the kernel warns of programs
// that allocate as they trace.
BPF_TABLE("percpu_hash", struct caller, struct spent, callers, CALLERS_MAX);

// Whether calls are hooked, so that threads may wait inside of them. Set by nettop.
BPF_ARRAY(hooked, u32, 1);

static __always_inline bool are_calls_hooked() {
  int first = 0;
  u32 *set = hooked.lookup(&first);
  return set && *set;
}

// --- time ------------------------------------------------------------------------------------------------

static __always_inline u64 stint(u64 since, u32 what) { return what ? since << STINT_BITS | what : 0; }

static __always_inline u64 since(u64 stint) { return stint >> STINT_BITS; }

static __always_inline bool is_call(u32 entry) { return entry && entry != ENTRY_NAPI_THREADS; }

static __always_inline struct task_struct *current_task() {
  return (struct task_struct *)bpf_get_current_task_btf();
}

static __always_inline struct task_struct *current_leader() {
  return (struct task_struct *)current_task()->group_leader;
}

static __always_inline struct caller current_caller() {
  struct task_struct *leader = current_leader();
  struct caller caller = {.started = leader->start_boottime, .tgid = leader->tgid};
  return caller;
}

static __always_inline struct spent *spent_by_current() {
  struct caller caller = current_caller();
  return callers.lookup(&caller);
}

// Charges time to an entry point, and to the process whose call it is.
static __always_inline void charge(struct cpu_state *state, struct spent *spent, u32 entry, u64 time) {
  if (!entry)
    return;
  __sync_fetch_and_add(&state->entry_ns[entry & STINT_OF], time);
  if (spent)
    __sync_fetch_and_add(&spent->entry_ns[entry & STINT_OF], time);
}

// Something comes between: what the running thread has spent so far is its, the rest is not. Where calls are
// hooked no more nobody knows whether it is still in one.
static __always_inline void interrupt(struct cpu_state *state, u64 now) {
  u64 task = state->task;
  u32 entry = task & STINT_OF;
  state->turns++;
  if (!entry)
    return;
  if (is_call(entry) && !are_calls_hooked()) {
    state->task = 0;
    return;
  }
  state->task = stint(now, entry);
  charge(state, is_call(entry) ? spent_by_current() : 0, entry, now - since(task));
}

// --- softirqs --------------------------------------------------------------------------------------------

static __always_inline void end_softirq(struct cpu_state *state, u64 now) {
  u64 softirq = state->softirq;
  state->softirq = 0;
  state->vector_ns[softirq & STINT_OF] += now - since(softirq);
}

int tp_btf__softirq_entry(u64 *ctx) {
  struct cpu_state *state = this_cpu();
  if (!state)
    return 0;
  u64 now = bpf_ktime_get_ns();
  interrupt(state, now);
  state->served = state->early = 0;
  state->softirq = stint(now, 1 + ctx[0]);
  return 0;
}

int tp_btf__softirq_exit(u64 *ctx) {
  struct cpu_state *state = this_cpu();
  if (!state || vector_now(state) != 1 + ctx[0]) // it began before this program did
    return 0;
  u64 now = bpf_ktime_get_ns();
  state->task = stint(now, state->task & STINT_OF);
  end_softirq(state, now);
  return 0;
}

// Notes whose socket a softirq serves. Ticks that came before the first one are that one's: packets pass the
// driver and IP before anybody knows whose they are.
static __always_inline int serve(u64 sk) {
  struct cpu_state *state = this_cpu();
  if (!state || !state->softirq)
    return 0;
  state->served = sk;
  barrier(); // from here on no tick is early; and the verifier lets nobody reckon with a pointer, but with
             // what is read
  if (state->early)
    count_served(state->served, state->early);
  state->early = 0;
  return 0;
}

int tp_btf__tcp_probe(u64 *ctx) { return serve(ctx[0]); }

int tp_btf__sk_data_ready(u64 *ctx) { return serve(ctx[0]); }

// --- threads ---------------------------------------------------------------------------------------------

// Threads of threaded NAPI are called napi/DEVICE-NUMBER (net/core/dev.c, napi_kthread_create).
static __always_inline bool polls_devices(struct task_struct *task) {
  if (!(task->flags & PF_KTHREAD))
    return false;
  return task->comm[0] == 'n' && task->comm[1] == 'a' && task->comm[2] == 'p' && task->comm[3] == 'i' &&
         task->comm[4] == '/';
}

static __always_inline void remember(struct task_struct *task, struct inside inside) {
  u32 id = task->pid;
  if ((is_call(inside.entry) || inside.vector) && waiting.update(&id, &inside))
    count_refused(REFUSED_THREADS);
}

static __always_inline struct inside recall(struct task_struct *task) {
  u32 id = task->pid;
  struct inside inside = {};
  struct inside *found = id && (REAL_TIME || are_calls_hooked()) ? waiting.lookup(&id) : 0;
  if (found) {
    inside = *found;
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
  u32 entry = state->task & STINT_OF, vector = vector_now(state);
  state->turns++;
  if (!entry && !vector && !next.entry && !next.vector)
    return 0;
  u64 now = bpf_ktime_get_ns();
  if (vector)
    end_softirq(state, now);
  else
    interrupt(state, now);
  // A kernel for real time changes threads within a softirq, which goes on with its thread. On others its end
  // was missed.
  struct inside last = {
      .entry = state->task & STINT_OF, .depth = state->task_depth, .vector = REAL_TIME ? vector : 0};
  remember((struct task_struct *)ctx[1], last);
  state->task_depth = next.depth;
  state->task = stint(now, next.entry);
  state->softirq = stint(now, next.vector);
  return 0;
}

// --- calls of threads ------------------------------------------------------------------------------------

// Makes room for the current process. Processes that began in the same nanosecond are taken for one, until
// another one calls on that CPU.
static __always_inline void note_caller(struct cpu_state *state) {
  struct caller caller = current_caller();
  if (state->noted == caller.started)
    return;
  state->noted = caller.started;
  if (callers.lookup(&caller))
    return;
  struct spent none = {};
  bpf_probe_read_kernel(&none.comm, sizeof(none.comm), current_leader()->comm);
  if (!callers.lookup_or_try_init(&caller, &none))
    count_refused(REFUSED_PROCESSES);
}

// Whether a call that begins now is inside of one that is counted already; what softirqs call is theirs.
static __always_inline bool is_inside(struct cpu_state *state) {
  if (state->softirq)
    return true;
  if (!(state->task & STINT_OF))
    return false;
  state->task_depth++;
  return true;
}

// When a hook was called: what it does itself is in the time, but for the way there and back.
struct arrival {
  u64 at;
  u32 turns;
};

static __always_inline struct arrival arrive(struct cpu_state *state) {
  struct arrival arrival = {.turns = state->turns};
  barrier();
  arrival.at = bpf_ktime_get_ns();
  return arrival;
}

static __always_inline void begin(struct cpu_state *state, struct arrival arrival, u32 entry) {
  if (is_worker(current_task()->flags))
    entry = ENTRY_IO_WORKERS;
  note_caller(state);
  state->task_depth = 1;
  state->task = stint(arrival.at, entry);
  barrier();
  if (state->turns == arrival.turns)
    return;
  arrival = arrive(state);
  state->task = stint(arrival.at, entry);
}

static __always_inline int end(struct cpu_state *state) {
  if (!state || state->softirq || !(state->task & STINT_OF)) // it began before this program did
    return 0;
  if (state->task_depth > 1) {
    state->task_depth--;
    return 0;
  }
  struct spent *spent = spent_by_current();
  u32 turns = state->turns;
  barrier();
  u64 task = state->task, now = bpf_ktime_get_ns();
  state->task = 0;
  barrier();
  if (state->turns == turns)
    charge(state, spent, task & STINT_OF, now - since(task));
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

// What processes call comes by their descriptors; only who works for others has but a socket.
static __always_inline int begin_on_socket(u64 socket) {
  struct cpu_state *state = this_cpu();
  if (state && !is_inside(state) && is_worker(current_task()->flags) && is_network((struct socket *)socket))
    begin(state, arrive(state), ENTRY_IO_WORKERS);
  return 0;
}

// At the beginning of kernel functions: one program for all that take the same.
int fentry__send_by_descriptor(u64 *ctx) { return begin_on_descriptor(ctx[0], ENTRY_TX_SYSCALLS); }

int fentry__send_by_iocb(u64 *ctx) { return begin_on_iocb(ctx[0], ENTRY_TX_SYSCALLS); }

int fentry__send_by_file(u64 *ctx) { return begin_on_file(ctx[0], ENTRY_TX_SYSCALLS); }

int fentry__send_by_second(u64 *ctx) { return begin_on_file(ctx[1], ENTRY_TX_SYSCALLS); }

int fentry__send_by_request(u64 *ctx) { return begin_on_request(ctx[0], ENTRY_TX_SYSCALLS); }

int fentry__receive_by_descriptor(u64 *ctx) { return begin_on_descriptor(ctx[0], ENTRY_RX_SYSCALLS); }

int fentry__receive_by_iocb(u64 *ctx) { return begin_on_iocb(ctx[0], ENTRY_RX_SYSCALLS); }

int fentry__receive_by_file(u64 *ctx) { return begin_on_file(ctx[0], ENTRY_RX_SYSCALLS); }

int fentry__receive_by_request(u64 *ctx) { return begin_on_request(ctx[0], ENTRY_RX_SYSCALLS); }

int fentry__work_on_socket(u64 *ctx) { return begin_on_socket(ctx[0]); }

// At the end of all of them.
int fexit__call(u64 *ctx) { return end(this_cpu()); }

#ifdef HAS_KPROBES
int entry__send_by_descriptor(struct pt_regs *ctx) {
  return begin_on_descriptor(PT_REGS_PARM1(ctx), ENTRY_TX_SYSCALLS);
}

int entry__send_by_iocb(struct pt_regs *ctx) { return begin_on_iocb(PT_REGS_PARM1(ctx), ENTRY_TX_SYSCALLS); }

int entry__send_by_file(struct pt_regs *ctx) { return begin_on_file(PT_REGS_PARM1(ctx), ENTRY_TX_SYSCALLS); }

int entry__send_by_second(struct pt_regs *ctx) {
  return begin_on_file(PT_REGS_PARM2(ctx), ENTRY_TX_SYSCALLS);
}

int entry__send_by_request(struct pt_regs *ctx) {
  return begin_on_request(PT_REGS_PARM1(ctx), ENTRY_TX_SYSCALLS);
}

int entry__receive_by_descriptor(struct pt_regs *ctx) {
  return begin_on_descriptor(PT_REGS_PARM1(ctx), ENTRY_RX_SYSCALLS);
}

int entry__receive_by_iocb(struct pt_regs *ctx) {
  return begin_on_iocb(PT_REGS_PARM1(ctx), ENTRY_RX_SYSCALLS);
}

int entry__receive_by_file(struct pt_regs *ctx) {
  return begin_on_file(PT_REGS_PARM1(ctx), ENTRY_RX_SYSCALLS);
}

int entry__receive_by_request(struct pt_regs *ctx) {
  return begin_on_request(PT_REGS_PARM1(ctx), ENTRY_RX_SYSCALLS);
}

int entry__work_on_socket(struct pt_regs *ctx) { return begin_on_socket(PT_REGS_PARM1(ctx)); }

int return__call(struct pt_regs *ctx) { return end(this_cpu()); }
#endif

// Every system call of the host comes here: the last way to have them.
int tp_btf__sys_enter(u64 *ctx) {
  struct pt_regs *regs = (struct pt_regs *)ctx[0];
  struct cpu_state *state = this_cpu();
  if (!state || !is_listed(ctx[1]) || has_other_numbers(current_task()))
    return 0;
  struct arrival arrival = arrive(state);
  u32 entry = entry_of_call(ctx[1], CALL_FIRST(regs), CALL_THIRD(regs));
  if (entry == ENTRY_TX_SYSCALLS || entry == ENTRY_RX_SYSCALLS)
    begin(state, arrival, entry);
  return 0;
}

int tp_btf__sys_exit(u64 *ctx) { return end(this_cpu()); }

#ifdef HAS_IO_KIOCB_OPCODE
#define IORING_OP_SENDMSG 9 /* include/uapi/linux/io_uring.h */
#define IORING_OP_RECVMSG 10
#define IORING_OP_SEND 26
#define IORING_OP_RECV 27
#define IORING_OP_SEND_ZC 47
#define IORING_OP_SENDMSG_ZC 48

static __always_inline u32 entry_of_request(u8 operation) {
  switch (operation) {
  case IORING_OP_SEND:
  case IORING_OP_SENDMSG:
  case IORING_OP_SEND_ZC:
  case IORING_OP_SENDMSG_ZC:
    return ENTRY_TX_SYSCALLS;
  case IORING_OP_RECV:
  case IORING_OP_RECVMSG:
    return ENTRY_RX_SYSCALLS;
  }
  return 0;
}

// A request is under way until the next one is submitted, or the system call ends.
int tp_btf__io_uring_submit_req(u64 *ctx) {
  struct cpu_state *state = this_cpu();
  if (!state || is_worker(current_task()->flags)) // who works for others makes no system calls that end
    return 0;
  end(state);
  u32 entry = entry_of_request(((struct io_kiocb *)ctx[0])->opcode);
  if (entry)
    begin(state, arrive(state), entry);
  return 0;
}
#endif
