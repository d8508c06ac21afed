#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Proves on a fresh Debian that a clone and README's two commands are all the set-up there is; `--help` says how.
# The outer half makes a root folder and removes it; the inner half runs in a mount namespace of its own, so that
# whatever happens no mount is left behind.
set -euo pipefail
umask 022

readonly where=/srv/nettop             # the clone, as seen inside
readonly certificates=/etc/handed-on.pem # this machine's certificate authorities, as seen inside

script=$(readlink -f -- "${BASH_SOURCE[0]}")
checkout=$(dirname -- "$(dirname -- "$script")")
readonly script checkout

# shellcheck source=scripts/debian-sources.sh
. "$checkout/scripts/debian-sources.sh"

usage() {
  cat <<'HELP'
Usage: sudo scripts/fresh-root.sh [--suite SUITE] [--as USER] [--worktree] [--core | --no-tests] [--shell]
       sudo scripts/fresh-root.sh [--suite SUITE] [--as USER] [--worktree] --run COMMAND

Makes a fresh Debian in a temporary folder, clones this checkout's HEAD into it, runs README's two commands
there, has `nettop --table -d --once` show a connection that is really open, and kills the installer at random
moments.
This machine's package mirror, pip configuration and certificates are handed on. Where its apt lists have no
mirror of Debian that is DEBIAN_MIRROR, else what debootstrap takes by itself.

  --suite SUITE  which Debian: bookworm (12, the default), trixie (13) or a later one
  --as USER      who types the commands: root, on a system without sudo (the default), or user, who may run sudo
  --worktree     the files as they are, instead of HEAD
  --core         make test with only the core of its kernel tests: make lint test-pure test-core
  --no-tests     only the first of the two commands
  --shell        a shell inside before all is removed
  --run COMMAND  only this, in the clone inside, and nothing of the above

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
  local source=head tests=all shell=false command=''
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
      --no-tests) tests=no ;;
      --shell) shell=true ;;
      --run) command=${2:?needs a command} && shift ;;
      -h | --help) usage && exit 0 ;;
      *) usage >&2 && exit 2 ;;
    esac
    shift
  done
  ((EUID == 0)) || { printf 'fresh-root: needs root; run it with sudo.\n' >&2 && exit 4; }
  command -v debootstrap >/dev/null || code=3 fail 'needs debootstrap; run: sudo scripts/install-deps.sh --kernels'
  unshare --mount true 2>/dev/null || code=3 fail 'may not make a mount namespace here.'

  root=$(mktemp -d -p "${TMPDIR:-/var/tmp}" nettop-root.XXXXXX)
  chmod 755 "$root"
  trap remove_root EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  make_debian
  copy_the_sources_from_"$source"
  unshare --mount --propagation private "$script" inner "$root" "$suite" "$user" $tests $shell "$command"
  say 'The fresh root passed.'
}

# The mounts are the inner half's and ended with it, unless a process in there lives on.
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
  archive=$("$checkout/scripts/debian-base.sh" "$suite")
  tar -xzf "$archive" -C "$root"
}

copy_the_sources_from_head() {
  say "Sources: HEAD, $(git -C "$checkout" log -1 --format='%h %s')"
  git clone --quiet --no-hardlinks "$checkout" "$root$where"
}

copy_the_sources_from_worktree() {
  say 'Sources: the files as they are'
  mkdir -p "$root$where"
  git -C "$checkout" ls-files -z --cached --others --exclude-standard --deduplicate |
    tar -C "$checkout" --null --files-from=- --ignore-failed-read -c | tar -C "$root$where" --no-same-owner -x
}

# --- the inner half, in its own mount namespace ---------------------------------------------------

inner() {
  root=$1
  suite=$2
  local user=$3 tests=$4 shell=$5 command=$6
  mount_the_kernels_filesystems
  hand_on_apt
  hand_on_network
  mapfile -t environment < <(handed_on_environment)
  hand_on_certificates
  hand_on_local_paths
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # no package starts a daemon here
  chmod +x "$root/usr/sbin/policy-rc.d"

  [[ $user == root ]] || become_a_user_with_sudo
  if [[ -n $command ]]; then
    in_root "$command"
  else
    do_as_the_readme_says "$tests"
  fi
  if $shell; then in_root 'exec bash -i'; fi
}

do_as_the_readme_says() {
  local tests=$1 commands words=''
  [[ -n $sudo ]] || words='s/sudo //g'
  mapfile -t commands < <(grep -E '^ *sudo scripts/install-deps\.sh.* && ' "$root$where/README.md" | sed "$words")
  ((${#commands[@]} == 2)) || fail "README.md has ${#commands[@]} commands with install-deps.sh, not two."

  say "README: ${commands[0]}"
  in_root "${commands[0]%% && *}"
  start_on_a_terminal "${commands[0]##* && }"
  see_a_real_connection
  scrape_it
  case $tests in
    all) say "README: ${commands[1]}, and make test-install" && in_root "${commands[1]} && make test-install" ;;
    core)
      say "README: ${commands[1]%% && *}, and make lint test-pure test-core"
      in_root "${commands[1]%% && *} && make lint test-pure test-core"
      ;;
  esac
}

mount_the_kernels_filesystems() {
  # A mount of its own, or `ip netns exec` cannot work on "/" in there.
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  # With everything below: BTF, the BPF file system, cgroups.
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=755 run "$root/run"
  mkdir -p "$root/run/netns" "$root/run/lock"
}

hand_on_apt() {
  local sources
  sources=$(debian_sources "$suite" | sed 's/^/deb /')
  # Where this machine has none, those that debootstrap wrote stay.
  [[ -z $sources ]] || printf '%s\n' "$sources" >"$root/etc/apt/sources.list"
  # How to fetch (proxy, certificates, checks), not what else this machine hooks into apt; no passwords.
  apt-config dump | grep -E '^Acquire::' >"$root/etc/apt/apt.conf.d/99handed-on"
}

hand_on_network() {
  cp --remove-destination -L /etc/resolv.conf /etc/hosts "$root/etc/"
}

# pip's configuration files and the environment, all as NAME=value: what the environment says wins, as it does in pip.
handed_on_environment() {
  python3 - <<'PYTHON'
import ast, os, subprocess, sys

handed_on = {}
listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
for line in listing.stdout.splitlines():
    key, _, value = line.partition("=")
    section, _, option = key.rpartition(".")
    if section in ("global", "install"):
        handed_on["PIP_" + option.upper().replace("-", "_")] = " ".join(ast.literal_eval(value).split())
wanted = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
for name, value in os.environ.items():
    if name.startswith("PIP_") or name in wanted or name.lower().endswith("_proxy"):
        handed_on[name] = value
print(*(f"{name}={value}" for name, value in sorted(handed_on.items())), sep="\n")
PYTHON
}

# Under a name of their own: installing ca-certificates inside would overwrite the usual one.
hand_on_certificates() {
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

# What pip's configuration names: folders of packages, bound to the same paths, and files such as constraints.
hand_on_local_paths() {
  local entry word path
  for entry in "${environment[@]}"; do
    for word in ${entry#*=}; do
      [[ $word == /* || $word == file://* ]] || continue
      path=${word#file://}
      path=/${path#*/}
      # An index called simple/ links to files beside it.
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

# Who runs what runs in the root, and how that user gets root's rights.
home=/srv
become=()
sudo=''

become_a_user_with_sudo() {
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

# The full-screen program gets a terminal, and q after it had time to draw.
start_on_a_terminal() {
  local drawn
  in_root "timeout 60 script --quiet --return --flush --command 'stty cols 120 rows 40; $1' /tmp/drawn >/dev/null \
    < <(sleep 3; while printf q; do sleep 1; done)" ||
    fail "$1 on a terminal ended with $?, its last words: $(tail -n 5 "$root/tmp/drawn" | tr -cd '[:print:]\n')"
  drawn=$(stat -c %s "$root/tmp/drawn")
  grep -q nettop "$root/tmp/drawn" || fail "$1 drew no frame of its own on the terminal ($drawn bytes)."
  say "$1 drew $drawn bytes on a terminal of 120×40 and ended at q."
}

see_a_real_connection() {
  local peers to_peers port output
  say 'nettop --table -d --once, with a connection open'
  coproc peers { in_root "exec python3 -c '
import socket, sys
listener = socket.create_server((\"127.0.0.1\", 0))
client = socket.create_connection(listener.getsockname())
accepted, _ = listener.accept()
print(listener.getsockname()[1], flush=True)
sys.stdin.read()'"; }
  read -r port <&"${peers[0]}"
  output=$(in_root "$sudo nettop --table -d --once")
  to_peers=${peers[1]}
  exec {to_peers}>&-
  printf '%s\n' "$output"
  [[ $output == *127.0.0.1:$port* ]] || fail "the connection to 127.0.0.1:$port is not in what nettop printed."
}

# Fails where the server does not start, does not answer, or does not end in order.
scrape_it() {
  say 'nettop serve, and a scrape'
  # shellcheck disable=SC2016  # expanded inside
  in_root "sudo=$sudo"'
    $sudo nettop serve --listen 127.0.0.1:0 2>/tmp/serving & server=$!
    until grep -q "serving at" /tmp/serving; do $sudo sh -c "kill -0 $server" || { cat /tmp/serving; exit 1; }; sleep 0.1; done
    python3 -c "
import sys, urllib.request
for path in (\"\", \"metrics\", \"api/v1/connections\", \"api/openapi.json\"):
    with urllib.request.urlopen(sys.argv[1] + path, timeout=30) as answer:
        print(answer.status, len(answer.read()), \"bytes of /\" + path)" "$(grep -o "http://.*/" /tmp/serving)"
    $sudo sh -c "kill $server"; wait $server' || fail "nettop serve: $(tail -n 5 "$root/tmp/serving")"
}

if [[ ${1-} == inner ]]; then
  shift
  inner "$@"
else
  main "$@"
fi
