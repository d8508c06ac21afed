// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
// Services, their numbers and counters: shared by the programs for TCP and for UDP. struct key, struct owner,
// struct service, struct tally, struct whole, the -D numbers and process.bpf.h are prepended to this file.
#pragma once

#include <nettop/buckets.h>
#include <nettop/verifier.h>

#define ATTEMPTS 4
#define NONE_TAKEN (~0ull)

#define ADD(number, amount) __sync_fetch_and_add(&(number), amount)

// Numbers of services. A number is an index into `services` and `tallies` plus a multiple of SERVICES_MAX,
// which grows each time the slot is reused.
BPF_HASH(known, struct key, u32, SERVICES_MAX);
// Free numbers, in the order in which they are taken, and how many were ever given; user space writes both.
BPF_ARRAY(numbers, u32, SERVICES_MAX);
BPF_ARRAY(given, u64, 1);
BPF_F_TABLE("array", u32, struct service, services, SERVICES_MAX, 1024 /* BPF_F_MMAPABLE */);
BPF_F_TABLE("array", u32, struct tally, tallies, SERVICES_MAX *PARTITIONS, 1024 /* BPF_F_MMAPABLE */);

// Totals: service numbers taken, and cases in which there was no room.
BPF_F_TABLE("array", u32, struct whole, whole, 1, 1024 /* BPF_F_MMAPABLE */);

#define COUNT_DURATION(histogram, duration)                                                                  \
  do {                                                                                                       \
    u64 bucket = bucket_of(duration, DIVIDED_BY_BITS);                                                       \
    if (bucket < BUCKETS)                                                                                    \
      ADD((histogram)[bucket], 1);                                                                           \
  } while (0)

static __always_inline struct whole *get_whole() {
  int first = 0;
  return whole.lookup(&first);
}

static __always_inline struct tally *tally_of(u32 service) {
  u32 place = service % SERVICES_MAX * PARTITIONS + bpf_get_smp_processor_id() % PARTITIONS;
  return tallies.lookup(&place);
}

static __always_inline void put_owner(struct service *service, struct owner *owner) {
  COPY_PROCESS(service, owner);
  service->cgroup_id = owner->cgroup_id;
}

static __always_inline void put_user(struct key *key, struct owner *owner) {
  ((u64 *)key->user)[0] = ((u64 *)owner->comm)[0];
  ((u64 *)key->user)[1] = ((u64 *)owner->comm)[1];
}

static __always_inline struct service *service_of(u32 number) {
  u32 place = number % SERVICES_MAX;
  return services.lookup(&place);
}

// Takes a free number; returns 0 if there is none.
static __always_inline u32 take_number(struct whole *whole) {
  int first = 0;
  u64 *all = given.lookup(&first), taken = NONE_TAKEN;
  if (!all)
    return 0;
#pragma unroll
  for (int n = 0; n < ATTEMPTS; n++) {
    u64 next = whole->taken;
    if (taken == NONE_TAKEN && next < *all &&
        __sync_val_compare_and_swap(&whole->taken, next, next + 1) == next)
      taken = next;
    FORGET(taken, next);
  }
  u32 at = taken % SERVICES_MAX;
  u32 *number = taken == NONE_TAKEN ? NULL : numbers.lookup(&at);
  return number ? *number : 0;
}

// Returns the number of a service, or of all others of its side if there is no room.
static __always_inline u32 number_of(struct key *key, struct owner *owner) {
  u32 *before = known.lookup(key);
  if (before)
    return *before;
  struct whole *whole = get_whole();
  if (!whole)
    return key->side;
  u32 number = take_number(whole);
  struct service *service = number ? service_of(number) : NULL;
  if (!service) {
    ADD(whole->without_place, 1);
    return key->side;
  }
  if (known.insert(key, &number)) { // another CPU was first
    // A slot that has begun but is unused is given back, like that of an idle service.
    service->began_at = bpf_ktime_get_ns();
    before = known.lookup(key);
    return before ? *before : key->side;
  }
  if (owner)
    put_owner(service, owner);
  service->key = *key;
  service->began_at = bpf_ktime_get_ns();
  return number;
}
