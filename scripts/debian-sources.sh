# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Sourced by fresh-root.sh and kernels.sh: where Debian's packages come from on this machine.

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
