// SPDX-License-Identifier: Apache-2.0
// Spends CPU time in one kind of system call: cpu_spin CALL CPU MILLISECONDS ADDRESS PORT. It waits for a
// line, repeats the call until it has taken that long, and prints the time on its CPU, in ns, minus that of as
// many calls of getppid(): the loop, and entering and leaving the kernel. If io_uring's worker threads do the
// work, it prints their CPU time minus that of as many requests that do nothing. Then it waits for another line.
//
// If CALL is `nothing` it makes no calls, prints `began`, and reads the clock until SIGUSR1. Then it prints, in
// ns: the CPU time that it lost to short and to long interruptions (shorter or longer than a burst of softirqs),
// all of its CPU time, and the elapsed time. Calls of membarrier() elsewhere interrupt it.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/io_uring.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define BYTES 60000
#define BATCH 8
#define AT_ONCE 16
#define PIPE_BYTES 65536
#define JUMP_NS 1000
#define BURST_NS 150000

static char message[BYTES];
static struct iovec piece = {message, BYTES};
static int to, file, waits, pipes[2], ring;
static cpu_set_t mine;
static struct io_uring_params parameters;
static unsigned *tail, *slots, *mask, *done, *came;
static struct io_uring_sqe *requests;

static void need(int worked, const char *what) {
  if (worked)
    return;
  perror(what);
  exit(3);
}

static long long ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long long used_ns(void) { return ns(CLOCK_THREAD_CPUTIME_ID); }

// The time that this thread waited for a CPU. Elapsed time minus this is its time on the CPU, which includes
// stolen time, unlike its CPU time.
static long long waited_ns(void) {
  char text[96] = {0};
  long long ran, waited;
  need(pread(waits, text, sizeof text - 1, 0) > 0 && sscanf(text, "%lld %lld", &ran, &waited) == 2,
       "schedstat");
  return waited;
}

static long long on_cpu_ns(void) {
  long long waited, now;
  do {
    waited = waited_ns();
    now = ns(CLOCK_MONOTONIC);
  } while (waited_ns() != waited);
  return now - waited;
}

// The CPU time of the other threads, those of io_uring.
static long long workers_ns(void) { return ns(CLOCK_PROCESS_CPUTIME_ID) - used_ns(); }

static void open_ring(void) {
  ring = syscall(__NR_io_uring_setup, BATCH, &parameters);
  need(ring >= 0, "io_uring_setup");
  size_t room = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
  size_t answers = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  char *sent = mmap(0, room, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
  char *back = mmap(0, answers, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
  requests = mmap(0, parameters.sq_entries * sizeof *requests, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
  need(sent != MAP_FAILED && back != MAP_FAILED && (void *)requests != MAP_FAILED, "mmap");
  tail = (unsigned *)(sent + parameters.sq_off.tail);
  mask = (unsigned *)(sent + parameters.sq_off.ring_mask);
  slots = (unsigned *)(sent + parameters.sq_off.array);
  done = (unsigned *)(back + parameters.cq_off.head);
  came = (unsigned *)(back + parameters.cq_off.tail);
}

// Makes this many requests and waits for all answers.
static long request(int operation, int flags, int many) {
  for (int i = 0; i < many; i++) {
    unsigned at = (*tail + i) & *mask;
    requests[at] = (struct io_uring_sqe){
        .opcode = operation, .flags = flags, .fd = to, .addr = (unsigned long)message, .len = BYTES};
    slots[at] = at;
  }
  __atomic_store_n(tail, *tail + many, __ATOMIC_RELEASE);
  long submitted = syscall(__NR_io_uring_enter, ring, many, many, IORING_ENTER_GETEVENTS, 0, 0);
  __atomic_store_n(done, __atomic_load_n(came, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
  return submitted;
}

static long by_ring(void) { return request(IORING_OP_SEND, 0, 1); }
static long by_worker(void) { return request(IORING_OP_SEND, IOSQE_ASYNC, BATCH); }
static long nothing_by_worker(void) { return request(IORING_OP_NOP, IOSQE_ASYNC, BATCH); }

static long by_send(void) { return send(to, message, BYTES, 0); }
static long by_write(void) { return write(to, message, BYTES); }
static long by_writev(void) { return writev(to, &piece, 1); }
static long by_sendmsg(void) {
  struct msghdr header = {.msg_iov = &piece, .msg_iovlen = 1};
  return sendmsg(to, &header, 0);
}
static long by_sendmmsg(void) {
  struct mmsghdr batch[BATCH];
  memset(batch, 0, sizeof batch);
  for (int i = 0; i < BATCH; i++)
    batch[i].msg_hdr = (struct msghdr){.msg_iov = &piece, .msg_iovlen = 1};
  return sendmmsg(to, batch, BATCH, 0);
}
static long by_sendfile(void) {
  off_t from = 0;
  return sendfile(to, file, &from, BYTES);
}
static long by_splice(void) { return splice(pipes[0], 0, to, 0, BYTES, 0); }
static void fill_pipe(void) {
  for (int i = 0; i < AT_ONCE; i++) {
    loff_t from = 0;
    need(splice(file, &from, pipes[1], 0, BYTES, 0) == BYTES, "splice");
  }
}
static long by_recv(void) { return recv(to, message, BYTES, MSG_DONTWAIT) < 0; }
static long by_getppid(void) { return syscall(__NR_getppid); }
static long by_membarrier(void) { return syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0); }

static const struct {
  const char *name;
  long (*make)(void);
} calls[] = {{"send", by_send},       {"write", by_write},       {"writev", by_writev},
             {"sendmsg", by_sendmsg}, {"sendmmsg", by_sendmmsg}, {"sendfile", by_sendfile},
             {"splice", by_splice},   {"io_uring", by_ring},     {"io_worker", by_worker},
             {"recv", by_recv},       {"getppid", by_getppid},   {"membarrier", by_membarrier}};

// Makes at least this many calls, and for at least this long; returns the time that they took by the clock.
static long long spin(long (*make)(void), long long at_least_ns, long at_least, long *made,
                      long long (*clock)(void)) {
  long long spent = 0;
  for (*made = 0; *made < at_least || spent < at_least_ns; *made += AT_ONCE) {
    if (make == by_splice)
      fill_pipe();
    long long began = clock();
    for (int i = 0; i < AT_ONCE; i++)
      need(make() >= 0, "call");
    spent += clock() - began;
  }
  return spent;
}

static volatile sig_atomic_t is_stopped;
static void stop(int signal) { is_stopped = 1; }

// Reads the clock until SIGUSR1. Interruptions appear as jumps of the clock: time that other threads and the
// hypervisor take is not CPU time of this thread, time that interrupts take is.
static void count_losses(void) {
  long long lost[2] = {0}, used = used_ns(), began = ns(CLOCK_MONOTONIC), last = began;
  long long away = began - used;
  while (!is_stopped) {
    long long now = ns(CLOCK_MONOTONIC);
    if (now - last > JUMP_NS) {
      long long used_then = used_ns(), away_then = (now = ns(CLOCK_MONOTONIC)) - used_then;
      long long lost_here = now - last - (away_then - away);
      lost[lost_here > BURST_NS] += lost_here;
      away = away_then;
    }
    last = now;
  }
  printf("%lld %lld %lld %lld\n", lost[0], lost[1], used_ns() - used, last - began);
}

int main(int count, char **words) {
  need(count == 6, "cpu_spin CALL CPU MILLISECONDS ADDRESS PORT");
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  CPU_ZERO(&mine);
  CPU_SET(atoi(words[2]), &mine);
  need(!sched_setaffinity(0, sizeof mine, &mine), "sched_setaffinity");
  if (sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){.sched_priority = 1}))
    setpriority(PRIO_PROCESS, 0, -20);
  struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(atoi(words[5]))};
  need(inet_pton(AF_INET, words[4], &there.sin_addr) == 1, "address");
  to = socket(AF_INET, SOCK_DGRAM, 0);
  need(to >= 0 && !connect(to, (struct sockaddr *)&there, sizeof there), "connect");
  file = memfd_create("message", 0);
  need(file >= 0 && write(file, message, BYTES) == BYTES && !pipe(pipes), "memfd");
  need(fcntl(pipes[1], F_SETPIPE_SZ, AT_ONCE * PIPE_BYTES) > 0, "F_SETPIPE_SZ");
  waits = open("/proc/thread-self/schedstat", O_RDONLY);
  need(waits >= 0, "open");
  if (!strcmp(words[1], "nothing")) {
    need(!syscall(__NR_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0), "membarrier");
    signal(SIGUSR1, stop);
    puts("ready");
    fflush(stdout);
    getchar();
    puts("began");
    fflush(stdout);
    count_losses();
    return 0;
  }
  for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
    if (strcmp(calls[i].name, words[1]))
      continue;
    bool by_workers = calls[i].make == by_worker;
    if (calls[i].make == by_ring || by_workers)
      open_ring();
    if (by_workers)
      need(!syscall(__NR_io_uring_register, ring, IORING_REGISTER_IOWQ_AFF, &mine, sizeof mine), "workers");
    puts("ready");
    fflush(stdout);
    getchar();
    long times, again;
    long long (*clock)(void) = by_workers ? workers_ns : on_cpu_ns;
    long long used = spin(calls[i].make, atoll(words[3]) * 1000000, 0, &times, clock);
    printf("%lld\n", used - spin(by_workers ? nothing_by_worker : by_getppid, 0, times, &again, clock));
    fflush(stdout);
    getchar();
    return 0;
  }
  need(0, "no such call");
}
