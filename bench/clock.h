// SPDX-License-Identifier: Apache-2.0
// Times in seconds of CLOCK_MONOTONIC.
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}
