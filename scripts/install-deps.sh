#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Install nettop and its dependencies; see `--help`. Read from the bottom: main() is the table of contents.
set -euo pipefail
# Root's umask may be 077, but everyone must be able to read and run the installed files.
umask 022
callers_path=$PATH
# The distribution's tools first, no private Python; causes of failures are recognized by English messages.
export PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH" LC_ALL=C.UTF-8

script=$(readlink -f -- "${BASH_SOURCE[0]}")
checkout=${script%/*/*}
# Each install is a release of its own; `current` links to the one that nettop runs from.
readonly script checkout callers_path place=/opt/nettop releases=/opt/nettop/releases current=/opt/nettop/current
# Without this mark, the directory is not nettop's.
readonly mark=$place/.nettop-releases
# In a release: the fingerprint of its checkout, and the SHA-256 of each file.
readonly content=.nettop-content files=.nettop-files
readonly sources=(pyproject.toml README.md LICENSE LICENSES requirements nettop)
# Install from an index only what requirements/ pins by version and hash, and build nothing but nettop itself.
readonly locked=(--quiet --no-deps --require-hashes --only-binary :all:)

action=install extra=serve # nettop's extra to install
for_development=false for_kernels=false with_services=false system_packages=true
folder=''                  # directory of wheels: read by --wheels, filled by --make-wheels
from_where=()              # pip options: where packages come from
interpreter=''             # the Python that bcc is installed for
release='' scratch=''      # directory of the release being created, and a temporary one

# shellcheck source=scripts/install-steps.sh
. "$checkout/scripts/install-steps.sh" # begin, finish, run, must, give_up, fail
# shellcheck source=scripts/install-services.sh
. "$checkout/scripts/install-services.sh" # for --services, upgrades and --uninstall
# shellcheck source=scripts/install-dev.sh
. "$checkout/scripts/install-dev.sh" # for --dev, --kernels and --make-wheels

usage() {
  cat <<'HELP'
Usage: sudo scripts/install-deps.sh [--flows] [--services] [--dev] [--kernels] [--wheels DIR] [--no-system-packages]
       sudo scripts/install-deps.sh --uninstall
       scripts/install-deps.sh [--flows] [--dev] --make-wheels DIR

Installs the distribution's bcc and libbpf, installs nettop into its own virtual environment in /opt/nettop, and links
it as /usr/local/bin/nettop. Safe to run again: it installs only what is missing, or upgrades to this checkout. The
installed nettop is replaced only after the new one has run, even if this is killed.

  --flows               also install the store engine for nettop collect, 800 MB; upgrades keep it
  --services            also install the systemd units nettop-serve, nettop-log, nettop-record and nettop-collect, neither
                        enabled nor started; upgrades replace them, except edited ones: put changes into a drop-in
                        (systemctl edit)
  --dev                 also install the test dependencies, and an editable nettop in .venv
  --kernels             like --dev, plus qemu and debootstrap for tests on other kernels and releases, a browser for
                        export tests, tools that build images and packages, and servers and load generators to compare
                        the services lens with, some of which Debian starts (Debian and Ubuntu only)
  --wheels DIR          install every Python package from DIR, without a package index
  --make-wheels DIR     fill DIR for --wheels (with --dev: for development too); needs an index, not root. DIR is for
                        machines with the same Python version and architecture
  --no-system-packages  do not install distribution packages: they are already installed
  --uninstall           remove /opt/nettop, the compiled programs, the link, and the units, which are stopped and disabled
                        first; keep drop-ins and distribution packages
  -h, --help            show this text

Exit codes: 0 done, 1 failure, 2 usage, 3 not possible on this system, 4 not root or not permitted, 128 + N on signal N.
HELP
}

# --- distribution packages ------------------------------------------------------------------------

install_system_packages() {
  local manager package missing=()
  begin 'Distribution packages'
  $system_packages || { finish 'skipped' && return; }
  choose_package_manager
  for package in $(packages_for "$manager") $(! $for_development || development_packages "$manager"); do
    is_package_installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || { finish 'all installed' && return; }
  run install_missing "${missing[@]}" || give_up "$manager could not install ${missing[*]}" /var \
    'If they are already installed, perhaps under other names, run again with --no-system-packages.'
  finish "${#missing[@]} installed with $manager"
}

choose_package_manager() {
  local ID='' ID_LIKE=''
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || . /etc/os-release
  case " $ID $ID_LIKE " in
    *' debian '* | *' ubuntu '*) manager=apt ;;
    *' fedora '* | *' rhel '* | *' centos '*) manager=dnf ;;
    *' arch '*) manager=pacman ;;
    *' suse '* | *' opensuse'*) manager=zypper ;;
    *)
      fail $exit_cannot "no package list for this distribution (${ID:-no /etc/os-release})." \
        'nettop needs Python 3.11 or later with venv, the bcc module of that Python, and libbpf.' \
        'Install them, then run again with --no-system-packages.'
      ;;
  esac
}

packages_for() {
  case $1 in
    apt) say python3 python3-venv python3-bpfcc python3-numpy libbpf1 ;;
    dnf) say python3 python3-bcc python3-numpy libbpf ;;
    pacman) say python python-bcc python-numpy libbpf ;;
    zypper) say python3 python3-bcc python3-numpy libbpf1 ;;
  esac
}

is_package_installed() {
  case $manager in
    apt) [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]] ;;
    dnf | zypper) rpm --quiet -q --whatprovides "$1" >/dev/null ;;
    pacman) pacman -T "$1" >/dev/null ;;
  esac
}

install_missing() {
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
  local apt_install=("${apt[@]}" install -y --no-install-recommends "$@")
  # A mirror that is being updated fails once; a broken third-party list must not stop the installation.
  [[ $manager != apt ]] || { "${apt[@]}" update || "${apt[@]}" update || true; }
  [[ $manager != apt ]] || "${apt_install[@]}" --download-only || return
  # Ctrl-C waits for its exit: a package manager stopped midway has to be repaired by hand.
  trap '' INT TERM HUP
  case $manager in
    apt) "${apt_install[@]}" ;;
    dnf) dnf install -y --setopt=install_weak_deps=False "$@" ;;
    # Not -Sy: refreshing the lists without a full upgrade breaks an Arch system.
    pacman) pacman -S --needed --noconfirm "$@" || { say 'Upgrade the system first: pacman -Syu' && false; } ;;
    zypper) zypper --non-interactive install --no-recommends "$@" ;;
  esac
}

# --- Python, and virtual environments -------------------------------------------------------------

find_python_of_bcc() {
  local python too_old=''
  begin 'Python of bcc'
  for python in $(system_pythons); do
    "$python" -I -c 'from bcc import BPF' 2>/dev/null || continue
    is_new_enough "$python" && interpreter=$python && break
    too_old=$python
  done
  [[ -n $interpreter || -z $too_old ]] ||
    fail $exit_cannot "bcc is installed for $too_old, $("$too_old" -V); nettop needs Python 3.11 or later."
  [[ -n $interpreter ]] || fail $exit_cannot 'no Python in /usr/bin can import bcc.' \
    "Install the distribution's Python binding of bcc (python3-bpfcc, python3-bcc or python-bcc)."
  finish "$interpreter, $("$interpreter" -I -c 'import bcc, platform
print(platform.python_version(), "with bcc", getattr(bcc, "__version__", "of unknown version"))')"
}

system_pythons() { find /usr/bin/ -maxdepth 1 -regex '.*/python3\(\.[0-9]+\)?' -executable | sort; }

is_new_enough() { "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }

need_ensurepip() {
  "$interpreter" -I -c 'import ensurepip' 2>/dev/null ||
    fail $exit_cannot "$interpreter cannot create a virtual environment: it has no module ensurepip." \
      'Install it; on Debian and Ubuntu it is in the package python3-venv.'
}

# Creates a virtual environment that also sees the distribution's modules. Does not use --system-site-packages, which
# would also include ~/.local, ahead of the distribution: root must not run code that users can write.
make_environment() {
  local modules
  "$interpreter" -I -m venv --without-pip "$1" &&
    modules=$("$1/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    "$interpreter" -I -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$modules/distribution.pth"
}

# Creates an environment with pip and the build backend, which /opt/nettop does not have.
# Installs pip by a separate command: venv does not print why it failed.
make_builder() {
  "$interpreter" -I -m venv --without-pip "$1" && "$1/bin/python" -I -m ensurepip --default-pip &&
    pip_of "$1" install --no-compile "${from_where[@]}" "${locked[@]}" --requirement "$checkout/requirements/build.txt"
}

# The build imports nettop from the checkout, where root must leave no compiled files.
pip_of() { PYTHONDONTWRITEBYTECODE=1 "$1/bin/python" -I -m pip "${@:2}"; }

# Builds nettop's wheel. Its label distinguishes and sorts builds of one version: the time of the commit, and its ID if
# the sources are those of the commit, such as 20260131120000.g0123456789ab; otherwise the first digits of the sources'
# SHA-256 after an s. Without Git the time is SOURCE_DATE_EPOCH, or 0: files may have the time of the copy.
build_nettop() {
  local when which changed git=(git -c safe.directory="$checkout" -c core.fsmonitor=false --no-optional-locks)
  cd -- "$checkout" || return
  when=$("${git[@]}" log -1 --format=%ct 2>/dev/null) || when=${SOURCE_DATE_EPOCH:-}
  [[ -z $when ]] || when=$(date -u -d "@$when" +%Y%m%d%H%M%S) || return
  if changed=$("${git[@]}" status --porcelain -- "${sources[@]}" 2>/dev/null) && [[ -z $changed ]]; then
    which=g$("${git[@]}" rev-parse --short=12 HEAD) || return
  else
    which=s$(sums_of "${sources[@]}" | sha256sum) || return
    which=${which::9}
  fi
  NETTOP_BUILD="+${when:-0}.$which" \
    pip_of "$1" wheel --quiet --no-deps --no-index --no-build-isolation --wheel-dir "$2" .
}

sums_of() { cd -- "$checkout" && find "$@" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum; }

# Prints a fingerprint of the interpreter and of files in the checkout.
fingerprint_of() {
  { "$interpreter" -I -c 'import sys; print(sys.executable, sys.version)' && sums_of "$@"; } | sha256sum | cut -d' ' -f1
}

pip_failed() {
  [[ $action == wheels ]] || give_up 'pip failed' "$1" 'Without a package index, see --wheels in --help.'
  give_up 'pip failed' "$1" "If something is missing from $folder, fill it again with --make-wheels on a machine with" \
    "$("$interpreter" -V) and the same architecture."
}

# --- /opt/nettop, for everyone --------------------------------------------------------------------

install_for_everyone() {
  local wanted link
  begin 'Installed nettop'
  for link in $(wanted_links); do
    [[ ! -e $link && ! -L $link ]] || is_our_link "$link" ||
      fail $exit_failure "$link exists and is not nettop's; move it away first."
  done
  begin_alone
  # An upgrade without --flows does not take away what nettop collect needs.
  ! grep -qs ' flows$' $current/$content || extra=flows
  run fingerprint_of "${sources[@]}" || give_up "cannot read the checkout $checkout" "$checkout"
  wanted="$words $extra"
  # The current release has run, but a killed run may not have linked it.
  [[ ! -e $current ]] || link_into_path
  run state_of_current "$wanted" || true
  finish "${words##*$'\n'}"
  if [[ $words == *'up to date' ]]; then
    step_number=$((step_number + 3))
  else
    make_release "$wanted"
    link_into_path
  fi
  remove_old_releases
  begin 'Programs for this kernel'
  run timeout 600 $current/bin/nettop compile || true # not where BPF may not be loaded, as while an image is built
  finish "${words##*$'\n'}"
}

# Refuses a directory of others, and waits for other runs, whose processes hold the lock even if the script was killed.
# Only root may open the lock, and so hold it.
begin_alone() {
  local lock
  [[ ! -e $place || -f $mark || -z $(ls -A $place) ]] ||
    fail $exit_failure "$place exists and is not nettop's; move it away first."
  [[ ! -e $place || $(stat -L -c %u $place) == 0 ]] ||
    fail $exit_failure "$place does not belong to root; remove it first."
  must mkdir -p -m 700 /run/nettop-install
  exec {lock}</run/nettop-install
  flock --nonblock "$lock" && return
  [[ ! -t 1 ]] || say ''
  printf 'install-deps: waiting for another run to finish.\n' >&2
  run flock "$lock"
}

state_of_current() {
  local version
  [[ -e $current ]] || { say none && return; }
  version=$(cd $current/lib/python3*/site-packages 2>/dev/null && echo nettop-*.dist-info) || version='an older one'
  version=${version#nettop-}
  if [[ $(cat $current/$content 2>/dev/null) != "$1" ]]; then
    say "${version%.dist-info}, from other sources"
  elif (cd -P $current && sha256sum --check --quiet $files) && works $current /usr/local/bin/nettop; then
    say 'up to date'
  else
    say "${version%.dist-info}, damaged"
  fi
}

make_release() {
  begin 'Virtual environment'
  need_ensurepip
  remove_old_releases # to free the space of an interrupted run
  # Set before it is created, so that an interruption in between removes it too.
  release=$releases/$(date -u +%Y%m%dT%H%M%SZ)-$$
  run begin_release || give_up "cannot create $release" $place
  finish
  begin 'Python packages'
  TMPDIR=$release/tmp run install_packages || pip_failed $place
  finish
  begin 'Check of the new nettop'
  run works "$release" "$release/bin/nettop" ||
    give_up "nettop does not run from $release" "$release" 'The release was removed; nettop is unchanged.'
  run complete_release "$1" || give_up "cannot complete $release" "$release"
  must replace_link "releases/${release##*/}" $current
  finish
}

begin_release() { mkdir -p $place && touch $mark && mkdir -p "$release/tmp" && make_environment "$release"; }

install_packages() {
  local builder=$release/tmp/builder into=(--python "$release/bin/python" install --quiet)
  make_builder "$builder" &&
    pip_of "$builder" "${into[@]}" "${from_where[@]}" "${locked[@]}" -r "$checkout/requirements/$extra.txt" &&
    build_nettop "$builder" "$builder" && pip_of "$builder" "${into[@]}" --no-deps --no-index "$builder"/nettop-*.whl &&
    rm -rf "$release/tmp" &&
    # Isolated mode: root must not import from PYTHONPATH, the working directory or ~/.local.
    sed -i '1s/$/ -I/' "$release/bin/nettop"
}

# Runs nettop without BPF, which needs privileges, and as a user who does not own the files.
works() {
  local as_nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups env -i "PATH=$PATH" LC_ALL=C.UTF-8 timeout 60)
  cd / && "$1/bin/python" -I -c 'import bcc, numpy, rich, textual, typer, nettop.cli, nettop.serve.command' &&
    "${as_nobody[@]}" "$2" --version && "${as_nobody[@]}" "$2" --table --once
}

complete_release() {
  cd "$release" && "$interpreter" -I "$checkout/scripts/sbom.py" lib/python3*/site-packages >sbom.cdx.json &&
    say "$1" >$content &&
    find bin lib sbom.cdx.json $content -type f ! -name '*.pyc' -print0 | xargs -0 sha256sum >$files
}

# Replaces a link atomically.
replace_link() {
  local new=${2%/*}/.${2##*/}.new
  mkdir -p -- "${2%/*}" && ln -sfn -- "$1" "$new" && mv -fT -- "$new" "$2"
}

link_into_path() {
  local link
  for link in $(wanted_links); do must replace_link $current/bin/nettop "$link"; done
}

# Red Hat's sudo does not search /usr/local/bin.
wanted_links() {
  local sudo_path
  say /usr/local/bin/nettop
  sudo_path=$(sudo -V 2>/dev/null | sed -n 's/^Value to override .* with: //p') || true
  [[ -z $sudo_path || ":$sudo_path:" == *:/usr/local/bin:* ]] || say /usr/bin/nettop
}

is_our_link() { [[ $(readlink -- "$1") == "$current"/bin/nettop ]]; }

# Keeps the current release, and those that a nettop still runs from: it may import or start more of it later.
remove_old_releases() {
  local old
  for old in "$releases"/*/; do
    [[ ! -d $old ]] || is_current "$old" || is_run_from "$old" || must rm -rf "$old"
  done
}

is_run_from() {
  local processes=(/proc/[0-9]*) # listed before grep starts, which would find itself
  grep -aqsF -- "$1" "${processes[@]/%//cmdline}" "${processes[@]/%//maps}"
}

uninstall() {
  local link left=()
  begin 'Uninstall'
  begin_alone
  remove_services
  for link in /usr/local/bin/nettop /usr/bin/nettop; do
    ! is_our_link "$link" || must rm -f "$link"
    must rm -f "${link%/*}/.${link##*/}.new"
  done
  # Remove the mark last, so that a killed run can be repeated.
  [[ ! -e $place ]] || must find $place -mindepth 1 -maxdepth 1 ! -path $mark -exec rm -rf {} +
  must rm -rf $place /var/cache/nettop
  finish "removed $place and its link"
  say "Left in place: the distribution's packages, and .venv in a checkout."
  ((${#left[@]} == 0)) || say "Left in place, because you created or edited them: ${left[*]}"
}

# --- options and environment ----------------------------------------------------------------------

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
        [[ -n ${2-} ]] || fail $exit_usage "$1 needs a directory."
        choose_action "${1#--}"
        folder=$(realpath -m -- "$2")
        shift
        ;;
      --wheels=* | --make-wheels=*) set -- '' "${1%%=*}" "${1#*=}" "${@:2}" ;;
      -h | --help) usage && exit ;;
      *) fail $exit_usage "unknown option $1; --help lists them." ;;
    esac
    shift
  done
}

choose_action() {
  [[ $action == install ]] || fail $exit_usage "--$action and --$1 exclude each other."
  action=$1
}

need_root() {
  local how='Run as root:'
  ! command -v sudo >/dev/null || how='Run: sudo'
  ((EUID == 0)) || fail $exit_permission 'this installs for every user, so it needs root.' "$how $script${*:+ $*}"
}

# Keeps variables for where packages come from; unsets those for where they go and which modules are found.
tidy_environment() {
  local file
  unset PYTHONHOME PYTHONPATH PYTHONSTARTUP PYTHONUSERBASE PYTHONPLATLIBDIR PYTHONDONTWRITEBYTECODE
  unset PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON PIP_SRC PIP_REQUIREMENT PIP_EDITABLE PIP_REPORT
  unset PIP_NO_DEPS PIP_DRY_RUN PIP_NO_BUILD_ISOLATION PIP_IGNORE_INSTALLED PIP_FORCE_REINSTALL
  export PYTHONNOUSERSITE=1 PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
  if [[ $action == wheels ]]; then
    [[ -d $folder ]] || fail $exit_failure "$folder is not a directory; fill one with --make-wheels."
    unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_FIND_LINKS
    # Use no cache in a home directory either: nothing is fetched twice.
    export PIP_CONFIG_FILE=/dev/null PIP_NO_CACHE_DIR=1
    from_where=(--no-index --find-links "$folder")
  elif [[ -n ${SUDO_UID-} && -z ${PIP_CONFIG_FILE-} ]]; then
    # sudo hides the calling user's configuration, which may be the only one with a reachable index.
    for file in "$(home_of "$SUDO_UID")"/{.pip,.config/pip}/pip.conf; do
      [[ ! -f $file ]] || export PIP_CONFIG_FILE=$file
    done
  fi
}

home_of() { getent passwd "$1" | cut -d: -f6; }

# --------------------------------------------------------------------------------------------------

main() {
  read_options "$@"
  [[ $action == make-wheels ]] || need_root "$@"
  watch_exits
  tidy_environment
  # An upgrade without --services still replaces installed units.
  [[ ! -f $unit_sums ]] || with_services=true
  case $action in
    uninstall) uninstall ;;
    make-wheels) make_wheels ;;
    *) install_all ;;
  esac
}

install_all() {
  steps=7
  ! $with_services || steps=$((steps + 1))
  ! $for_development || steps=$((steps + 1))
  install_system_packages
  find_python_of_bcc
  install_for_everyone
  ! $with_services || install_services
  ! $for_development || install_for_development
  say "Done in $SECONDS s. Start it with: $(command_to_start)"
  ! $for_development || say 'Run the tests: make test. On two cores they take 15 minutes.'
}

main "$@"
