#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs nettop and what it needs; `--help` says how. Read from the bottom: main() is the table of contents.
set -euo pipefail

# Root's own umask may be 077, and everyone must be able to read and run what is installed here.
umask 022
callers_path=$PATH
# The distribution's tools first: neither its package scripts nor we want somebody's private python.
export PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH"
# The causes of failures are recognized by their English messages.
export LC_ALL=C.UTF-8

readonly callers_path place=/opt/nettop
# Each install is a release of its own, and `current` a link to the one that nettop runs from.
readonly releases=$place/releases current=$place/current
# Without one of them the folder is not ours to touch. The first is of installs without releases.
readonly mark_without_releases=$place/.nettop-install mark=$place/.nettop-releases
# In a release: of which checkout it is, and the SHA-256 of each file.
readonly content=.nettop-content files=.nettop-files
# Where units go, and the SHA-256 of each that was ever put there: any other content is somebody's edit.
readonly units=/etc/systemd/system unit_sums=$place/.nettop-units
readonly exit_failure=1 exit_usage=2 exit_cannot=3 exit_permission=4

script=$(readlink -f -- "${BASH_SOURCE[0]}")
checkout=$(dirname -- "$(dirname -- "$script")")
readonly script checkout

action=install
extra=serve            # nettop's optional packages, by the options
folder=''              # of wheels: read by --wheels, filled by --make-wheels
for_development=false
for_kernels=false
with_services=false
system_packages=true
from_where=()          # pip options: where packages come from
interpreter=''         # the Python that bcc is bound to
release=''             # the folder of the release that is being made
scratch=''             # a temporary folder
words=''               # what the last command printed
explained=false        # whether it was said why this ends
failed_line=''         # of this script, where a command failed unexpectedly

usage() {
  cat <<'HELP'
Usage: sudo scripts/install-deps.sh [--flows] [--services] [--dev] [--kernels] [--wheels DIR] [--no-system-packages]
       sudo scripts/install-deps.sh --uninstall
       scripts/install-deps.sh [--flows] [--dev] --make-wheels DIR

Installs the distribution's bcc and libbpf, puts nettop into a virtual environment
of its own in /opt/nettop, and links it as /usr/local/bin/nettop.
Safe to run again: it does only what is missing, or upgrades to this checkout. Until
the new nettop has run, the installed one stays as it is, even if this is killed.

  --flows               also what nettop collect needs: the engine of its store, 800 MB;
                        upgrades keep it
  --services            also the units nettop-serve, nettop-log and nettop-collect for systemd,
                        neither enabled nor started; upgrades replace them. A unit that was
                        edited stays as it is: put changes into a drop-in, by systemctl edit
  --dev                 also what the tests need, and an editable nettop in .venv
  --kernels             as --dev, and qemu and debootstrap for the tests on other kernels
                        and releases, and a browser for those of exports, and what
                        builds images and packages, and the servers and load generators
                        that the services lens is compared with, some of which Debian
                        starts; their names are known for Debian and Ubuntu
  --wheels DIR          take every Python package from DIR; no package index is reached
  --make-wheels DIR     fill DIR for --wheels (with --dev: for development too); needs an
                        index, not root. DIR serves machines with the same Python version
                        and processor
  --no-system-packages  leave the distribution's packages alone: they are there already
  --uninstall           remove /opt/nettop, the link, and the units, which are stopped and
                        disabled first; drop-ins and distribution packages stay
  -h, --help            this text

Exit codes: 0 done, 1 failure, 2 usage, 3 this system cannot, 4 not root or not permitted,
128 + N interrupted by signal N.
HELP
}

say() { printf '%s\n' "$*"; }

fail() {
  local code=$1
  shift
  [[ -z $step ]] || finish failed
  printf 'install-deps: %s\n' "$@" >&2
  explained=true
  exit "$code"
}

# --- steps, and the commands in them --------------------------------------------------------------

step=''
step_number=0
steps=0

begin() {
  step=$1
  step_began=$SECONDS
  step_number=$((step_number + 1))
  if [[ -t 1 ]]; then show_step; fi
}

# On a terminal the line is written again each second.
show_step() { printf '\r[%d/%d] %s … %s' $step_number $steps "$step" "${1:+$1, }$((SECONDS - step_began)) s"; }

finish() {
  local shown
  shown=$(show_step "${1-}")
  [[ -t 1 ]] || shown=${shown#$'\r'}
  step=''
  say "$shown"
}

# Runs a command, or a function of this script, that may take long; what it prints is in `words`. It runs in a process
# group of its own, and here in the loop signals are handled while it does.
run() {
  local both output input line status child
  words=''
  exec {both}<> <(:)
  exec {output}<"/dev/fd/$both" {input}>"/dev/fd/$both" {both}>&-
  set -m
  "$@" >&"$input" 2>&1 </dev/null {input}>&- {output}<&- &
  child=$!
  set +m
  exec {input}>&-
  while true; do
    status=0
    IFS= read -r -t 1 -u "$output" line || status=$?
    words+=$line
    if ((status == 0)); then
      words+=$'\n'
    elif ((status < 128)); then
      break
    elif [[ -t 1 ]]; then
      show_step
    fi
  done
  exec {output}<&-
  status=0
  wait "$child" || status=$?
  return $status
}

# Runs a short command that has no reason to fail but one of those in give_up.
must() { words=$("$@" 2>&1) || give_up "$*" "${*: -1}"; }

# Ends with the cause of a failure, as far as the last command named it.
give_up() {
  local what=$1 where=$2 code=$exit_failure cause
  shift 2
  case $words in
    *'No space left on device'* | *'enough free space'*)
      cause="no space is left for $where (free: $(free_space "$where"))."
      set -- 'Free some space, then run again.'
      ;;
    *'Disk quota exceeded'*)
      cause="the disk quota for $where is used up."
      set -- 'Free some space, then run again.'
      ;;
    *'Read-only file system'*)
      cause="$where is on a read-only file system."
      set -- 'Mount it writable, then run again.'
      ;;
    *'emporary failure '* | *'ould not resolve'* | *'Name or service not known'* | *'Network is unreachable'* | \
      *'No route to host'* | *'ould not connect'* | *'onnection refused'* | *'onnection timed out'* | \
      *'Failed to establish a new connection'*)
      cause='the network, or the server of the packages, cannot be reached.'
      ;;
    *'Permission denied'* | *'Operation not permitted'*)
      cause="uid $EUID lacks a permission, perhaps in a container or on a network file system."
      code=$exit_permission
      ;;
    *) cause='see the lines above.' ;;
  esac
  if [[ -n $step ]]; then finish failed; fi
  tail -n 12 <<<"${words%$'\n'}" | sed 's/^/  /' >&2
  fail $code "$what: $cause" "$@"
}

# Of the file system where a file is, or would be.
free_space() { df -h --output=avail -- "$1" "$(dirname -- "$1")" / 2>/dev/null | sed -n '2s/ //gp'; }

interrupted() {
  local name=$1 code=$2 group
  trap '' INT TERM HUP
  explained=true
  [[ -z $step || ! -t 1 ]] || say ''
  printf 'install-deps: interrupted by SIG%s; %s\n' "$name" "$(what_is_left)" >&2
  # Bash knows of a job before the script could note it.
  for group in $(jobs -p); do
    kill -TERM -- "-$group" 2>/dev/null || true
    wait "$group" 2>/dev/null || true
    kill -KILL -- "-$group" 2>/dev/null || true
  done
  exit "$code"
}

what_is_left() {
  case $action in
    install | wheels)
      if is_current "$release"; then say 'nettop is installed.'; else say 'nettop is as it was before.'; fi
      ;;
    uninstall) say 'run it again to remove the rest.' ;;
    make-wheels) say "$folder is not complete." ;;
  esac
}

# Bash itself ends a script at a command that fails unexpectedly, and at some errors of the script.
explain_exit() {
  local status=$1 place_in_script=$2
  ((status != 0)) && ! $explained || return 0
  [[ -z $step ]] || finish failed
  [[ -z $words ]] || tail -n 12 <<<"${words%$'\n'}" | sed 's/^/  /' >&2
  printf 'install-deps: stopped by an error of this script, in %s (status %d); %s Please report this.\n' \
    "$place_in_script" "$status" "$(what_is_left)" >&2
}

clean_up() {
  [[ -z $scratch ]] || rm -rf -- "$scratch"
  [[ -n $release ]] && ! is_current "$release" || return 0
  rm -rf -- "$release"
  # Where nothing was installed before, nothing stays.
  if rmdir $releases 2>/dev/null; then
    rm -f $mark
    rmdir --ignore-fail-on-non-empty $place
  fi
}

is_current() { [[ -n $1 && $1 -ef $current ]]; }

read_options() {
  while (($#)); do
    case $1 in
      --flows) extra=flows ;;
      --services) with_services=true ;;
      --dev) for_development=true ;;
      --kernels) for_development=true for_kernels=true ;;
      --no-system-packages) system_packages=false ;;
      --uninstall) choose_action uninstall ;;
      --wheels | --make-wheels)
        [[ -n ${2-} ]] || fail $exit_usage "$1 needs a folder."
        choose_action "${1#--}"
        folder=$(realpath -m -- "$2")
        shift
        ;;
      --wheels=* | --make-wheels=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
      -h | --help)
        usage
        exit 0
        ;;
      *) fail $exit_usage "unknown option $1; --help lists them." ;;
    esac
    shift
  done
}

choose_action() {
  [[ $action == install ]] || fail $exit_usage "--$action and --$1 do not go together."
  action=$1
}

need_root() {
  local remedy="Run as root: $script${*:+ $*}"
  ((EUID != 0)) || return 0
  ! command -v sudo >/dev/null || remedy="Run: sudo $script${*:+ $*}"
  fail $exit_permission 'this installs for every user, so it needs root.' "$remedy"
}

# Keep what says where packages come from; drop what says where they go or which modules are found.
tidy_environment() {
  unset PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONDONTWRITEBYTECODE
  unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_SRC PIP_REQUIREMENT PIP_EDITABLE PIP_REPORT
  unset PIP_NO_DEPS PIP_DRY_RUN PIP_NO_BUILD_ISOLATION PIP_IGNORE_INSTALLED PIP_FORCE_REINSTALL
  export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  if [[ $action == wheels ]]; then
    [[ -d $folder ]] || fail $exit_failure "$folder is not a folder; fill one with --make-wheels."
    unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
    # Nor a cache in somebody's home directory: there is nothing to fetch twice.
    export PIP_CONFIG_FILE=/dev/null PIP_NO_CACHE_DIR=1
    from_where=(--no-index --find-links "$folder")
  else
    use_the_callers_pip_configuration
  fi
}

# sudo hides the configuration of the user who called it, perhaps the only one that names a reachable index.
use_the_callers_pip_configuration() {
  local home file
  [[ -n ${SUDO_UID-} && -z ${PIP_CONFIG_FILE-} ]] || return 0
  home=$(home_of "$SUDO_UID")
  for file in "$home/.config/pip/pip.conf" "$home/.pip/pip.conf"; do
    if [[ -f $file ]]; then
      export PIP_CONFIG_FILE=$file
      return
    fi
  done
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# --- distribution packages ------------------------------------------------------------------------

install_system_packages() {
  local manager missing
  begin 'Distribution packages'
  if ! $system_packages; then
    finish 'left alone'
    return
  fi
  choose_package_manager
  # shellcheck disable=SC2046  # package names are words
  mapfile -t missing < <(missing_with_"$manager" $(packages_for "$manager"))
  if ((${#missing[@]} == 0)); then
    finish 'all there'
    return
  fi
  run install_with_"$manager" "${missing[@]}" ||
    give_up "$manager could not install ${missing[*]}" /var \
      'Where they are installed already, perhaps under other names, run again with --no-system-packages.'
  finish "${#missing[@]} installed with $manager"
}

choose_package_manager() {
  local ID='' ID_LIKE='' family
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || . /etc/os-release
  for family in $ID $ID_LIKE; do
    case $family in
      debian | ubuntu) manager=apt ;;
      fedora | rhel | centos) manager=dnf ;;
      arch) manager=pacman ;;
      suse | opensuse*) manager=zypper ;;
      *) continue ;;
    esac
    return
  done
  fail $exit_cannot "no package list for this distribution (${ID:-no /etc/os-release})." \
    'nettop needs Python 3.11 or later with venv, the bcc module of that Python, and libbpf.' \
    'Install them, then run again with --no-system-packages.'
}

packages_for() {
  case $1 in
    apt) say python3 python3-venv python3-bpfcc python3-numpy libbpf1 ;;
    dnf) say python3 python3-bcc python3-numpy libbpf ;;
    pacman) say python python-bcc python-numpy libbpf ;;
    zypper) say python3 python3-bcc python3-numpy libbpf1 ;;
  esac
  $for_development || return 0
  case $1 in
    apt) say make gcc libc6-dev iproute2 iperf3 tmux nftables ethtool procps clang-format shellcheck librsvg2-bin fonts-dejavu-core protobuf-compiler ;;
    dnf) say make gcc glibc-devel iproute iproute-tc iperf3 tmux nftables ethtool procps-ng clang-tools-extra librsvg2-tools dejavu-sans-mono-fonts ;;
    pacman) say make gcc iproute2 iperf3 tmux nftables ethtool procps-ng clang shellcheck librsvg ttf-dejavu ;;
    zypper) say make gcc glibc-devel iproute2 iperf tmux nftables ethtool procps clang ShellCheck rsvg-convert dejavu-fonts ;;
  esac
  # Debian's kernels are fetched and unpacked with Debian's own tools.
  if $for_kernels && [[ $1 == apt ]]; then
    say qemu-system-x86 kmod debootstrap debian-archive-keyring
    # What builds and checks the image, the packages and the units of deploy/.
    say buildah uidmap debhelper dpkg-dev fakeroot lintian systemd
    # What the services lens is compared with.
    say nginx-light wrk redis-server postgresql nghttp2-client nghttp2-server memcached libmemcached-tools
    say mosquitto mosquitto-clients mariadb-server-core mariadb-client python3-grpcio python3-websockets
  fi
  # Ubuntu's is no package but a snap.
  # shellcheck source=/dev/null
  if $for_kernels && [[ $(. /etc/os-release && say "$ID") == debian ]]; then say chromium; fi
}

missing_with_apt() {
  local package
  for package in "$@"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || say "$package"
  done
}

missing_with_dnf() {
  local package
  for package in "$@"; do
    rpm --quiet -q --whatprovides "$package" >/dev/null || say "$package"
  done
}

missing_with_zypper() { missing_with_dnf "$@"; }

missing_with_pacman() { pacman -T "$@" || true; }

install_with_apt() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
  # A mirror in the middle of an update fails once; a broken third-party list must not stop us at all.
  "${apt[@]}" update || "${apt[@]}" update || true
  apt+=(install -y --no-install-recommends)
  "${apt[@]}" --download-only "$@" && uninterrupted "${apt[@]}" "$@"
}

# Ctrl-C waits for its end: a package manager that is stopped midway has to be repaired by hand.
uninterrupted() {
  trap '' INT TERM HUP
  "$@"
}

install_with_dnf() { uninterrupted dnf install -y --setopt=install_weak_deps=False "$@"; }

# Not -Sy: refreshing the lists without a full upgrade breaks an Arch system.
install_with_pacman() {
  uninterrupted pacman -S --needed --noconfirm "$@" ||
    { say 'Bring the system up to date first: pacman -Syu' && false; }
}

install_with_zypper() { uninterrupted zypper --non-interactive install --no-recommends "$@"; }

# --- the interpreter ------------------------------------------------------------------------------

find_the_interpreter_of_bcc() {
  local python too_old=''
  begin 'Python of bcc'
  for python in $(system_pythons); do
    "$python" -I -c 'from bcc import BPF' 2>/dev/null || continue
    if is_new_enough "$python"; then
      interpreter=$python
      finish "$python, $("$python" -I -c 'import bcc, platform
print(platform.python_version(), "with bcc", getattr(bcc, "__version__", "of unknown version"))')"
      return
    fi
    too_old=$python
  done
  [[ -z $too_old ]] || fail $exit_cannot "bcc is bound to $too_old, $("$too_old" -V); nettop needs Python 3.11 or later."
  fail $exit_cannot 'no Python in /usr/bin can import bcc.' \
    "Install the distribution's Python binding of bcc (python3-bpfcc, python3-bcc or python-bcc)."
}

system_pythons() {
  local python
  for python in /usr/bin/python3 /usr/bin/python3.[0-9] /usr/bin/python3.[0-9][0-9]; do
    [[ ! -x $python ]] || say "$python"
  done
}

is_new_enough() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

# A virtual environment that also sees the distribution's modules. Not by --system-site-packages, which would let in
# ~/.local as well, ahead of the distribution: root must not run code that users can write.
make_environment() {
  local environment=$1 modules
  "$interpreter" -I -m venv --without-pip "$environment" &&
    modules=$("$environment/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    "$interpreter" -I -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$modules/distribution.pth"
}

need_ensurepip() {
  "$interpreter" -I -c 'import ensurepip' 2>/dev/null ||
    fail $exit_cannot "$interpreter cannot make a virtual environment: it has no module ensurepip." \
      'Install it; on Debian and Ubuntu it is in the package python3-venv.'
}

# What comes from an index is what requirements/ names, by version and hash, and nothing is built but nettop itself.
readonly locked=(--quiet --no-deps --require-hashes --only-binary :all:)

# An environment gets the pip and the build backend of requirements/build.txt. /opt/nettop is another, which has neither
# them nor the setuptools that ensurepip brings with Python 3.11.
make_builder() {
  local builder=$1
  # pip by a command of its own: venv does not print why it failed.
  "$interpreter" -I -m venv --without-pip "$builder" &&
    "$builder/bin/python" -I -m ensurepip --default-pip &&
    pip_of "$builder" install --no-compile "${from_where[@]}" "${locked[@]}" --requirement "$checkout/requirements/build.txt"
}

pip_of() {
  local builder=$1
  shift
  # The build imports nettop from the checkout, where root leaves no compiled files.
  PYTHONDONTWRITEBYTECODE=1 "$builder/bin/python" -I -m pip "$@"
}

# Tells builds of one version apart, and sorts them: when their sources were committed, or changed last where there is no
# Git, and the first digits of the sources' SHA-256.
label_of_sources() {
  local sources=(pyproject.toml README.md LICENSE LICENSES requirements nettop) when sum
  when=$(as_owner git -C "$checkout" log -1 --format=%ct 2>/dev/null) ||
    when=$(cd -- "$checkout" && find "${sources[@]}" -type f -printf '%Ts\n' | sort -n | tail -n 1) || return
  sum=$(sums_of "${sources[@]}" | sha256sum) || return
  printf '+%s.%.8s\n' "$(date -u -d "@$when" +%Y%m%d%H%M%S)" "$sum"
}

# Into an environment what requirements/ has for an extra, then nettop: editable in what is its own builder, else a wheel.
install_packages() {
  local environment=$1 builder=$2 extras=$3
  local into=(--python "$environment/bin/python" install --quiet) list=$checkout/requirements/$extras.txt
  make_builder "$builder" && pip_of "$builder" "${into[@]}" "${from_where[@]}" "${locked[@]}" --requirement "$list" || return
  if [[ $builder == "$environment" ]]; then
    pip_of "$builder" uninstall --quiet --yes setuptools &&
      pip_of "$builder" install --quiet --no-deps --no-index --no-build-isolation --editable "$checkout"
  else
    build_nettop "$builder" "$builder" && pip_of "$builder" "${into[@]}" --no-deps --no-index "$builder"/nettop-*.whl
  fi
}

build_nettop() {
  local builder=$1 folder=$2 NETTOP_BUILD
  NETTOP_BUILD=$(label_of_sources) || return
  export NETTOP_BUILD
  pip_of "$builder" wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir "$folder" "$checkout"
}

# --- /opt/nettop, for everyone --------------------------------------------------------------------

install_for_everyone() {
  local wanted extras=$extra found
  begin 'Installed nettop'
  refuse_links_of_others
  refuse_what_is_not_ours
  wait_for_other_runs
  # An upgrade without --flows does not take away what nettop collect needs.
  [[ $(what_is_installed) != *' flows' ]] || extras=flows
  run fingerprint_of pyproject.toml README.md LICENSE LICENSES requirements nettop ||
    give_up "the checkout $checkout cannot be read" "$checkout"
  wanted="${words%$'\n'} $extras"
  # What is current has run, but a run that was killed may not have linked it.
  [[ ! -e $current ]] || link_on_everyones_path
  look_at_what_is_there "$wanted"
  finish "$found"
  if [[ $found == 'up to date' ]]; then
    step_number=$((step_number + 3))
  else
    make_release "$wanted" "$extras"
    link_on_everyones_path
  fi
  remove_old_releases
}

# The same sources on the same interpreter have the same fingerprint.
fingerprint_of() {
  { "$interpreter" -I -c 'import sys; print(sys.executable, sys.version)' && sums_of "$@"; } | sha256sum | cut -d' ' -f1
}

sums_of() {
  cd -- "$checkout" && find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
}

refuse_links_of_others() {
  local link
  for link in $(wanted_links); do
    if [[ -e $link || -L $link ]] && ! is_our_link "$link"; then
      fail $exit_failure "$link exists and is not ours; move it away first."
    fi
  done
}

refuse_what_is_not_ours() {
  [[ -e $place ]] || return 0
  [[ -f $mark || -f $mark_without_releases || -z $(ls -A $place) ]] ||
    fail $exit_failure "$place exists and is not nettop's; move it away first."
  [[ $(stat -L -c %u $place) == 0 ]] || fail $exit_failure "$place does not belong to root; remove it first."
}

# What a killed run has started holds the lock until it ends. Only root may open it, and so hold it.
wait_for_other_runs() {
  local lock
  must touch_for_root /run/nettop-install.lock
  exec {lock}>>/run/nettop-install.lock
  flock --nonblock "$lock" && return
  [[ ! -t 1 ]] || say ''
  printf 'install-deps: waiting for another run to end.\n' >&2
  run flock "$lock"
}

touch_for_root() { (umask 077 && touch "$1"); }

what_is_installed() { cat $current/$content $mark_without_releases 2>/dev/null || true; }

# What is said of it is in `found`.
look_at_what_is_there() {
  found=none
  [[ -e $current || -f $mark_without_releases ]] || return 0
  found="$(version_of_current), of other sources"
  [[ $(cat $current/$content 2>/dev/null) == "$1" ]] || return 0
  found="$(version_of_current), damaged"
  run sha256_of_all_files check $current && run nettop_works $current /usr/local/bin/nettop || return 0
  found='up to date'
}

version_of_current() {
  local info
  for info in "$current"/lib/python3*/site-packages/nettop-*.dist-info; do
    info=${info##*/nettop-}
    say "${info%.dist-info}"
  done
}

make_release() {
  local wanted=$1 extras=$2
  begin 'Virtual environment'
  need_ensurepip
  # The space that an interrupted run took is needed now.
  remove_old_releases
  # Named before it is made: what is interrupted in between is removed too.
  release=$releases/$(date -u +%Y%m%dT%H%M%SZ)-$$
  must mkdir -p $place
  must touch $mark
  must mkdir -p "$release"
  run make_environment "$release" || give_up "making $release failed" $place
  finish
  begin 'Python packages'
  must mkdir "$release/tmp"
  TMPDIR=$release/tmp run install_packages "$release" "$release/tmp/builder" "$extras" || pip_failed $place
  must rm -rf "$release/tmp"
  # Isolated: what is in PYTHONPATH, in the working directory or in ~/.local is not imported as root.
  must sed -i '1s/$/ -I/' "$release/bin/nettop"
  finish
  begin 'Check of the new nettop'
  run nettop_works "$release" "$release/bin/nettop" ||
    give_up "nettop does not run from $release" "$release" 'It was removed again; nettop is as it was before.'
  run "$interpreter" -I "$checkout/scripts/sbom.py" "$release"/lib/python3*/site-packages ||
    give_up 'writing the list of packages failed' "$release"
  must write "${words%$'\n'}" "$release/sbom.cdx.json"
  must write "$wanted" "$release/$content"
  run sha256_of_all_files write "$release" || give_up "$release cannot be read" "$release"
  must replace_link "releases/${release##*/}" $current
  finish
}

# Without BPF, which takes privileges, and as somebody whom the files do not belong to.
nettop_works() {
  local environment=$1 command=$2
  local as_nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups env -i "PATH=$PATH" LC_ALL=C.UTF-8 timeout 60)
  cd / &&
    "$environment/bin/python" -I -c 'import bcc, numpy, rich, textual, typer, nettop.cli, nettop.serve.command' &&
    "${as_nobody[@]}" "$command" --version &&
    "${as_nobody[@]}" "$command" --table --once
}

sha256_of_all_files() {
  cd -P -- "$2" || return
  case $1 in
    write) find bin lib sbom.cdx.json $content -type f ! -name '*.pyc' -print0 | xargs -0 sha256sum >$files ;;
    check) sha256sum --check --quiet $files ;;
  esac
}

write() { printf '%s\n' "$1" >"$2"; }

# At no moment there is no link.
replace_link() {
  local target=$1 link=$2
  ln -sfn -- "$target" "${link%/*}/.${link##*/}.new" && mv -fT -- "${link%/*}/.${link##*/}.new" "$link"
}

pip_failed() {
  if [[ $action == wheels ]]; then
    give_up 'pip failed' "$1" "If something is not in $folder, fill it again with --make-wheels on a machine with" \
      "$("$interpreter" -V) and the same processor."
  fi
  give_up 'pip failed' "$1" 'Without a package index, see --wheels in --help.'
}

link_on_everyones_path() {
  local link
  for link in $(wanted_links); do
    must mkdir -p "${link%/*}"
    must replace_link $current/bin/nettop "$link"
  done
}

# Red Hat's sudo does not look into /usr/local/bin.
wanted_links() {
  local sudo_path=''
  say /usr/local/bin/nettop
  if command -v sudo >/dev/null; then
    sudo_path=$(sudo -V 2>/dev/null | sed -n 's/^Value to override .* with: //p')
  fi
  [[ -z $sudo_path || ":$sudo_path:" == *:/usr/local/bin:* ]] || say /usr/bin/nettop
}

is_our_link() {
  local target
  target=$(readlink -- "$1") && [[ $target == $current/bin/nettop || $target == $place/bin/nettop ]]
}

# Keeps the current one, and those that a nettop still runs from: it imports and starts more of it later.
remove_old_releases() {
  local old
  for old in "$releases"/*/; do
    if [[ -d $old ]] && ! is_current "$old" && ! is_run_from "$old"; then must rm -rf "$old"; fi
  done
  if [[ -f $mark_without_releases && -e $current ]] && ! is_run_from $place/bin/; then
    must rm -rf $place/bin $place/include $place/lib $place/lib64 $place/share $place/pyvenv.cfg
    must rm -f $mark_without_releases
  fi
}

is_run_from() {
  local processes=(/proc/[0-9]*) # before there is grep, which would find itself
  grep -aqsF -- "$1" "${processes[@]/%//cmdline}" "${processes[@]/%//maps}"
}

# --- units of systemd -----------------------------------------------------------------------------

# An upgrade without --services replaces the units that are there.
has_services() { $with_services || [[ -f $unit_sums ]]; }

install_services() {
  local source unit edited=() count=0
  begin 'Services'
  # What is ours is known before it is there: a run that is killed can be repeated.
  run sums_of_units || give_up "$checkout/deploy/systemd cannot be read" "$checkout"
  must write "${words%$'\n'}" $unit_sums.new
  must mv -fT $unit_sums.new $unit_sums
  for source in "$checkout"/deploy/systemd/*.service; do
    unit=$units/${source##*/}
    if is_edited "$unit"; then
      edited+=("$unit")
    elif ! cmp -s "$source" "$unit"; then
      must place_unit "$source" "$unit"
      count=$((count + 1))
    fi
  done
  if ((count == 0)); then
    finish 'nothing new'
  else
    reload_systemd
    finish "$count new in $units; to start one: systemctl enable --now nettop-serve"
  fi
  ((${#edited[@]} == 0)) || printf >&2 \
    'install-deps: %s was edited, and stays. Put changes into a drop-in (systemctl edit), remove it, and run again.\n' \
    "${edited[@]}"
}

# Of those that were installed before, and of those that are now.
sums_of_units() {
  cd -- "$checkout/deploy/systemd" &&
    { sha256sum -- *.service | sed "s|  |  $units/|" && { cat $unit_sums 2>/dev/null || true; }; } | sort -u
}

is_edited() { [[ -e $1 || -L $1 ]] && ! { [[ ! -L $1 ]] && grep -qsxF -- "$(sha256sum -- "$1")" $unit_sums; }; }

place_unit() {
  local source=$1 unit=$2 new=$units/.${2##*/}.new
  mkdir -p $units && cp -- "$source" "$new" && chmod 644 "$new" && mv -fT -- "$new" "$unit"
}

systemd_runs() { [[ -d /run/systemd/system ]]; }

reload_systemd() { ! systemd_runs || must systemctl daemon-reload; }

# What stays is in `left`.
remove_services() {
  local installed=() unit name path
  left=()
  [[ -f $unit_sums ]] || return 0
  mapfile -t installed < <(cut -d' ' -f3- $unit_sums | sort -u)
  for unit in "${installed[@]}"; do
    name=${unit##*/}
    if [[ -f $unit ]] && systemd_runs; then
      run systemctl --quiet disable --now "$name" || give_up "systemctl disable --now $name" $units
    fi
    must rm -f "$units/multi-user.target.wants/$name" "$units/.$name.new"
    is_edited "$unit" || must rm -f "$unit"
    for path in "$unit" "$unit.d" "/etc/default/${name%.service}"; do
      [[ ! -e $path ]] || left+=("$path")
    done
  done
  reload_systemd
}

uninstall() {
  local link left=()
  begin 'Uninstall'
  refuse_what_is_not_ours
  wait_for_other_runs
  remove_services
  for link in /usr/local/bin/nettop /usr/bin/nettop; do
    if is_our_link "$link"; then must rm -f "$link"; fi
    must rm -f "${link%/*}/.${link##*/}.new"
  done
  # The marks last: a run that is killed can be repeated.
  if [[ -e $place ]]; then
    must find $place -mindepth 1 -maxdepth 1 ! -path $mark ! -path $mark_without_releases -exec rm -rf {} +
    must rm -rf $place
  fi
  finish "$place and its link are removed"
  say "Left in place: the distribution's packages, and .venv in a checkout."
  ((${#left[@]} == 0)) || say "Left in place, as somebody has made or edited them: ${left[*]}"
}

# --- .venv, for developers ------------------------------------------------------------------------

# The mark is there only while .venv is whole.
install_for_development() {
  local environment=$checkout/.venv mark_of_whole=$checkout/.venv/.nettop-install wanted is_whole=false
  begin 'Development, in .venv'
  if ! as_owner test -r "$checkout/pyproject.toml" -a -w "$checkout"; then
    fail $exit_permission "the owner of $checkout, uid $(stat -c %u -- "$checkout"), may not read and write it." \
      "See the permissions on the path to it: namei -l $checkout"
  fi
  run fingerprint_of pyproject.toml requirements || give_up "the checkout $checkout cannot be read" "$checkout"
  wanted=${words%$'\n'}
  if [[ -f $mark_of_whole ]] && belongs_here "$environment"; then is_whole=true; fi
  if $is_whole && [[ $(<"$mark_of_whole") == "$wanted" ]] && run as_owner "$environment/bin/nettop" --version; then
    finish 'up to date'
    return
  fi
  must rm -f "$mark_of_whole"
  if ! $is_whole; then
    need_ensurepip
    must rm -rf "$environment"
    run as_owner make_environment "$environment" || give_up "making $environment failed" "$checkout"
  fi
  must as_owner mktemp -d -p "$environment"
  scratch=$words
  TMPDIR=$scratch run as_owner install_packages "$environment" "$environment" dev || pip_failed "$checkout"
  must as_owner write "$wanted" "$mark_of_whole"
  finish
}

# Made here (not copied), bound to bcc, and owned by the user who works here (not by root in an earlier run).
belongs_here() {
  [[ -d $1 && $(stat -c %u -- "$1") == $(stat -c %u -- "$checkout") ]] &&
    grep -qsF -- "$1/bin/python" "$1/bin/pip" &&
    as_owner "$1/bin/python" -I -c 'import bcc, pip' 2>/dev/null
}

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
  local extras=$extra
  ! $for_development || extras=dev
  for interpreter in $(system_pythons) none; do
    [[ $interpreter != none ]] || fail $exit_cannot 'no Python 3.11 or later in /usr/bin.'
    ! is_new_enough "$interpreter" || break
  done
  begin "Wheels for $("$interpreter" -V) on $(uname -m)"
  need_ensurepip
  must mkdir -p -- "$folder"
  must mktemp -d -p "$folder"
  scratch=$words
  rm -f -- "$folder"/nettop-*.whl
  TMPDIR=$scratch run fill_with_wheels "$scratch/builder" "$extras" || give_up 'pip failed' "$folder"
  finish "$(find "$folder" -maxdepth 1 -name '*.whl' | wc -l) in $folder"
  say 'On the other machine, in a copy of this checkout: sudo scripts/install-deps.sh --wheels DIR'
}

fill_with_wheels() {
  local builder=$1 extras=$2 lists=() name
  for name in build "$extras"; do lists+=(--requirement "$checkout/requirements/$name.txt"); done
  make_builder "$builder" && pip_of "$builder" wheel --wheel-dir "$folder" "${locked[@]}" "${lists[@]}" &&
    build_nettop "$builder" "$folder"
}

# --------------------------------------------------------------------------------------------------

main() {
  read_options "$@"
  [[ $action == make-wheels ]] || need_root "$@"
  set -o errtrace
  trap 'failed_line=$LINENO' ERR
  trap 'explain_exit $? "${FUNCNAME[0]-main}${failed_line:+, line $failed_line}"; clean_up' EXIT
  trap 'interrupted HUP 129' HUP
  trap 'interrupted INT 130' INT
  trap 'interrupted TERM 143' TERM
  tidy_environment
  case $action in
    uninstall) steps=1 && uninstall ;;
    make-wheels) steps=1 && make_wheels ;;
    *)
      steps=6
      ! $for_development || steps=$((steps + 1))
      ! has_services || steps=$((steps + 1))
      install_system_packages
      find_the_interpreter_of_bcc
      install_for_everyone
      ! has_services || install_services
      ! $for_development || install_for_development
      say "Done in $SECONDS s. Start it with: $(command_to_start)"
      ! $for_development || say 'The tests: make test. On two cores they take half an hour.'
      ;;
  esac
}

# As the caller has to type it.
command_to_start() {
  local command=nettop
  [[ $(PATH=$callers_path type -P nettop) -ef /usr/local/bin/nettop ]] || command=/usr/local/bin/nettop
  # A file of that name that cannot be executed is found too.
  if [[ -n ${SUDO_UID-} && -x $(command -v sudo) ]]; then command="sudo $command"; fi
  say "$command"
}

main "$@"
