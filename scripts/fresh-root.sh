#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Test on a fresh Debian that a clone and README's two commands are the complete setup; see `--help`.
# The outer half creates a root directory and removes it; the inner half runs in its own mount namespace, so that no
# mount is left behind whatever happens.
set -euo pipefail
umask 022

readonly where=/srv/nettop             # the clone, as seen inside
readonly certificates=/etc/forwarded.pem # this machine's certificate authorities, as seen inside

script=$(readlink -f -- "${BASH_SOURCE[0]}")
checkout=$(dirname -- "$(dirname -- "$script")")
readonly script checkout

usage() {
  cat <<'HELP'
Usage: sudo scripts/fresh-root.sh [--suite SUITE] [--as USER] [--worktree] [--core]
       sudo scripts/fresh-root.sh [--suite SUITE] [--as USER] [--worktree] --run COMMAND

Creates a fresh Debian in a temporary directory, clones this checkout's HEAD into it, runs README's two commands
there, checks that `nettop --table -d --once` shows a real connection, and kills the installer at random moments.
Uses this machine's package mirror, pip configuration and certificates. If its apt sources have no Debian mirror,
uses DEBIAN_MIRROR, else debootstrap's default.

  --suite SUITE  Debian release: bookworm (12, the default), trixie (13) or later
  --as USER      run the commands as root, on a system without sudo (the default), or as user, who may run sudo
  --worktree     use the files as they are instead of HEAD
  --core         run no tests but README's make test: by default make test-kernel test-install follow
  --run COMMAND  run only this command, in the clone inside, and none of the above; bash opens a shell

Exit codes: 0 passed, 1 failure, 2 usage, 3 this machine cannot, 4 not root.
HELP
}

say() { printf '\n== %s\n' "$*"; }

fail() {
  printf 'fresh-root: %s\n' "$*" >&2
  exit "${code:-1}"
}

# --- the outer half -------------------------------------------------------------------------------

main() {
  local source=head tests=all command=''
  suite=bookworm user=root
  while (($#)); do
    case $1 in
      --suite) suite=${2:?needs a name} && shift ;;
      --as)
        user=${2-}
        [[ $user == root || $user == user ]] || code=2 fail '--as needs root or user.'
        shift
        ;;
      --worktree) source=worktree ;;
      --core) tests=core ;;
      --run) command=${2:?needs a command} && shift ;;
      -h | --help) usage && exit 0 ;;
      *) usage >&2 && exit 2 ;;
    esac
    shift
  done
  ((EUID == 0)) || { printf 'fresh-root: needs root; run it with sudo.\n' >&2 && exit 4; }
  command -v debootstrap >/dev/null || code=3 fail 'needs debootstrap; run: sudo scripts/install-deps.sh --kernels'
  unshare --mount true 2>/dev/null || code=3 fail 'cannot create a mount namespace here.'

  root=$(mktemp -d -p "${TMPDIR:-/var/tmp}" nettop-root.XXXXXX)
  chmod 755 "$root"
  trap remove_root EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  make_debian
  copy_sources_from_"$source"
  unshare --mount --propagation private "$script" inner "$root" "$suite" "$user" $tests "$command"
  say 'The fresh root passed.'
}

# The mounts belong to the inner half and end with it, unless a process inside survives.
remove_root() {
  local process
  for process in /proc/[0-9]*; do
    if [[ $(readlink "$process/root") == "$root" ]]; then kill -KILL "${process#/proc/}" 2>/dev/null || true; fi
  done
  rm -rf --one-file-system "$root"
}

make_debian() {
  local archive
  say "Debian $suite"
  archive=$("$checkout/scripts/debian.sh" base "$suite")
  tar -xzf "$archive" -C "$root"
}

copy_sources_from_head() {
  say "Sources: HEAD, $(git -C "$checkout" log -1 --format='%h %s')"
  git clone --quiet --no-hardlinks "$checkout" "$root$where"
}

copy_sources_from_worktree() {
  say 'Sources: the files as they are'
  mkdir -p "$root$where"
  git -C "$checkout" ls-files -z --cached --others --exclude-standard --deduplicate |
    tar -C "$checkout" --null --files-from=- --ignore-failed-read -c | tar -C "$root$where" --no-same-owner -x
}

# --- the inner half, in its own mount namespace ---------------------------------------------------

inner() {
  root=$1
  suite=$2
  local user=$3 tests=$4 command=$5
  mount_kernel_filesystems
  forward_apt
  forward_network
  mapfile -t environment < <(forwarded_environment)
  forward_certificates
  forward_local_paths
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no package starts a daemon here
  chmod +x "$root/usr/sbin/policy-rc.d"

  [[ $user == root ]] || become_user_with_sudo
  if [[ -n $command ]]; then
    in_root "$command"
  else
    follow_readme "$tests"
  fi
}

follow_readme() {
  local tests=$1 commands words=''
  [[ -n $sudo ]] || words='s/sudo //g'
  mapfile -t commands < <(grep -E '^ *sudo scripts/install-deps\.sh.* && ' "$root$where/README.md" | sed "$words")
  ((${#commands[@]} == 2)) || fail "README.md has ${#commands[@]} commands with install-deps.sh, not two."

  say "README: ${commands[0]}"
  in_root "${commands[0]%% && *}"
  start_on_a_terminal "${commands[0]##* && }"
  check_real_connection
  [[ $tests != all ]] || commands[1]+=' && make test-kernel test-install'
  say "README: ${commands[1]}"
  in_root "${commands[1]}"
}

mount_kernel_filesystems() {
  # Make it a mount point: `ip netns exec` needs one at "/" inside.
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  # Recursive: BTF, the BPF file system, cgroups.
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=755 run "$root/run"
  mkdir -p "$root/run/netns" "$root/run/lock"
}

forward_apt() {
  local sources
  sources=$("$checkout/scripts/debian.sh" sources "$suite" | sed 's/^/deb /')
  # If this machine has none, keep those that debootstrap wrote.
  [[ -z $sources ]] || printf '%s\n' "$sources" >"$root/etc/apt/sources.list"
  # Only how to fetch (proxy, certificates, checks), no other apt hooks of this machine and no passwords.
  apt-config dump | grep -E '^Acquire::' >"$root/etc/apt/apt.conf.d/99forwarded"
}

forward_network() {
  cp --remove-destination -L /etc/resolv.conf /etc/hosts "$root/etc/"
}

# Prints pip's configuration files and the environment as NAME=value lines; the environment wins, as in pip.
forwarded_environment() {
  python3 - <<'PYTHON'
import ast, os, subprocess, sys

forwarded = {}
listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
for line in listing.stdout.splitlines():
    key, _, value = line.partition("=")
    section, _, option = key.rpartition(".")
    if section in ("global", "install"):
        forwarded["PIP_" + option.upper().replace("-", "_")] = " ".join(ast.literal_eval(value).split())
wanted = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
for name, value in os.environ.items():
    if name.startswith("PIP_") or name in wanted or name.lower().endswith("_proxy"):
        forwarded[name] = value
print(*(f"{name}={value}" for name, value in sorted(forwarded.items())), sep="\n")
PYTHON
}

# Use a separate file: installing ca-certificates inside would overwrite the usual one.
forward_certificates() {
  local i value
  for i in "${!environment[@]}"; do
    value=${environment[i]#*=}
    case ${environment[i]} in
      PIP_CERT=* | SSL_CERT_FILE=* | REQUESTS_CA_BUNDLE=* | CURL_CA_BUNDLE=*)
        [[ -f $value ]] || continue
        cat "$value" >>"$root$certificates"
        environment[i]=${environment[i]%%=*}=$certificates
        ;;
    esac
  done
}

# Makes paths in pip's configuration available: bind-mounts package directories, copies files such as constraints.
forward_local_paths() {
  local entry word path
  for entry in "${environment[@]}"; do
    for word in ${entry#*=}; do
      [[ $word == /* || $word == file://* ]] || continue
      path=${word#file://}
      path=/${path#*/}
      # An index named simple/ links to files beside it.
      path=${path%/simple}
      if [[ -d $path ]]; then
        mkdir -p "$root$path"
        mount --bind "$path" "$root$path"
        mount -o remount,bind,ro "$root$path"
      elif [[ -f $path ]]; then
        mkdir -p "$root${path%/*}"
        cp -L "$path" "$root$path"
      fi
    done
  done
}

# The user who runs commands in the root, and how that user becomes root.
home=/srv
become=()
sudo=''

become_user_with_sudo() {
  say 'A user who may run sudo'
  in_root 'apt-get -qq update && apt-get -qq install -y --no-install-recommends sudo >/dev/null && useradd --create-home user'
  cat >"$root/etc/sudoers.d/user" <<'SUDOERS'
user ALL=(ALL) NOPASSWD: ALL
Defaults env_keep += "PIP_* *_proxy SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE"
SUDOERS
  in_root 'chown -R user: .'
  home=/home/user become=(--userspec=user) sudo=sudo
}

in_root() {
  chroot "${become[@]}" "$root" /usr/bin/env -i HOME="$home" LANG=C.UTF-8 TERM="${TERM:-linux}" "${environment[@]}" \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    bash -euo pipefail -c "cd $where; $1"
}

# Gives the full-screen program a terminal, and presses q after it had time to draw.
start_on_a_terminal() {
  local drawn
  in_root "timeout 60 script --quiet --return --flush --command 'stty cols 120 rows 40; $1' /tmp/drawn >/dev/null \
    < <(sleep 3; while printf q; do sleep 1; done)" ||
    fail "$1 on a terminal exited with $?; the end of its output: $(tail -n 5 "$root/tmp/drawn" | tr -cd '[:print:]\n')"
  drawn=$(stat -c %s "$root/tmp/drawn")
  grep -q nettop "$root/tmp/drawn" || fail "$1 drew no frame on the terminal ($drawn bytes)."
  say "$1 drew $drawn bytes on a 120×40 terminal and exited on q."
}

check_real_connection() {
  say 'nettop --table -d --once, with a connection open'
  in_root "python3 -c '
import socket, subprocess
listener = socket.create_server((\"127.0.0.1\", 0))
client = socket.create_connection(listener.getsockname())
shown = subprocess.check_output(\"$sudo nettop --table -d --once\".split(), text=True)
print(shown)
assert \"127.0.0.1:%d\" % listener.getsockname()[1] in shown'" || fail "the open connection is not in nettop's output."
}

if [[ ${1-} == inner ]]; then
  shift
  inner "$@"
else
  main "$@"
fi
