// SPDX-License-Identifier: Apache-2.0
// Makes a storm of short TCP connections over loopback: storm SECONDS WORKERS [CONNECTIONS_PER_SECOND]
// Each worker connects to its own listener, sends a request, gets an answer, and both ends close. Prints the
// number of connections, the elapsed seconds and the CPU seconds used.
#define _GNU_SOURCE
#include "clock.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

// One process is both ends, so that the cost of a connection is not hidden by waiting for another CPU.
static long work(double until, double rate) {
  char text[100] = {0};
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof(at);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (void *)&at, sizeof(at)) || listen(listener, 128) ||
      getsockname(listener, (void *)&at, &length))
    exit(1);
  long made = 0;
  for (double start = now(); now() < until; made++) {
    if (rate > 0 && made % 16 == 0)
      pause_until(start + made / rate);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    // Connect from many addresses, so that ports in TIME_WAIT never run out.
    struct sockaddr_in from = {.sin_family = AF_INET,
                               .sin_addr.s_addr = htonl(0x7f000000 + 2 + (made / 4096) % 4096)};
    int yes = 1;
    setsockopt(client, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &yes, sizeof(yes));
    if (bind(client, (void *)&from, sizeof(from)) || connect(client, (void *)&at, sizeof(at)))
      exit(2);
    int server = accept(listener, NULL, NULL);
    if (write(client, text, 100) != 100 || read(server, text, 100) != 100 || write(server, text, 50) != 50 ||
        read(client, text, 100) != 50)
      exit(3);
    close(made % 2 ? client : server);
    close(made % 2 ? server : client);
  }
  return made;
}

int main(int argc, char **argv) {
  if (argc < 3)
    return 64;
  int workers = atoi(argv[2]);
  double rate = argc > 3 ? atof(argv[3]) / workers : 0, start = now();
  long *made = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  for (int n = 0; n < workers; n++)
    if (!fork()) {
      made[n] = work(start + atof(argv[1]), rate);
      return 0;
    }
  long all = 0;
  int status, failed = 0;
  for (int n = 0; n < workers; n++) {
    wait(&status);
    failed |= status;
  }
  for (int n = 0; n < workers; n++)
    all += made[n];
  struct rusage used;
  getrusage(RUSAGE_CHILDREN, &used);
  double cpu =
      used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  printf("%ld %.6f %.6f\n", all, now() - start, cpu);
  return failed != 0;
}
