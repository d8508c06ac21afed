#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Unpack Debian's kernels into the cache, without installing them; see `--help`.
set -euo pipefail
umask 022
export PATH="$PATH:/usr/sbin:/sbin" # depmod

# Kernel name and Debian suite. The newest has a new version every few days.
readonly kernels='5.10 bullseye
6.1 bookworm
6.12 trixie
newest sid'
# Kernels that run only when named: name, suite, and Debian's flavour prefix.
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

  list        print the names of kernels on which every change is tested, oldest first
  others      print the names of kernels to test occasionally
  fetch NAME  unpack Debian's latest kernel of that name, and a static busybox to boot it, into
              $cache/NAME
              unless they exist, and print the path of its vmlinuz

Needs apt, kmod and debian-archive-keyring, not root. Does not change this machine's packages, lists and /boot.
Packages come from the Debian mirror in this machine's apt sources, else from DEBIAN_MIRROR.
Remove a kernel's directory to fetch it again.
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
  [[ -n $suite ]] || fail "unknown kernel $name; choose from: $(cut -d' ' -f1 <<<"$all" | paste -sd' ')."
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
  quietly depmod -b "$root" "$(basename "$root"/lib/modules/*)" || fail "depmod cannot read $root (see its output above)."
  link_as busybox -path '*bin/busybox' -type f
  link_as vmlinuz -name 'vmlinuz*' -type f
}

# Prints the packages that the metapackage depends on: one with the image, or those it was split into.
kernel_packages() {
  apt_here apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$1" |
    grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u
}

# Links the one file that find finds to a fixed name at the top of the unpacked directory.
link_as() {
  local name=$1
  shift
  ln -s "$(cd "$root" && find . "$@" -print -quit | grep .)" "$root/$name" || fail "Debian $suite has no $name."
}

main "$@"
