// SPDX-License-Identifier: Apache-2.0
// Answers requests on a connection, its standard input: answer HOW COUNT REQUEST ANSWER. It reads so many
// requests of so many bytes, and answers each by one kind of calls. It exits with 3 where the kernel does not
// allow them.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 65536
#define NOT_ALLOWED 3

static char message[MOST];
static int file, pipes[2], ring;
static struct io_uring_params parameters;
static unsigned *tail, *slots, *mask, *done, *came;
static struct io_uring_sqe *entries;
static struct io_uring_cqe *results;

static void need(int worked, const char *what) {
  if (worked)
    return;
  perror(what);
  exit(1);
}

static void open_ring(void) {
  ring = syscall(__NR_io_uring_setup, 1, &parameters);
  if (ring < 0)
    exit(NOT_ALLOWED);
  size_t room = parameters.sq_off.array + parameters.sq_entries * sizeof(unsigned);
  size_t results_room = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  int how = PROT_READ | PROT_WRITE, shared = MAP_SHARED | MAP_POPULATE;
  char *submitted = mmap(0, room, how, shared, ring, IORING_OFF_SQ_RING);
  char *completed = mmap(0, results_room, how, shared, ring, IORING_OFF_CQ_RING);
  entries = mmap(0, parameters.sq_entries * sizeof *entries, how, shared, ring, IORING_OFF_SQES);
  need(submitted != MAP_FAILED && completed != MAP_FAILED && (void *)entries != MAP_FAILED, "mmap");
  tail = (unsigned *)(submitted + parameters.sq_off.tail);
  mask = (unsigned *)(submitted + parameters.sq_off.ring_mask);
  slots = (unsigned *)(submitted + parameters.sq_off.array);
  done = (unsigned *)(completed + parameters.cq_off.head);
  came = (unsigned *)(completed + parameters.cq_off.tail);
  results = (struct io_uring_cqe *)(completed + parameters.cq_off.cqes);
}

static long by_ring(int operation, long bytes) {
  unsigned at = *tail & *mask;
  entries[at] = (struct io_uring_sqe){
      .opcode = operation, .fd = STDIN_FILENO, .addr = (unsigned long)message, .len = bytes};
  slots[at] = at;
  __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
  need(syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) == 1, "io_uring_enter");
  long result = results[*done & (parameters.cq_entries - 1)].res;
  __atomic_store_n(done, __atomic_load_n(came, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
  return result;
}

static long read_by_read(long bytes) { return read(STDIN_FILENO, message, bytes); }
static long read_by_ring(long bytes) { return by_ring(IORING_OP_RECV, bytes); }
static long read_by_splice(long bytes) {
  long moved = splice(STDIN_FILENO, NULL, pipes[1], NULL, bytes, 0);
  return moved > 0 ? read(pipes[0], message, moved) : moved;
}
static long read_after_peek(long bytes) {
  char one;
  need(recv(STDIN_FILENO, &one, 1, MSG_PEEK) == 1, "peek");
  need(recv(STDIN_FILENO, &one, 0, 0) == 0, "read nothing");
  long moved = recv(STDIN_FILENO, message, bytes, 0);
  need(recv(STDIN_FILENO, &one, 1, MSG_DONTWAIT) == -1, "read nothing more");
  return moved;
}

static long write_by_write(long bytes) { return write(STDIN_FILENO, message, bytes); }
static long write_by_ring(long bytes) { return by_ring(IORING_OP_SEND, bytes); }
static long write_by_sendfile(long bytes) {
  off_t from = 0;
  return sendfile(STDIN_FILENO, file, &from, bytes);
}
static long write_by_splice(long bytes) {
  need(write(pipes[1], message, bytes) == bytes, "pipe");
  return splice(pipes[0], NULL, STDIN_FILENO, NULL, bytes, 0);
}
static long write_in_two(long bytes) {
  need(send(STDIN_FILENO, message, 0, 0) == 0, "send nothing");
  need(send(STDIN_FILENO, message, bytes / 2, MSG_MORE) == bytes / 2, "send half");
  long rest = bytes - bytes / 2;
  return send(STDIN_FILENO, message, rest, 0) == rest ? bytes : -1;
}

static const struct {
  const char *name;
  long (*read)(long), (*write)(long);
} kinds[] = {{"write", read_by_read, write_by_write},
             {"sendfile", read_by_read, write_by_sendfile},
             {"splice", read_by_splice, write_by_splice},
             {"io_uring", read_by_ring, write_by_ring},
             {"peek", read_after_peek, write_in_two}};

int main(int count, char **words) {
  need(count == 5, "answer HOW COUNT REQUEST ANSWER");
  long requests = atol(words[2]), request = atol(words[3]), answer = atol(words[4]);
  need(request <= MOST && answer <= MOST && pipe(pipes) == 0, "sizes");
  need((file = memfd_create("answer", 0)) >= 0 && ftruncate(file, MOST) == 0, "file");
  for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
    if (strcmp(kinds[kind].name, words[1]))
      continue;
    if (kinds[kind].read == read_by_ring)
      open_ring();
    for (; requests; requests--) {
      for (long left = request, moved; left; left -= moved)
        need((moved = kinds[kind].read(left)) > 0, "read");
      need(kinds[kind].write(answer) == answer, "write");
    }
    return 0;
  }
  need(0, "unknown kind of calls");
}
