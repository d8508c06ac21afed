#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Run by test-kernels.py as root: kernel-guest.sh CHECKOUT COPY RESULTS yes|no [PYTEST-OPTIONS], in a virtual machine
# that sees the host's files and can change only those in RESULTS, or on the host in its own mount namespace.
# "yes" runs doctor; without pytest options no test runs.
set -uo pipefail

checkout=$1 copy=$2 results=$3 with_doctor=$4 host_files=${NETTOP_HOST_FILES-} host=
shift 4

export HOME=/tmp LC_ALL=C.UTF-8 TERM=dumb PYTHONDONTWRITEBYTECODE=1 NETTOP_TEST_FAILURES=$results/failures
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

prepare_machine() {
  mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
  mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
  mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  mkdir -p /run/netns
  ip link set lo up
  ulimit -n 20000 2>/dev/null || true
}

# Attaching hooks patches code that other CPUs may be about to run, which CPUs emulated by QEMU before 8.1 do not always
# survive (docs/costs-and-limits.md says why). With two permanent users, attaching and detaching others patches nothing
# at these tracepoints.
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

# A machine rereads the host's files for every access. Let it cache the most-read ones, which nobody changes meanwhile.
cache_host_files() {
  [[ -n $host_files ]] || return 0
  mkdir -p /run/host
  mount -t 9p -o ro,trans=virtio,version=9p2000.L,access=any,msize=512000,cache=loose "$host_files" /run/host || exit
  for place in /usr/bin /usr/sbin /usr/lib/*-linux-gnu /usr/lib/python3*; do mount --bind "/run/host$place" "$place"; done
  host=/run/host
}

# Mounts the copy over the checkout, but keeps the checkout's .venv: paths in .venv then lead to the copy, and edits to
# the checkout have no effect on the run.
mount_copy() {
  mkdir -p "$results/.venv"
  mount --bind "$host$checkout/.venv" "$results/.venv"
  mount --bind "$host$copy" "$checkout"
  mount --bind "$results/.venv" "$checkout/.venv"
}

run_tests() {
  .venv/bin/python -m pytest -v --color=no --durations=0 --tb=short --junitxml="$results/junit.xml" "$@"
  printf '%s\n' $? >"$results/status"
}

run_doctor() {
  .venv/bin/nettop doctor --timeout $((90 * ${NETTOP_TEST_PATIENCE:-1})) --format json >"$results/doctor.json" 2>"$results/doctor.stderr"
  printf '%s\n' $? | tee "$results/doctor.status"
}

prepare_machine
keep_hot_tracepoints_on
cache_host_files
mount_copy
cd "$checkout" || exit
uname -r >"$results/release"
(($# == 0)) || run_tests "$@"
[[ $with_doctor == no ]] || run_doctor
