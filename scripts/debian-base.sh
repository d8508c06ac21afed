#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Build a minimal Debian as a tar archive, cached; see `--help`.
set -euo pipefail
umask 022

script=$(readlink -f -- "${BASH_SOURCE[0]}")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nettop
readonly script cache

# shellcheck source=scripts/debian-sources.sh
. "$(dirname -- "$script")/debian-sources.sh"

usage() {
  cat <<HELP
Usage: sudo scripts/debian-base.sh SUITE

Builds a minimal Debian of SUITE (bookworm, trixie) with debootstrap, as an archive in $cache
unless it exists, and prints its path. Packages come from the Debian mirror in this machine's apt sources, else from
DEBIAN_MIRROR, else from debootstrap's default.

Exit codes: 0 done, 1 failure, 2 usage, 3 no debootstrap, 4 not root.
HELP
}

fail() {
  printf 'debian-base: %s\n' "$*" >&2
  exit "${code:-1}"
}

main() {
  case "${1-} $#" in
    '-h 1' | '--help 1') usage ;;
    *' 1') make_archive "$1" ;;
    *) usage >&2 && exit 2 ;;
  esac
}

make_archive() {
  local suite=$1 archive mirror
  archive=$cache/$suite-minbase-$(dpkg --print-architecture).tar.gz
  if [[ ! -f $archive ]]; then
    ((EUID == 0)) || code=4 fail 'needs root; run it with sudo.'
    command -v debootstrap >/dev/null || code=3 fail 'needs debootstrap; run: sudo scripts/install-deps.sh --kernels'
    work=$(mktemp -d -p "${TMPDIR:-/var/tmp}" nettop-base.XXXXXX)
    trap 'rm -rf --one-file-system "$work"' EXIT
    mirror=$(debian_mirror "$suite")
    debootstrap --variant=minbase "$suite" "$work/root" ${mirror:+"$mirror"} >&2
    mkdir -p "$cache"
    tar -C "$work/root" -c . | gzip -1 >"$work/archive"
    mv "$work/archive" "$archive"
  fi
  printf '%s\n' "$archive"
}

main "$@"
