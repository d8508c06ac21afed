// SPDX-License-Identifier: Apache-2.0
// Makes a storm of short TCP connections over loopback: storm SECONDS
// It connects to its own listener, sends a request, gets an answer, and both ends close. Prints the number of
// connections, the elapsed seconds and the CPU seconds used.
#define _GNU_SOURCE
#include "clock.h"
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

// One process is both ends, so that the cost of a connection is not hidden by waiting for another CPU.
static long work(double until) {
  char text[100] = {0};
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof(at);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (void *)&at, sizeof(at)) || listen(listener, 128) ||
      getsockname(listener, (void *)&at, &length))
    exit(1);
  long made = 0;
  for (; now() < until; made++) {
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
  if (argc != 2)
    return 64;
  double start = now();
  long made = work(start + atof(argv[1]));
  struct rusage used;
  getrusage(RUSAGE_SELF, &used);
  double cpu =
      used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
  printf("%ld %.6f %.6f\n", made, now() - start, cpu);
  return 0;
}
