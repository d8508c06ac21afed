# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by fresh-root.sh, kernels.sh and debian-tool.sh: where Debian's packages come from on this machine, and apt
# for another release than its own.

# This machine's own apt sources, in either format, with their release replaced by that suite:
# "URI suite component" a line, with -updates and -security as here. Nothing where this machine is no Debian.
debian_sources() {
  local suite=$1 own
  # shellcheck source=/dev/null
  own=$(. /etc/os-release && [[ $ID == debian ]] && printf %s "${VERSION_CODENAME-}") || true
  # shellcheck disable=SC2016  # these are apt's own $(…)
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
    grep -E " ${own:-none}(-updates|-security)? " | sed "s/ $own/ $suite/" | sort -u || true
}

# The mirror that has the suite itself, else what DEBIAN_MIRROR says; nothing where neither tells one.
debian_mirror() {
  local own
  own=$(debian_sources "$1" | awk -v suite="$1" '$2 == suite { print $1; exit }')
  printf '%s\n' "${own:-${DEBIAN_MIRROR-}}"
}

readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The temporary folder of who sources this: apt's lists, and what it downloads.
work=''

# Makes the folder $work ready for apt_here, with the lists of a suite; fail() ends with the cause.
read_lists_of() {
  local suite=$1 mirror
  [[ -f $keyring ]] || fail "$keyring is missing; install debian-archive-keyring."
  mirror=$(debian_mirror "$suite")
  [[ -n $mirror ]] || fail "this machine's apt has no mirror of Debian; say one: DEBIAN_MIRROR=URL."
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  printf 'deb [signed-by=%s] %s %s main\n' $keyring "$mirror" "$suite" >"$work/sources.list"
  : >"$work/status"
  quietly apt_here apt-get update || fail "apt cannot read Debian $suite (its words are above)."
}

# Downloads packages, and unpacks them below a root folder.
unpack_packages() {
  local root=$1 deb
  shift
  mkdir -p "$root" "$work/debs"
  (cd "$work/debs" && quietly apt_here apt-get download "$@") ||
    fail "apt cannot download $* (its words are above)."
  for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
}

# With lists, downloads and preferences of its own, as if nothing were installed; signatures are checked as always.
apt_here() {
  local command=$1
  shift
  "$command" -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null -o Dir::State::Lists="$work/lists" \
    -o Dir::State::Status="$work/status" -o Dir::Cache="$work/cache" -o APT::Update::Error-Mode=any \
    -o APT::Default-Release= -o APT::Sandbox::User="$(id -un)" "$@"
}

# Its words matter only when it failed.
quietly() {
  local words
  words=$("$@" 2>&1) || {
    printf '%s\n' "$words" >&2
    return 1
  }
}
