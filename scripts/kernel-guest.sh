#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# What test-kernels.py runs, as root: kernel-guest.sh CHECKOUT COPY RESULTS yes|no [PYTEST-OPTIONS], in a virtual machine
# that sees the host's files and can change none but those in RESULTS, or on the host in a mount namespace of its own.
# "yes" is for doctor; without options for pytest no test is run.
set -uo pipefail

checkout=$1 copy=$2 results=$3 with_doctor=$4 host_files=${NETTOP_HOST_FILES-} host=
shift 4

export HOME=/tmp LC_ALL=C.UTF-8 TERM=dumb PYTHONDONTWRITEBYTECODE=1 NETTOP_TEST_FAILURES=$results/failures
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

make_a_machine() {
  mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
  mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
  mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /run/netns
  ip link set lo up
  ulimit -n 20000 2>/dev/null || true
}

# Hooks come and go by patching code that other CPUs may be about to run, which those that QEMU before 8.1 emulates do not
# always survive (docs/costs-and-limits.md says why). Two that stay leave no more to patch there, however many come and
# go beside them.
keep_hot_tracepoints_on() {
  [[ -n $host_files ]] || return 0
  local instance event
  for instance in /sys/kernel/tracing/instances/{one,another}; do
    mkdir "$instance" && echo 0 >"$instance/tracing_on" && echo 4 >"$instance/buffer_size_kb" || return
    for event in irq/softirq_entry irq/softirq_exit sched/sched_switch skb/kfree_skb; do
      echo 1 >"$instance/events/$event/enable"
    done
  done
}

# A machine asks the host for each byte of its files anew. Here it may keep what it has read of those that are read most
# and that nobody changes meanwhile.
keep_what_is_read() {
  [[ -n $host_files ]] || return 0
  mkdir -p /run/host
  mount -t 9p -o ro,trans=virtio,version=9p2000.L,access=any,msize=512000,cache=loose "$host_files" /run/host || exit
  for place in /usr/bin /usr/sbin /usr/lib/*-linux-gnu /usr/lib/python3*; do mount --bind "/run/host$place" "$place"; done
  host=/run/host
}

# The copy takes the place of the checkout, around the .venv that belongs there: the paths in .venv lead to the copy,
# and nobody's edits are seen meanwhile.
put_the_copy_in_place() {
  mkdir -p "$results/.venv"
  mount --bind "$host$checkout/.venv" "$results/.venv"
  mount --bind "$host$copy" "$checkout"
  mount --bind "$results/.venv" "$checkout/.venv"
}

run_tests() {
  .venv/bin/python -m pytest -v --color=no --durations=0 --tb=short --junitxml="$results/junit.xml" "$@"
  printf '%s\n' $? >"$results/status"
}

ask_doctor() {
  .venv/bin/nettop doctor --format json >"$results/doctor.json" 2>"$results/doctor.stderr"
  printf '%s\n' $? | tee "$results/doctor.status"
}

make_a_machine
keep_hot_tracepoints_on
keep_what_is_read
put_the_copy_in_place
cd "$checkout" || exit
uname -r >"$results/release"
(($# == 0)) || run_tests "$@"
[[ $with_doctor == no ]] || ask_doctor
