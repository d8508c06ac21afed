// SPDX-License-Identifier: Apache-2.0
// Runs TCP connections of various lifetimes over loopback for SECONDS:
// lives COUNTS SECONDS NEW_PER_S LIVE MB_PER_S PROCESSES_PER_S
// NEW_PER_S connections per second open, move a prime number of bytes every 250 ms, and close after 0.05,
// 0.3, 1, 2 or 5 s, a sixth of them by a reset; LIVE stay open, each moving data twice a second; one more
// moves MB_PER_S; and PROCESSES_PER_S processes start, connect, send and exit. Both ends of a connection are
// in one process. COUNTS is a file of 8-byte numbers for each of the four processes: bytes sent, bytes
// received, connections made, and whether it is ready. Prints nothing.
#define _GNU_SOURCE
#include "clock.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TICKS_PER_S = 200, EVERY = 50, CHUNK = 65536, A_CONNECTION = 401, A_PROCESS = 10007 };

struct counts {
  volatile uint64_t sent, received, made, ready;
};

struct pair {
  int near, far, left, number;
};

static struct counts *counts;
static struct sockaddr_in at;
static socklen_t length = sizeof(at);
static int listener;
static char data[CHUNK];
static double until;

static void begin(void) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  at = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (void *)&at, length) || listen(listener, 4096) ||
      getsockname(listener, (void *)&at, &length))
    exit(3);
}

static int connected(void) {
  int made = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  // Connect from many addresses, so that ports in TIME_WAIT never run out.
  struct sockaddr_in from = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(0x7f000002 + counts->made / 4096 % 4096)};
  setsockopt(made, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &yes, sizeof(yes));
  setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  if (made < 0 || bind(made, (void *)&from, sizeof(from)) || connect(made, (void *)&at, length))
    exit(4);
  counts->made++;
  return made;
}

static void read_all(int from, long bytes) {
  for (long got; bytes; bytes -= got, counts->received += got)
    if ((got = read(from, data, bytes < CHUNK ? bytes : CHUNK)) <= 0)
      exit(5);
}

static void move(struct pair *pair, int bytes) {
  if (write(pair->near, data, bytes) != bytes)
    exit(6);
  counts->sent += bytes;
  read_all(pair->far, bytes);
}

static void open_pair(struct pair *pair) {
  pair->near = connected();
  pair->far = accept(listener, NULL, NULL);
  pair->number = counts->made;
}

static void close_pair(struct pair *pair) {
  struct linger reset = {1, 0};
  if (pair->number % 6 == 0)
    setsockopt(pair->near, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  close(pair->number % 2 ? pair->far : pair->near);
  close(pair->number % 2 ? pair->near : pair->far);
}

// Keeps connections of different lifetimes in an unordered array.
static void short_lives(int per_s) {
  static const double lives[] = {0.05, 0.3, 1, 2, 5};
  struct pair *open = calloc(per_s * 6, sizeof(*open));
  long size = 0, tick = 0;
  double start = now(), due = 0;
  for (counts->ready = 1; now() < until || size; tick++) {
    pause_until(start + (double)tick / TICKS_PER_S);
    for (due += (double)per_s / TICKS_PER_S; due >= 1 && now() < until; due--) {
      open_pair(&open[size]);
      open[size].left = lives[rand() % 5] * TICKS_PER_S;
      move(&open[size++], A_CONNECTION);
    }
    for (long n = 0; n < size; n++) {
      if (--open[n].left % EVERY == 0)
        move(&open[n], A_CONNECTION);
      if (open[n].left <= 0) {
        close_pair(&open[n]);
        open[n--] = open[--size];
      }
    }
  }
}

static void live(int number) {
  struct pair *open = calloc(number, sizeof(*open));
  for (int n = 0; n < number; n++)
    open_pair(&open[n]);
  counts->ready = 1;
  double start = now(), due = 0;
  for (long tick = 0, n = 0; now() < until; tick++) {
    pause_until(start + (double)tick / TICKS_PER_S);
    for (due += 2.0 * number / TICKS_PER_S; due >= 1; due--)
      move(&open[n++ % number], A_CONNECTION);
  }
}

static void bulk(double mb_per_s) {
  struct pair pair;
  open_pair(&pair);
  counts->ready = 1;
  double start = now();
  for (double moved = 0; now() < until; moved += CHUNK) {
    pause_until(start + moved / mb_per_s / 1e6);
    move(&pair, CHUNK);
  }
}

static void processes(int per_s) {
  double start = now();
  counts->ready = 1;
  for (long n = 0; now() < until; n++) {
    pause_until(start + (double)n / per_s);
    pid_t child = fork();
    if (!child) {
      if (write(connected(), data, A_PROCESS) != A_PROCESS)
        exit(7);
      counts->sent += A_PROCESS;
      _exit(0);
    }
    int taken = accept(listener, NULL, NULL);
    read_all(taken, A_PROCESS);
    waitpid(child, NULL, 0);
    close(taken);
  }
}

int main(int argc, char **argv) {
  if (argc != 7)
    return 64;
  int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, 4 * sizeof(*counts)))
    return 1;
  counts = mmap(NULL, 4 * sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  until = now() + atof(argv[2]);
  for (int n = 0; n < 4; n++, counts++)
    if (!fork()) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      begin();
      double amount = atof(argv[3 + n]);
      switch (amount > 0 ? n : -1) {
      case 0:
        short_lives(amount);
        break;
      case 1:
        live(amount);
        break;
      case 2:
        bulk(amount);
        break;
      case 3:
        processes(amount);
        break;
      }
      counts->ready = 1;
      return 0;
    }
  int status, failed = 0;
  for (int n = 0; n < 4; n++) {
    wait(&status);
    failed |= status;
  }
  return failed != 0;
}
