// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Makes programs short to verify. The verifier follows every path to the end of a program, unless it arrives
// somewhere in a state that it has followed before: so values should not tell by which path they came.
#pragma once

#include <linux/types.h>

// Keeps the compiler from moving loads and stores across: another CPU runs the same program.
#define IN_ORDER() asm volatile("" ::: "memory")

// Separates stages of a program, which pass values on in a map: what is stored there is unknown to the
// verifier. If values stayed in registers or on the stack, it would follow the next stage for each
// combination of values.
#define END_STAGE() IN_ORDER()

// Makes the verifier forget what it knows about a number. To it, an XOR with an unknown number of the same
// size has an unknown result; the second one restores the value, so they must not share a register (&).
#define FORGET(number, unknown) asm volatile("%0 ^= %1\n%0 ^= %1" : "+&r"(number) : "r"(unknown))

// bpf_probe_read_kernel under a name that bcc does not know: it may replace that one by bpf_probe_read, which
// only programs for tracing have.
static long (*const read_kernel)(void *copy, u32 size, const void *from) = (void *)113;

// Copies a member of a kernel struct. If a program loads a pointer through a typed one, the verifier searches
// all types of the kernel by name for a variant that may be trusted (type_is_trusted in
// kernel/bpf/verifier.c): that takes a millisecond for each load, on each path that leads to it. What is
// copied is a number to it.
#define READ_KERNEL(to, from) read_kernel(&(to), sizeof(to), (void *)&(from))
