#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Fetch Debian's kernels, packages and base systems of any release into the cache; see `--help`.
set -euo pipefail
umask 022
export PATH="$PATH:/usr/sbin:/sbin" # depmod, debootstrap

# Kernel name and Debian suite. The newest has a new version every few days.
readonly kernels='5.10 bullseye
6.1 bookworm
6.12 trixie
newest sid'
# Kernels that run only when named: name, suite, and Debian's flavour prefix.
readonly others='6.1-rt bookworm rt-'
readonly cache=${XDG_CACHE_HOME:-$HOME/.cache}/nettop keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# Temporary directory: what is being unpacked, apt's lists and downloads.
work=''

usage() {
  cat <<HELP
Usage: scripts/debian.sh kernels | others | kernel NAME | package SUITE PACKAGE | sources SUITE
       sudo scripts/debian.sh base SUITE

  kernels        print the names of kernels on which every change is tested, oldest first
  others         print the names of kernels to test occasionally
  kernel NAME    unpack Debian's latest kernel of that name, and a static busybox to boot it; print its vmlinuz
  package SUITE PACKAGE
                 unpack a package of SUITE (bookworm, trixie) without starting its services; print its directory
  base SUITE     build a minimal Debian with debootstrap; print its tar archive
  sources SUITE  print this machine's apt sources for SUITE, as "URI suite component" lines; none if it is not Debian

What exists in $cache is not fetched again: remove it to do so. Needs apt, kmod and
debian-archive-keyring, and root only for debootstrap. Does not change this machine's packages, lists and /boot.
Packages come from the Debian mirror in this machine's apt sources, else from DEBIAN_MIRROR.

Exit codes: 0 done, 1 failure, 2 usage, 3 a program is missing, 4 not root.
HELP
}

fail() {
  printf 'debian: %s\n' "$*" >&2
  exit "${code:-1}"
}

need() { command -v "$1" >/dev/null || code=3 fail "needs $1; run: sudo scripts/install-deps.sh --kernels"; }

main() {
  case "${1-} $#" in
    'kernels 1') cut -d' ' -f1 <<<"$kernels" ;;
    'others 1') cut -d' ' -f1 <<<"$others" ;;
    'kernel 2') in_cache "kernels/$2" unpack_kernel "$2"; printf '%s\n' "$cache/kernels/$2/vmlinuz" ;;
    'package 3') in_cache "tools/$2/$3" unpack_package "$2" "$3"; printf '%s\n' "$cache/tools/$2/$3" ;;
    'base 2') make_base "$2" ;;
    'sources 2') debian_sources "$2" ;;
    '-h 1' | '--help 1') usage ;;
    *) usage >&2 && exit 2 ;;
  esac
}

# Creates a path in the cache, unless it exists, by a command that writes $work/made. A concurrent run may be faster.
in_cache() {
  local place=$cache/$1
  shift
  [[ ! -e $place ]] || return 0
  mkdir -p -- "${place%/*}"
  work=$(mktemp -d -p "$cache" .fetch.XXXXXX)
  trap 'rm -rf --one-file-system -- "$work"' EXIT
  "$@"
  mv -T -- "$work/made" "$place" 2>/dev/null || [[ -e $place ]] || fail "cannot create $place."
}

# --- kernels, packages and base systems -----------------------------------------------------------

unpack_package() {
  need apt-get
  read_lists_of "$1"
  unpack_packages "$2"
}

unpack_kernel() {
  local suite kind packages
  read -r suite kind < <(awk -v name="$1" '$1 == name { print $2, $3 }' <<<"$kernels"$'\n'"$others") || true
  [[ -n $suite ]] || fail "unknown kernel $1; choose from: $({ main kernels && main others; } | paste -sd' ')."
  need apt-get
  need depmod
  read_lists_of "$suite"
  mapfile -t packages < <(kernel_packages "linux-image-$kind$(dpkg --print-architecture)")
  ((${#packages[@]})) || fail "Debian $suite has no linux-image-$kind$(dpkg --print-architecture)."
  unpack_packages busybox-static "${packages[@]}"
  cd -- "$work/made"
  # depmod and virtme-ng look under /lib, which newer packages lack.
  [[ -e lib ]] || ln -s usr/lib lib
  quietly depmod -b . "$(basename lib/modules/*)" || fail "depmod cannot read Debian's kernel (see its output above)."
  link_as busybox -path '*bin/busybox' -type f
  link_as vmlinuz -name 'vmlinuz*' -type f
  cd -- "$cache"
}

# Prints the packages that the metapackage depends on: one with the image, or those it was split into.
kernel_packages() {
  apt_here apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances "$1" |
    grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u
}

# Links the one file that find finds to a fixed name at the top of the unpacked directory.
link_as() { ln -s "$(find . "${@:2}" -print -quit | grep .)" "$1" || fail "Debian's package has no $1."; }

make_base() {
  local archive
  archive=$1-minbase-$(dpkg --print-architecture).tar.gz
  if [[ ! -e $cache/$archive ]]; then
    ((EUID == 0)) || code=4 fail 'needs root; run it with sudo.'
    need debootstrap
    in_cache "$archive" bootstrap "$1"
  fi
  printf '%s\n' "$cache/$archive"
}

bootstrap() {
  local mirror
  mirror=$(debian_mirror "$1")
  debootstrap --variant=minbase "$1" "$work/root" ${mirror:+"$mirror"} >&2
  tar -C "$work/root" -c . | gzip -1 >"$work/made"
}

# --- apt for other releases -----------------------------------------------------------------------

# Prints this machine's apt sources, in either format, with their release replaced by the suite, including -updates and
# -security.
debian_sources() {
  local suite=$1 own
  # shellcheck source=/dev/null
  own=$(. /etc/os-release && [[ $ID == debian ]] && printf %s "${VERSION_CODENAME-}") || true
  # shellcheck disable=SC2016  # these are apt's own $(…)
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    grep -E " ${own:-none}(-updates|-security)? " | sed "s/ $own/ $suite/" | sort -u || true
}

# Prints the mirror that has the suite itself, else DEBIAN_MIRROR; empty if neither is known.
debian_mirror() {
  local own
  own=$(debian_sources "$1" | awk -v suite="$1" '$2 == suite { print $1; exit }')
  printf '%s\n' "${own:-${DEBIAN_MIRROR-}}"
}

# Prepares the directory $work for apt_here, with the lists of a suite.
read_lists_of() {
  local suite=$1 mirror
  [[ -f $keyring ]] || fail "$keyring is missing; install debian-archive-keyring."
  mirror=$(debian_mirror "$suite")
  [[ -n $mirror ]] || fail "this machine's apt has no Debian mirror; set one: DEBIAN_MIRROR=URL."
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  printf 'deb [signed-by=%s] %s %s main\n' $keyring "$mirror" "$suite" >"$work/sources.list"
  : >"$work/status"
  quietly apt_here apt-get update || fail "apt cannot read Debian $suite (see its output above)."
}

# Downloads packages and unpacks them into $work/made.
unpack_packages() {
  local deb
  mkdir -p "$work"/{made,debs}
  (cd "$work/debs" && quietly apt_here apt-get download "$@") || fail "apt cannot download $* (see its output above)."
  for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$work/made"; done
}

# Runs apt with separate lists, downloads and preferences, as if nothing were installed; signatures are still checked.
apt_here() {
  local command=$1
  shift
  "$command" -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$work/lists" \
    -o Dir::State::Status="$work/status" -o Dir::Cache="$work/cache" -o APT::Update::Error-Mode=any \
    -o APT::Default-Release= -o APT::Sandbox::User="$(id -un)" "$@"
}

# Runs a command and prints its output only if it fails.
quietly() {
  local words
  words=$("$@" 2>&1) || {
    printf '%s\n' "$words" >&2
    return 1
  }
}

main "$@"
