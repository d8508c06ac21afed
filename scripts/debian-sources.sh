# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by fresh-root.sh, kernels.sh, debian-base.sh and debian-tool.sh: this machine's Debian mirror, and apt for other
# releases.

# Prints this machine's apt sources, in either format, with their release replaced by the suite, as "URI suite component"
# lines, including -updates and -security. Prints nothing if this machine is not Debian.
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

readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# The sourcing script's temporary directory: apt's lists and downloads.
work=''

# Prepares the directory $work for apt_here, with the lists of a suite; calls fail() with the cause.
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

# Downloads packages and unpacks them below a root directory.
unpack_packages() {
  local root=$1 deb
  shift
  mkdir -p "$root" "$work/debs"
  (cd "$work/debs" && quietly apt_here apt-get download "$@") ||
    fail "apt cannot download $* (see its output above)."
  for deb in "$work"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
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
