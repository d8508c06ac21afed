# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154  # the variables are install-deps.sh's
#
# The parts of install-deps.sh for those who develop or package nettop: --dev, --kernels, and --make-wheels.

development_packages() {
  case $1 in
    apt) say libc6-dev iperf3 procps clang-format shellcheck librsvg2-bin fonts-dejavu-core protobuf-compiler iproute2 ;;
    dnf) say glibc-devel iperf3 procps-ng clang-tools-extra librsvg2-tools dejavu-sans-mono-fonts iproute iproute-tc ;;
    pacman) say iperf3 procps-ng clang shellcheck librsvg ttf-dejavu iproute2 ;;
    zypper) say glibc-devel iperf procps clang ShellCheck rsvg-convert dejavu-fonts iproute2 ;;
  esac
  say make gcc tmux nftables ethtool
  $for_kernels || return 0
  # Debian's kernels are fetched and unpacked with Debian's tools.
  if [[ $1 == apt ]]; then
    say qemu-system-x86 kmod debootstrap debian-archive-keyring
    # Tools that build and check the image, the packages and the units in deploy/.
    say buildah uidmap debhelper dpkg-dev fakeroot lintian systemd
    # Servers and load generators to compare the services lens with.
    say nginx-light wrk redis-server postgresql nghttp2-client nghttp2-server
    say mosquitto mosquitto-clients python3-grpcio python3-websockets
    # Hosts of `nettop --host`.
    say openssh-server
  fi
  # On Ubuntu it is a snap, not a package.
  if grep -qx 'ID=debian' /etc/os-release; then say chromium; fi
}

# --- .venv ----------------------------------------------------------------------------------------

# The mark exists only while .venv is complete.
install_for_development() {
  local environment=$checkout/.venv mark_complete=$checkout/.venv/.nettop-install wanted is_complete=false
  begin 'Development, in .venv'
  as_owner test -r "$checkout/pyproject.toml" -a -w "$checkout" ||
    fail "$exit_permission" "the owner of $checkout, uid $(stat -c %u -- "$checkout"), cannot read and write it." \
      "See the permissions on the path to it: namei -l $checkout"
  run fingerprint_of pyproject.toml requirements || give_up "cannot read the checkout $checkout" "$checkout"
  wanted=$words
  if [[ -f $mark_complete ]] && is_usable_environment "$environment"; then is_complete=true; fi
  if $is_complete && [[ $(<"$mark_complete") == "$wanted" ]] && run as_owner "$environment/bin/nettop" --version; then
    finish 'up to date'
    return
  fi
  must rm -f "$mark_complete"
  if ! $is_complete; then
    need_ensurepip
    must rm -rf "$environment"
    run as_owner make_environment "$environment" || give_up "cannot create $environment" "$checkout"
  fi
  must as_owner mktemp -d -p "$environment"
  scratch=$words
  TMPDIR=$scratch run as_owner fill_environment "$environment" || pip_failed "$checkout"
  must as_owner write "$wanted" "$mark_complete"
  finish
}

# Tests whether it was created here (not copied), sees bcc, and is owned by the checkout's owner (not by root in an
# earlier run).
is_usable_environment() {
  [[ -d $1 && $(stat -c %u -- "$1") == $(stat -c %u -- "$checkout") ]] &&
    grep -qsF -- "$1/bin/python" "$1/bin/pip" &&
    as_owner "$1/bin/python" -I -c 'import bcc, pip' 2>/dev/null
}

fill_environment() {
  make_builder "$1" &&
    pip_of "$1" install "${from_where[@]}" "${locked[@]}" --requirement "$checkout/requirements/dev.txt" &&
    pip_of "$1" uninstall --quiet --yes setuptools &&
    pip_of "$1" install --quiet --no-deps --no-index --no-build-isolation --editable "$checkout"
}

write() { say "$1" >"$2"; }

# Runs a command, or a function of this script, as the user who owns the checkout.
as_owner() {
  local uid gid
  read -r uid gid < <(stat -c '%u %g' -- "$checkout")
  if ((uid == EUID)); then
    "$@"
  elif [[ $(type -t "$1") == function ]]; then
    as_owner bash -euo pipefail -c "$(declare -f); $(declare -p interpreter checkout locked from_where); \"\$@\"" - "$@"
  else
    setpriv --reuid "$uid" --regid "$gid" --clear-groups env HOME="$(home_of "$uid" || say /nonexistent)" "$@"
  fi
}

# --- a folder of wheels ---------------------------------------------------------------------------

make_wheels() {
  ! $for_development || extra=dev
  for interpreter in $(system_pythons) none; do
    [[ $interpreter != none ]] || fail "$exit_cannot" 'no Python 3.11 or later in /usr/bin.'
    ! is_new_enough "$interpreter" || break
  done
  begin "Wheels for $("$interpreter" -V) on $(uname -m)"
  need_ensurepip
  must mkdir -p -- "$folder"
  must mktemp -d -p "$folder"
  scratch=$words
  rm -f -- "$folder"/nettop-*.whl
  TMPDIR=$scratch run fill_with_wheels "$scratch/builder" || give_up 'pip failed' "$folder"
  finish "$(find "$folder" -maxdepth 1 -name '*.whl' | wc -l) in $folder"
  say 'On the other machine, in a copy of this checkout: sudo scripts/install-deps.sh --wheels DIR'
}

fill_with_wheels() {
  local lists=("--requirement=$checkout/requirements"/{build,"$extra"}.txt)
  make_builder "$1" && pip_of "$1" wheel --wheel-dir "$folder" "${locked[@]}" "${lists[@]}" &&
    build_nettop "$1" "$folder"
}
