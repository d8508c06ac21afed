// SPDX-License-Identifier: Apache-2.0
// Sends the datagrams of a file to a UDP port of this host, at a steady rate, over and over:
// exports PORT RATE SECONDS PLACE FILE
// RATE is in datagrams per second; 0 is as fast as possible. FILE begins with STEP, a 32-bit number; each
// datagram follows its length, two bytes. The 32-bit sequence number at offset PLACE of each datagram
// increases by STEP, so that none looks lost. All numbers are in network order. Prints the number of
// datagrams sent.
#define _GNU_SOURCE
#include "clock.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define BATCH 64
#define MOST 65536

int main(int argc, char **argv) {
  if (argc != 6)
    return 64;
  double rate = atof(argv[2]), seconds = atof(argv[3]);
  int place = atoi(argv[4]), file = open(argv[5], O_RDONLY);
  struct stat status;
  if (file < 0 || fstat(file, &status))
    return 1;
  uint8_t *content = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  if (content == MAP_FAILED)
    return 1;
  uint32_t step, sequence = 0;
  memcpy(&step, content, 4);
  step = ntohl(step);
  static struct iovec datagrams[MOST];
  int count = 0;
  for (off_t at = 4; at + 2 <= status.st_size && count < MOST; count++) {
    uint16_t length = content[at] << 8 | content[at + 1];
    datagrams[count] = (struct iovec){content + at + 2, length};
    at += 2 + length;
  }
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int sender = socket(AF_INET, SOCK_DGRAM, 0);
  if (!count || connect(sender, (void *)&to, sizeof(to)))
    return 1;
  struct mmsghdr messages[BATCH];
  double started = now(), elapsed;
  uint64_t sent = 0;
  while ((elapsed = now() - started) < seconds) {
    uint64_t due = rate ? (uint64_t)(elapsed * rate) : sent + BATCH;
    if (due == sent) {
      struct timespec tick = {.tv_nsec = 200000};
      nanosleep(&tick, NULL);
      continue;
    }
    int some = due - sent < BATCH ? due - sent : BATCH;
    memset(messages, 0, sizeof(messages));
    for (int i = 0; i < some; i++) {
      struct iovec *datagram = &datagrams[(sent + i) % count];
      uint32_t number = htonl(sequence);
      memcpy((uint8_t *)datagram->iov_base + place, &number, 4);
      sequence += step;
      messages[i].msg_hdr = (struct msghdr){.msg_iov = datagram, .msg_iovlen = 1};
    }
    int done = sendmmsg(sender, messages, some, 0);
    if (done < 0)
      return 1;
    sequence -= (some - done) * step;
    sent += done;
  }
  printf("%llu\n", (unsigned long long)sent);
}
