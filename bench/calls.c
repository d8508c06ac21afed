// SPDX-License-Identifier: Apache-2.0
// Repeats one operation forever and counts it in FILE (one 8-byte number): calls WHAT FILE
// WHAT is getppid, the shortest system call; spin, a loop without system calls; or the socket that one thread
// writes to and reads from over loopback: tcp, 16 kB a turn, or udp, 64 bytes.
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TCP_BYTES = 16384, UDP_BYTES = 64 };

// Connects two sockets of one type over loopback. Returns whether it succeeded.
static int pair(int type, int ends[2]) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof(at);
  int there = socket(AF_INET, type, 0);
  ends[0] = socket(AF_INET, type, 0);
  if (bind(there, (void *)&at, length) || getsockname(there, (void *)&at, &length) ||
      (type == SOCK_STREAM && listen(there, 1)) || connect(ends[0], (void *)&at, length))
    return 0;
  ends[1] = type == SOCK_STREAM ? accept(there, NULL, NULL) : there;
  return ends[1] >= 0;
}

int main(int argc, char **argv) {
  static char message[TCP_BYTES];
  int ends[2];
  if (argc != 3)
    return 64;
  int file = open(argv[2], O_RDWR | O_CREAT, 0600), is_udp = !strcmp(argv[1], "udp");
  if (file < 0 || ftruncate(file, sizeof(uint64_t)))
    return 1;
  volatile uint64_t *count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (count == MAP_FAILED)
    return 1;
  if (!strcmp(argv[1], "getppid"))
    for (;; (*count)++)
      getppid();
  if (is_udp || !strcmp(argv[1], "tcp")) {
    ssize_t size = is_udp ? UDP_BYTES : TCP_BYTES;
    if (!pair(is_udp ? SOCK_DGRAM : SOCK_STREAM, ends))
      return 1;
    for (;; (*count)++)
      if (send(ends[0], message, size, 0) != size || recv(ends[1], message, size, MSG_WAITALL) != size)
        return 1;
  }
  for (;; (*count)++)
    for (volatile int step = 0; step < 100; step++)
      ;
}
