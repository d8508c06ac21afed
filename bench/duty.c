// SPDX-License-Identifier: Apache-2.0
// Makes one kind of call for PERCENT of the time, then prints the nanoseconds of its thread's CPU time that
// they took: duty WHAT PERCENT SECONDS CPU ADDRESS PORT WHAT is send, sendmsg, sendfile, splice or io_uring,
// to a UDP socket at ADDRESS, or recv, from one bound there, to which another CPU sends.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

// Calls are timed in batches, so that reading the clock is no part of the result.
enum { BYTES = 32768, BATCH = 16, PERIOD_NS = 50000000, PERCENT = 100 };
static const double NS_PER_S = 1e9;
static char message[BYTES];

struct duty {
  const char *what;
  struct sockaddr_in at;
  int socket, sender, file, pipe[2], ring;
  unsigned *tail, *head, *completed;
  struct io_uring_sqe *entries;
};

static double ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec * NS_PER_S + (double)now.tv_nsec;
}

static int run_on(int cpu) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(cpu, &cpus);
  return sched_setaffinity(0, sizeof(cpus), &cpus);
}

static int is(const struct duty *duty, const char *what) { return !strcmp(duty->what, what); }

// Maps a ring with room for a batch, by the offsets that the kernel returns (io_uring_setup(2)).
static int set_up_ring(struct duty *duty) {
  struct io_uring_params at = {0};
  duty->ring = (int)syscall(SYS_io_uring_setup, BATCH, &at);
  size_t size = at.cq_off.cqes + at.cq_entries * sizeof(struct io_uring_cqe);
  char *ring = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, duty->ring, IORING_OFF_SQ_RING);
  duty->entries = mmap(0, BATCH * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED, duty->ring,
                       IORING_OFF_SQES);
  if (duty->ring < 0 || ring == MAP_FAILED || (void *)duty->entries == MAP_FAILED)
    return -1;
  duty->tail = (unsigned *)(ring + at.sq_off.tail);
  duty->head = (unsigned *)(ring + at.cq_off.head);
  duty->completed = (unsigned *)(ring + at.cq_off.tail);
  for (unsigned i = 0; i < BATCH; i++) {
    ((unsigned *)(ring + at.sq_off.array))[i] = i;
    duty->entries[i] = (struct io_uring_sqe){
        .opcode = IORING_OP_SEND, .fd = duty->socket, .addr = (unsigned long)message, .len = BYTES};
  }
  return 0;
}

// Prepares what a batch of splice or recv takes, without timing it.
static void prepare(struct duty *duty) {
  for (int i = 0; i < BATCH; i++) {
    off_t begin = 0;
    if (is(duty, "splice"))
      splice(duty->file, &begin, duty->pipe[1], NULL, BYTES, 0);
    else if (is(duty, "recv"))
      sendto(duty->sender, message, BYTES, 0, (void *)&duty->at, sizeof(duty->at));
  }
}

// Makes one call. What it returns does not matter: nobody may be there to receive.
static void call(struct duty *duty) {
  struct iovec part = {message, BYTES};
  struct msghdr all = {.msg_iov = &part, .msg_iovlen = 1};
  off_t begin = 0;
  if (is(duty, "send"))
    send(duty->socket, message, BYTES, 0);
  else if (is(duty, "sendmsg"))
    sendmsg(duty->socket, &all, 0);
  else if (is(duty, "sendfile"))
    sendfile(duty->socket, duty->file, &begin, BYTES);
  else if (is(duty, "splice"))
    splice(duty->pipe[0], NULL, duty->socket, NULL, BYTES, 0);
  else if (is(duty, "recv"))
    recv(duty->socket, message, BYTES, MSG_DONTWAIT);
}

static void batch(struct duty *duty) {
  if (!is(duty, "io_uring")) {
    for (int i = 0; i < BATCH; i++)
      call(duty);
    return;
  }
  __atomic_store_n(duty->tail, *duty->tail + BATCH, __ATOMIC_RELEASE);
  syscall(SYS_io_uring_enter, duty->ring, BATCH, BATCH, IORING_ENTER_GETEVENTS, NULL, 0);
  __atomic_store_n(duty->head, *duty->completed, __ATOMIC_RELEASE);
}

int main(int argc, char **argv) {
  if (argc != 7)
    return 64;
  struct duty duty = {.what = argv[1],
                      .at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[6]))},
                      .socket = socket(AF_INET, SOCK_DGRAM, 0),
                      .sender = socket(AF_INET, SOCK_DGRAM, 0),
                      .file = memfd_create("duty", 0)};
  int share = atoi(argv[2]), room = 4 * BATCH * BYTES;
  int (*begin_at)(int, const struct sockaddr *, socklen_t) = is(&duty, "recv") ? bind : connect;
  if (run_on(atoi(argv[4])) || !inet_aton(argv[5], &duty.at.sin_addr) ||
      begin_at(duty.socket, (void *)&duty.at, sizeof(duty.at)) ||
      setsockopt(duty.socket, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)) || pipe(duty.pipe) ||
      fcntl(duty.pipe[1], F_SETPIPE_SZ, 2 * BATCH * BYTES) < 0 || set_up_ring(&duty) ||
      write(duty.file, message, BYTES) != BYTES)
    return 1;
  double end = ns(CLOCK_MONOTONIC) + atof(argv[3]) * NS_PER_S, spent = 0;
  while (ns(CLOCK_MONOTONIC) < end) {
    double in_period = 0;
    while (in_period < (double)PERIOD_NS * share / PERCENT) {
      prepare(&duty);
      double begin = ns(CLOCK_THREAD_CPUTIME_ID);
      batch(&duty);
      in_period += ns(CLOCK_THREAD_CPUTIME_ID) - begin;
    }
    spent += in_period;
    struct timespec rest = {0, (long)PERIOD_NS * (PERCENT - share) / PERCENT};
    nanosleep(&rest, NULL);
  }
  printf("%.0f\n", spent);
  return 0;
}
