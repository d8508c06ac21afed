// SPDX-License-Identifier: Apache-2.0
// Makes one kind of call for PERCENT of the time, then prints the nanoseconds of its thread's CPU time that
// they took: duty WHAT PERCENT SECONDS CPU ADDRESS PORT WHAT is send, sendmsg, sendfile or splice, to a UDP
// socket at ADDRESS, or recv, from one bound there.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 32768, PERIOD_NS = 10000000, PERCENT = 100 };
static const double NS_PER_S = 1e9;
static char message[BYTES];

static double ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec * NS_PER_S + (double)now.tv_nsec;
}

// Makes one call. What it returns does not matter: nobody may be there to receive.
static void call(const char *what, int to, int file, const int ends[2]) {
  struct iovec part = {message, sizeof(message)};
  struct msghdr all = {.msg_iov = &part, .msg_iovlen = 1};
  off_t begin = 0;
  if (!strcmp(what, "send"))
    send(to, message, sizeof(message), 0);
  else if (!strcmp(what, "sendmsg"))
    sendmsg(to, &all, 0);
  else if (!strcmp(what, "sendfile"))
    sendfile(to, file, &begin, sizeof(message));
  else if (!strcmp(what, "recv"))
    recv(to, message, sizeof(message), MSG_DONTWAIT);
  else if (splice(file, &begin, ends[1], NULL, sizeof(message), 0) > 0)
    splice(ends[0], NULL, to, NULL, sizeof(message), 0);
}

int main(int argc, char **argv) {
  if (argc != 7)
    return 64;
  int share = atoi(argv[2]), ends[2];
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(atoi(argv[4]), &cpus);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[6]))};
  int to = socket(AF_INET, SOCK_DGRAM, 0), file = memfd_create("duty", 0);
  int is_there = !strcmp(argv[1], "recv") ? !bind(to, (void *)&at, sizeof(at)) : 1;
  if (sched_setaffinity(0, sizeof(cpus), &cpus) || !inet_aton(argv[5], &at.sin_addr) || pipe(ends) ||
      !is_there || write(file, message, sizeof(message)) != sizeof(message))
    return 1;
  if (strcmp(argv[1], "recv") && connect(to, (void *)&at, sizeof(at)))
    return 1;
  double end = ns(CLOCK_MONOTONIC) + atof(argv[3]) * NS_PER_S, spent = 0;
  while (ns(CLOCK_MONOTONIC) < end) {
    double begin = ns(CLOCK_THREAD_CPUTIME_ID), until = begin + (double)PERIOD_NS * share / PERCENT;
    while (ns(CLOCK_THREAD_CPUTIME_ID) < until)
      call(argv[1], to, file, ends);
    spent += ns(CLOCK_THREAD_CPUTIME_ID) - begin;
    struct timespec rest = {0, (long)PERIOD_NS * (PERCENT - share) / PERCENT};
    nanosleep(&rest, NULL);
  }
  printf("%.0f\n", spent);
  return 0;
}
