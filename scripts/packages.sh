#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Build packages for machines that build nothing themselves; see `--help`.
set -euo pipefail
umask 022

# As in the installer: no private tools, and no localized messages.
export PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH" LC_ALL=C.UTF-8

readonly exit_usage=2 exit_cannot=3

script=$(readlink -f -- "${BASH_SOURCE[0]}")
checkout=$(dirname -- "$(dirname -- "$script")")
readonly script checkout

# Files from the checkout for both kinds, and for a package in addition.
readonly to_install=(nettop docs LICENSES LICENSE README.md CHANGELOG.md SECURITY.md pyproject.toml requirements deploy/systemd
  scripts/sbom.py scripts/install-{deps,dev,services,steps}.sh)
readonly to_pack=(scripts/manual.py deploy/debian)

extra=serve

usage() {
  cat <<HELP
Usage: scripts/packages.sh deb|offline [--flows]

Writes to the checkout's dist/, for this machine's distribution release, Python and architecture:

  deb      a Debian package. Needs debhelper, dpkg-dev and python3-venv
  offline  an archive of nettop and its Python packages, for machines without access to a package index
  --flows  also the dependencies of nettop collect, 800 MB: as a separate package, nettop-flows, or in the archive

Needs a package index, not root. Builds are reproducible: the same sources and Python packages give the same files.

Exit codes: 0 done, 1 failure, 2 usage, 3 not possible on this machine.
HELP
}

fail() {
  printf 'packages: %s\n' "$*" >&2
  exit "${code:-1}"
}

main() {
  local what=''
  while (($#)); do
    case $1 in
      deb | offline) what=$1 ;;
      --flows) extra=flows ;;
      -h | --help) usage && exit 0 ;;
      *) usage >&2 && exit $exit_usage ;;
    esac
    shift
  done
  [[ -n $what ]] || { usage >&2 && exit $exit_usage; }
  identify_release
  work=$checkout/build/packages/$what-$release
  rm -rf -- "$work"
  mkdir -p -- "$work" "$checkout/dist"
  make_"$what"
  rm -rf -- "$work"
}

identify_release() {
  local ID='' VERSION_ID='' PRETTY_NAME=''
  # shellcheck source=/dev/null
  . /etc/os-release
  release=${ID/debian/deb}$VERSION_ID
  release_name=$PRETTY_NAME
  processor=$(dpkg --print-architecture 2>/dev/null || uname -m)
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(when_committed)}
  export SOURCE_DATE_EPOCH
  readonly release release_name processor SOURCE_DATE_EPOCH
}

# Outside a Git clone, use the time of the newest file.
when_committed() {
  git -C "$checkout" log -1 --format=%ct 2>/dev/null ||
    (cd -- "$checkout" && find "${to_install[@]}" -type f -printf '%Ts\n' | sort -n | tail -n 1)
}

# --- a Debian package -----------------------------------------------------------------------------

make_deb() {
  # Skip the check of build dependencies: Debian requires a compiler, but nothing is compiled.
  local source=$work/nettop options=(--build=binary --no-sign --no-check-builddeps) command
  for command in dpkg-buildpackage dh; do
    command -v $command >/dev/null || code=$exit_cannot fail 'needs dpkg-dev and debhelper; install them with apt.'
  done
  [[ $extra == serve ]] || options+=(--build-profiles=pkg.nettop.flows)
  copy_sources "$source" "${to_install[@]}" "${to_pack[@]}"
  mv -- "$source/deploy/debian" "$source/debian"
  fill_with_wheels "$source/wheels"
  write_changelog >"$source/debian/changelog"
  (cd -- "$source" && quietly dpkg-buildpackage "${options[@]}") || fail 'dpkg-buildpackage failed; see above.'
  publish "$work"/*.deb
}

write_changelog() {
  # Debian sorts ~ before nothing: a release candidate is older than the release, and Debian 12's package than 13's.
  cat <<CHANGELOG
nettop ($(sed -E 's/(a|b|rc|\.dev)[0-9]/~&/' <<<"$version")~$release) stable; urgency=medium

  * Built for $release_name.
  * See CHANGELOG.md for user-visible changes.

 -- $(sed -n 's/^Maintainer: //p' "$checkout/deploy/debian/control")  $(date --utc --rfc-email --date="@$SOURCE_DATE_EPOCH")
CHANGELOG
}

# --- an archive -----------------------------------------------------------------------------------

make_offline() {
  local name
  fill_with_wheels "$work/wheels"
  name=nettop-$version-offline-$release-$processor
  copy_sources "$work/$name" "${to_install[@]}"
  mv -- "$work/wheels" "$work/$name/"
  /usr/bin/python3 -I "$checkout/scripts/sbom.py" "$work/$name/wheels" >"$work/$name/sbom.cdx.json"
  write_instructions >"$work/$name/INSTALL"
  tar -C "$work" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
    --mode=go=rX,u+rw -c "$name" | gzip --no-name >"$work/$name.tar.gz"
  publish "$work/$name.tar.gz"
}

write_instructions() {
  local flows=''
  [[ $extra == serve ]] || flows=' --flows'
  cat <<INSTRUCTIONS
nettop $version, for $release_name on $processor, without a package index. Install or upgrade:

  sudo scripts/install-deps.sh$flows --wheels wheels

The distribution's packages are not included. If they are not installed and its mirror is not reachable either, install
them first: $(apt_packages)

Remove: sudo scripts/install-deps.sh --uninstall
INSTRUCTIONS
}

# Prints the installer's list of apt packages.
apt_packages() { sed -n 's/^ *apt) say \(python3 .*\) ;;$/\1/p' "$checkout/scripts/install-deps.sh"; }

# --- both -----------------------------------------------------------------------------------------

# Copies sources without Python's compiled files.
copy_sources() {
  local folder=$1
  shift
  mkdir -p -- "$folder"
  tar -C "$checkout" --exclude=__pycache__ -c "$@" | tar -C "$folder" --no-same-owner -x
}

fill_with_wheels() {
  local options=()
  [[ $extra == serve ]] || options+=(--flows)
  "$checkout/scripts/install-deps.sh" "${options[@]}" --make-wheels "$1" | sed -n '/^\[/p'
  # Includes the installer's build label, by which an upgrade is newer.
  version=$(find "$1" -name 'nettop-*.whl' -printf '%f\n' | cut -d- -f2)
}

publish() {
  local file
  for file in "$@"; do
    mv -- "$file" "$checkout/dist/"
    printf 'dist/%s, %s\n' "${file##*/}" "$(du -h "$checkout/dist/${file##*/}" | cut -f1)B"
  done
}

# Runs a command and prints its output only if it fails.
quietly() {
  "$@" >"$work/words" 2>&1 || {
    tail -n 30 "$work/words" >&2
    return 1
  }
}

main "$@"
