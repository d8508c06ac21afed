#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Unpack a package of some Debian release into the cache, without installing it; see `--help`.
set -euo pipefail
umask 022

script=$(readlink -f -- "${BASH_SOURCE[0]}")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nettop/tools
readonly script cache

# shellcheck source=scripts/debian-sources.sh
. "$(dirname -- "$script")/debian-sources.sh"

usage() {
  cat <<HELP
Usage: scripts/debian-tool.sh SUITE PACKAGE

Unpacks a package of Debian's SUITE (bookworm, trixie) into $cache/SUITE/PACKAGE
unless it exists, and prints that directory. Does not start the package's services.

Needs apt and debian-archive-keyring, not root. Does not change this machine's packages and lists. Packages come from
the Debian mirror in this machine's apt sources, else from DEBIAN_MIRROR. Remove a package's directory to fetch it again.
HELP
}

fail() {
  printf 'debian-tool: %s\n' "$*" >&2
  exit 1
}

main() {
  case "${1-} $#" in
    '-h 1' | '--help 1') usage ;;
    *' 2') fetch "$@" ;;
    *) usage >&2 && exit 2 ;;
  esac
}

fetch() {
  local suite=$1 package=$2 folder
  folder=$cache/$suite/$package
  if [[ ! -d $folder ]]; then
    command -v apt-get >/dev/null || fail 'needs apt.'
    mkdir -p "$cache/$suite"
    work=$(mktemp -d -p "$cache" .fetch.XXXXXX)
    trap 'rm -rf -- "$work"' EXIT
    read_lists_of "$suite"
    unpack_packages "$work/root" "$package"
    # A concurrent run may have been faster.
    mv -T -- "$work/root" "$folder" 2>/dev/null || [[ -d $folder ]] || fail "cannot create $folder."
  fi
  printf '%s\n' "$folder"
}

main "$@"
