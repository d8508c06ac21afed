// SPDX-License-Identifier: Apache-2.0
// Runs TCP connections of various lifetimes over loopback: lives COUNTS SECONDS NEW_PER_S
// NEW_PER_S connections per second open, move a prime number of bytes every 250 ms, and close after 0.05,
// 0.3, 1, 2, 5 or 10 s, or at the end, a sixth of them by a reset. COUNTS is a file of three 8-byte numbers:
// bytes sent, bytes received and connections made. Prints nothing.
#define _GNU_SOURCE
#include "clock.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TICKS_PER_S = 200, EVERY = 50, BYTES = 401 };

struct counts {
  volatile uint64_t sent, received, made;
};

struct pair {
  int near, far, left, number;
};

static struct counts *counts;
static struct sockaddr_in at;
static socklen_t length = sizeof(at);
static int listener;
static char data[BYTES];

static void pause_until(double when) {
  struct timespec t = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (time_t)when) * 1e9)};
  clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

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

static void move(struct pair *pair) {
  if (write(pair->near, data, BYTES) != BYTES)
    exit(5);
  counts->sent += BYTES;
  if (recv(pair->far, data, BYTES, MSG_WAITALL) != BYTES)
    exit(6);
  counts->received += BYTES;
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
static void live(double seconds, double per_s) {
  static const double lives[] = {0.05, 0.3, 1, 2, 5, 10};
  struct pair *open = calloc(per_s * 11, sizeof(*open));
  long size = 0;
  double start = now(), due = 0;
  for (long tick = 0; now() < start + seconds; tick++) {
    pause_until(start + (double)tick / TICKS_PER_S);
    for (due += per_s / TICKS_PER_S; due >= 1; due--) {
      open_pair(&open[size]);
      open[size].left = lives[rand() % 6] * TICKS_PER_S;
      move(&open[size++]);
    }
    for (long n = 0; n < size; n++) {
      if (--open[n].left % EVERY == 0)
        move(&open[n]);
      if (open[n].left <= 0) {
        close_pair(&open[n]);
        open[n--] = open[--size];
      }
    }
  }
  while (size)
    close_pair(&open[--size]);
}

int main(int argc, char **argv) {
  if (argc != 4)
    return 64;
  int file = open(argv[1], O_RDWR);
  counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (counts == MAP_FAILED)
    return 1;
  begin();
  live(atof(argv[2]), atof(argv[3]));
  return 0;
}
