// SPDX-License-Identifier: Apache-2.0
// Sends UDP messages to itself over IPv4 forever, receives each, and counts their bytes in FILE (one 8-byte
// number): messages SEGMENTS FILE. A message has 1,200 bytes, like QUIC's datagrams, or that many segments
// of 1,200 bytes (UDP_SEGMENT), which are received together (UDP_GRO).
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { DATAGRAM = 1200, MOST = 65000 };

int main(int argc, char **argv) {
  static char message[MOST];
  if (argc != 3)
    return 64;
  int segments = atoi(argv[1]), bytes = segments * DATAGRAM, datagram = DATAGRAM, yes = 1;
  int file = open(argv[2], O_RDWR | O_CREAT, 0600), own = socket(AF_INET, SOCK_DGRAM, 0);
  if (bytes > MOST || file < 0 || ftruncate(file, sizeof(uint64_t)))
    return 1;
  volatile uint64_t *count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof(at);
  if (count == MAP_FAILED || bind(own, (void *)&at, length) || getsockname(own, (void *)&at, &length) ||
      connect(own, (void *)&at, length))
    return 1;
  if (segments > 1 && (setsockopt(own, IPPROTO_UDP, UDP_SEGMENT, &datagram, sizeof(datagram)) ||
                       setsockopt(own, IPPROTO_UDP, UDP_GRO, &yes, sizeof(yes))))
    return 1;
  for (;; *count += bytes)
    if (send(own, message, bytes, 0) != bytes || recv(own, message, MOST, 0) != bytes)
      return 1;
}
