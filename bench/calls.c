// SPDX-License-Identifier: Apache-2.0
// Repeats one operation forever and counts it in FILE (one 8-byte number): calls WHAT FILE
// WHAT is getppid, the shortest system call, or spin, a loop without system calls.
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc != 3)
    return 64;
  int file = open(argv[2], O_RDWR | O_CREAT, 0600);
  if (file < 0 || ftruncate(file, sizeof(uint64_t)))
    return 1;
  volatile uint64_t *count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (count == MAP_FAILED)
    return 1;
  if (!strcmp(argv[1], "getppid"))
    for (;; (*count)++)
      getppid();
  for (;; (*count)++)
    for (volatile int step = 0; step < 100; step++)
      ;
}
