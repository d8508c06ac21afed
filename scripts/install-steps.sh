# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2034,SC2086,SC2154  # variables are shared with install-deps.sh
#
# How install-deps.sh shows its steps, runs commands in them, and ends: with the cause and the remedy of a failure, and
# with what is left when it is interrupted.

readonly exit_failure=1 exit_usage=2 exit_cannot=3 exit_permission=4

step='' ticker=''      # the current step, and the process that counts its seconds on a terminal
step_number=0 steps=1
words=''               # output of the last command
explained=false        # whether the cause of the exit was printed
failed_line=''         # line at which a command failed unexpectedly

say() { printf '%s\n' "$*"; }

begin() {
  step=$1 step_began=$SECONDS step_number=$((step_number + 1))
  [[ -t 1 ]] || return 0
  set -m
  while show_step; do sleep 1; done </dev/null &
  ticker=$!
  set +m
}

show_step() { printf '\r[%d/%d] %s … %s%d s' $step_number $steps "$step" "${1:+$1, }" $((SECONDS - step_began)); }

finish() {
  local shown
  stop_ticker
  shown=$(show_step "${1-}")
  step=''
  if [[ -t 1 ]]; then say "$shown"; else say "${shown#$'\r'}"; fi
}

stop_ticker() {
  [[ -z $ticker ]] || { kill -KILL -- "-$ticker" && wait "$ticker"; } 2>/dev/null || true
  ticker=''
}

# Runs a command, or a function, in its own process group; its output is in `words`. Signals are handled meanwhile.
run() {
  local child status=0
  : >"/dev/fd/$log"
  set -m
  "$@" </dev/null >>"/dev/fd/$log" 2>&1 &
  child=$!
  set +m
  wait "$child" || status=$?
  words=$(<"/dev/fd/$log")
  return $status
}

must() { run "$@" || give_up "$*" "${*: -1}"; }

fail() {
  [[ -z $step ]] || finish failed
  printf 'install-deps: %s\n' "${@:2}" >&2
  explained=true
  exit "$1"
}

# Exits with the cause of a failure, if the last command's output tells.
give_up() {
  local what=$1 where=$2 code=$exit_failure cause='see the lines above.'
  shift 2
  if said 'No space left on device|enough free space'; then
    cause="no space left for $where (free: $(free_space "$where"))." && set -- 'Free some space, then run again.'
  elif said 'Disk quota exceeded'; then
    cause="the disk quota for $where is exceeded." && set -- 'Free some space, then run again.'
  elif said 'Read-only file system'; then
    cause="$where is on a read-only file system." && set -- 'Mount it writable, then run again.'
  elif said 'emporary failure |ould not (resolve|connect)|Name or service not known|Network is unreachable' ||
    said 'No route to host|onnection (refused|timed out)|Failed to establish a new connection'; then
    cause='the network or the package server is not reachable.'
  elif said 'Permission denied|Operation not permitted'; then
    cause="uid $EUID lacks a permission, perhaps in a container or on a network file system." code=$exit_permission
  fi
  [[ -z $step ]] || finish failed
  show_last_words
  fail $code "$what: $cause" "$@"
}

said() { grep -qE "$1" <<<"$words"; }

show_last_words() { tail -n 12 <<<"$words" | sed 's/^/  /' >&2; }

# Prints the free space of the file system in which a file is, or would be.
free_space() { df -h --output=avail -- "$1" "$(dirname -- "$1")" / 2>/dev/null | sed -n '2s/ //gp'; }

# Prints the command as the caller has to type it.
command_to_start() {
  local command=nettop
  [[ $(PATH=$callers_path type -P nettop) -ef /usr/local/bin/nettop ]] || command=/usr/local/bin/nettop
  # command -v also finds a file that is not executable.
  if [[ -n ${SUDO_UID-} && -x $(command -v sudo) ]]; then command="sudo $command"; fi
  say "$command"
}

# --- how the script ends --------------------------------------------------------------------------

watch_exits() {
  local signal file
  set -o errtrace
  trap 'failed_line=$LINENO' ERR
  trap 'on_exit $? "${FUNCNAME[0]-main}${failed_line:+, line $failed_line}"' EXIT
  for signal in HUP INT TERM; do
    # shellcheck disable=SC2064  # expanded now
    trap "interrupted $signal" "$signal"
  done
  # The file with the output of commands has no name: nothing is left of it even after kill -9.
  file=$(mktemp) || fail $exit_failure "cannot write a temporary file in ${TMPDIR:-/tmp}."
  exec {log}<>"$file"
  rm -f -- "$file"
}

interrupted() {
  local group
  trap '' INT TERM HUP
  set +e
  explained=true
  stop_ticker
  [[ -z $step || ! -t 1 ]] || say ''
  printf 'install-deps: interrupted by SIG%s; %s\n' "$1" "$(state_left)" >&2
  # Use bash's own list: the signal may arrive before the script could record a job.
  for group in $(jobs -p); do
    kill -TERM -- "-$group" && wait "$group"
    kill -KILL -- "-$group"
  done 2>/dev/null
  exit $((128 + $(kill -l "$1")))
}

# Bash exits on its own when a command fails unexpectedly, and on some script errors.
on_exit() {
  if (($1)) && ! $explained; then
    [[ -z $step ]] || finish failed
    [[ -z $words ]] || show_last_words
    printf 'install-deps: stopped by an error of this script, in %s (status %d); %s Please report this.\n' \
      "$2" "$1" "$(state_left)" >&2
  fi
  clean_up
}

state_left() {
  case $action in
    uninstall) say 'run it again to remove the rest.' ;;
    make-wheels) say "$folder is incomplete." ;;
    *) if is_current "$release"; then say 'nettop is installed.'; else say 'nettop is unchanged.'; fi ;;
  esac
}

is_current() { [[ -n $1 && $1 -ef $current ]]; }

clean_up() {
  [[ -z $scratch ]] || rm -rf -- "$scratch"
  [[ -n $release ]] && ! is_current "$release" || return 0
  rm -rf -- "$release"
  # If nothing was installed before, leave nothing behind.
  ! rmdir $releases 2>/dev/null || { rm -f $mark && rmdir --ignore-fail-on-non-empty $place; }
}
