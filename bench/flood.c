// SPDX-License-Identifier: Apache-2.0
// Sends 64-byte datagrams over IPv4 as fast as one CPU can: flood PORT ADDRESS sends, flood PORT receives.
// Each datagram is one system call; losses are not reported.
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
  if (argc < 2)
    return 64;
  char datagram[64] = {0};
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  int descriptor = socket(AF_INET, SOCK_DGRAM, 0);
  if (argc == 2) {
    if (bind(descriptor, (void *)&at, sizeof(at)))
      return 1;
    for (;;)
      recv(descriptor, datagram, sizeof(datagram), 0);
  }
  if (inet_pton(AF_INET, argv[2], &at.sin_addr) != 1 || connect(descriptor, (void *)&at, sizeof(at)))
    return 1;
  for (;;)
    send(descriptor, datagram, sizeof(datagram), 0);
}
