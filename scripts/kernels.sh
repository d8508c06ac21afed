#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Debian's kernels, unpacked under the cache and never installed; `--help` says how.
set -euo pipefail
umask 022
export PATH="$PATH:/usr/sbin:/sbin" # depmod

# Each kernel by its name here, and the suite that has it. The newest has a new version every few days.
readonly kernels='5.10 bullseye
6.1 bookworm
6.12 trixie
newest sid'
# Those that run only by name, with what Debian calls their kind.
readonly others='6.1-rt bookworm rt-'

script=$(readlink -f -- "${BASH_SOURCE[0]}")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nettop/kernels
readonly script cache

# shellcheck source=scripts/debian-sources.sh
. "$(dirname -- "$script")/debian-sources.sh"

usage() {
  cat <<HELP
Usage: scripts/kernels.sh list
       scripts/kernels.sh others
       scripts/kernels.sh fetch NAME

  list        the names of those that every change is tested on, oldest first
  others      the names of those that are worth a look now and then
  fetch NAME  unpack Debian's newest kernel of that name, and a static busybox to boot it with, into
              $cache/NAME
              unless they are there, and print the path of its vmlinuz

Needs apt, kmod and debian-archive-keyring; not root. This machine's packages, lists and /boot are left alone.
Packages come from the mirror in this machine's own lists; where these have none of Debian, from DEBIAN_MIRROR.
Remove the folder of a kernel to have it fetched again.
HELP
}

fail() {
  printf 'kernels: %s\n' "$*" >&2
  exit 1
}

main() {
  case "${1-} $#" in
    'list 1') cut -d' ' -f1 <<<"$kernels" ;;
    'others 1') cut -d' ' -f1 <<<"$others" ;;
    'fetch 2') fetch "$2" ;;
    '-h 1' | '--help 1') usage ;;
    *) usage >&2 && exit 2 ;;
  esac
}

fetch() {
  local name=$1 suite kind all=$kernels$'\n'$others
  read -r suite kind < <(awk -v name="$name" '$1 == name { print $2, $3 }' <<<"$all") || true
  [[ -n $suite ]] || fail "no kernel is called $name; there are: $(cut -d' ' -f1 <<<"$all" | paste -sd' ')."
  if [[ ! -e $cache/$name/vmlinuz ]]; then
    need apt-get apt
    need depmod kmod
    mkdir -p "$cache"
    work=$(mktemp -d -p "$cache" .fetch.XXXXXX)
    trap 'rm -rf -- "$work"' EXIT
    unpack "$suite" "$kind" "$work/root"
    rm -rf -- "${cache:?}/$name"
    mv -- "$work/root" "$cache/$name"
  fi
  printf '%s\n' "$cache/$name/vmlinuz"
}

need() { command -v "$1" >/dev/null || fail "needs $1; install $2."; }

unpack() {
  local suite=$1 kind=$2 root=$3 packages
  read_lists_of "$suite"
  mapfile -t packages < <(kernel_packages "linux-image-$kind$(dpkg --print-architecture)")
  ((${#packages[@]})) || fail "Debian $suite has no linux-image-$kind$(dpkg --print-architecture)."
  unpack_packages "$root" busybox-static "${packages[@]}"
  # depmod and virtme-ng look under /lib, which newer packages lack.
  [[ -e $root/lib ]] || ln -s usr/lib "$root/lib"
  quietly depmod -b "$root" "$(basename "$root"/lib/modules/*)" || fail "depmod cannot read $root (its words are above)."
  link_as busybox -path '*bin/busybox' -type f
  link_as vmlinuz -name 'vmlinuz*' -type f
}

# The metapackage leads to the package that has the image, or to those that it was split into.
kernel_packages() {
  apt_here apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$1" |
    grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u
}

# A name of its own at the top of the unpacked folder for the one file that find finds.
link_as() {
  local name=$1
  shift
  ln -s "$(cd "$root" && find . "$@" -print -quit | grep .)" "$root/$name" || fail "Debian $suite has no $name."
}

main "$@"
