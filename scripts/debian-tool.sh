#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A package of some Debian, unpacked under the cache and never installed; `--help` says how.
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
unless it is there, and prints that folder. What it starts, if it were installed, is not started.

Needs apt and debian-archive-keyring; not root. This machine's packages and lists are left alone. Packages come from
the mirror in this machine's own lists; where these have none of Debian, from DEBIAN_MIRROR. Remove the folder of a
package to have it fetched again.
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
    # Another run may have been faster.
    mv -T -- "$work/root" "$folder" 2>/dev/null || [[ -d $folder ]] || fail "$folder cannot be made."
  fi
  printf '%s\n' "$folder"
}

main "$@"
