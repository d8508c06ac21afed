#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs nettop and what it needs; `--help` says how. Read from the bottom: main() is the table of contents.
set -euo pipefail

# Root's own umask may be 077, and everyone must be able to read and run what is installed here.
umask 022
# The distribution's tools first: neither its package scripts nor we want somebody's private python.
export PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH"

readonly place=/opt/nettop
# Says "unfinished", or what exactly is installed; without it the folder is not ours to touch.
readonly mark=$place/.nettop-install
readonly exit_failure=1 exit_usage=2 exit_cannot=3 exit_permission=4

script=$(readlink -f -- "${BASH_SOURCE[0]}")
checkout=$(dirname -- "$(dirname -- "$script")")
readonly script checkout

action=install
extra=serve            # what is installed of nettop's optional packages
folder=''              # of wheels: read by --wheels, filled by --make-wheels
for_development=false
for_kernels=false
system_packages=true
from_where=()          # pip options: where packages come from
interpreter=''         # the Python that bcc is bound to

usage() {
  cat <<'HELP'
Usage: sudo scripts/install-deps.sh [--flows] [--dev] [--kernels] [--wheels DIR] [--no-system-packages]
       sudo scripts/install-deps.sh --uninstall
       scripts/install-deps.sh [--flows] [--dev] --make-wheels DIR

Installs the distribution's bcc and libbpf, puts nettop into a virtual environment
of its own in /opt/nettop, and links it as /usr/local/bin/nettop.
Safe to run again: it does only what is missing, or upgrades to this checkout.

  --flows               also what nettop collect needs: the engine of its store, 800 MB
  --dev                 also what the tests need, and an editable nettop in .venv
  --kernels             as --dev, and qemu and debootstrap for the tests on other kernels
                        and releases, and a browser for those of exports; their names are
                        known for Debian and Ubuntu
  --wheels DIR          take every Python package from DIR; no package index is reached
  --make-wheels DIR     fill DIR for --wheels (with --dev: for development too); needs an
                        index, not root. DIR serves machines with the same Python version
                        and processor
  --no-system-packages  leave the distribution's packages alone: they are there already
  --uninstall           remove /opt/nettop and the link; distribution packages stay
  -h, --help            this text

Exit codes: 0 done, 1 failure, 2 usage, 3 this system cannot, 4 not root.
HELP
}

say() { printf '%s\n' "$*"; }

fail() {
  local code=$1
  shift
  printf 'install-deps: %s\n' "$@" >&2
  exit "$code"
}

# A package manager's hundreds of lines matter only when it failed.
quietly() {
  local words
  words=$("$@" 2>&1) || {
    printf '%s\n' "$words" >&2
    return 1
  }
}

read_options() {
  while (($#)); do
    case $1 in
      --flows) extra=flows ;;
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
  readonly action extra folder for_development for_kernels system_packages
}

choose_action() {
  [[ $action == install ]] || fail $exit_usage "--$action and --$1 do not go together."
  action=$1
}

need_root() {
  ((EUID == 0)) || fail $exit_permission 'this installs for every user, so it needs root.' "Run: sudo $script $*"
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
    export PIP_CONFIG_FILE=/dev/null
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
  if ! $system_packages; then
    say 'Distribution packages: left alone, as asked.'
    return
  fi
  manager=$(package_manager)
  # shellcheck disable=SC2046  # package names are words
  mapfile -t missing < <(missing_with_"$manager" $(packages_for "$manager"))
  if ((${#missing[@]} == 0)); then
    say 'Distribution packages: all there.'
    return
  fi
  say "Distribution packages: installing ${missing[*]} with $manager."
  quietly install_with_"$manager" "${missing[@]}" ||
    fail $exit_failure "$manager could not install: ${missing[*]} (its words are above)." \
      'If they are there under other names, run again with --no-system-packages.'
}

package_manager() {
  local ID='' ID_LIKE='' family
  # shellcheck source=/dev/null
  [[ ! -r /etc/os-release ]] || . /etc/os-release
  for family in $ID $ID_LIKE; do
    case $family in
      debian | ubuntu) say apt && return ;;
      fedora | rhel | centos) say dnf && return ;;
      arch) say pacman && return ;;
      suse | opensuse*) say zypper && return ;;
    esac
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
  if $for_kernels && [[ $1 == apt ]]; then say qemu-system-x86 kmod debootstrap debian-archive-keyring; fi
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
  "${apt[@]}" install -y --no-install-recommends "$@"
}

install_with_dnf() { dnf install -y --setopt=install_weak_deps=False "$@"; }

# Not -Sy: refreshing the lists without a full upgrade breaks an Arch system.
install_with_pacman() {
  pacman -S --needed --noconfirm "$@" || { say 'Bring the system up to date first: pacman -Syu' && false; }
}

install_with_zypper() { zypper --non-interactive install --no-recommends "$@"; }

# --- the interpreter ------------------------------------------------------------------------------

find_the_interpreter_of_bcc() {
  local python too_old=''
  for python in $(system_pythons); do
    "$python" -I -c 'from bcc import BPF' 2>/dev/null || continue
    if is_new_enough "$python"; then
      interpreter=$python
      say "Python: $python, $("$python" -I -c 'import bcc, platform
print(platform.python_version(), "with bcc", getattr(bcc, "__version__", "of unknown version"))')."
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
  "$interpreter" -I -m venv "$environment" ||
    fail $exit_cannot "$interpreter cannot make a virtual environment." 'On Debian and Ubuntu install python3-venv.'
  modules=$("$environment/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  "$interpreter" -I -c 'import site; print(*site.getsitepackages(), sep="\n")' >"$modules/distribution.pth"
}

pip_in() {
  local environment=$1
  shift
  "$environment/bin/python" -I -m pip "$@"
}

# --- /opt/nettop, for everyone --------------------------------------------------------------------

install_for_everyone() {
  local wanted
  wanted="$(fingerprint_of pyproject.toml README.md LICENSE nettop) $extra"
  refuse_what_is_not_ours
  if [[ $(what_is_installed) == "$wanted" ]] && nettop_imports 2>/dev/null; then
    say "nettop: up to date in $place."
  else
    say "nettop: installing from $checkout into $place."
    can_be_upgraded_to "$wanted" || start_afresh
    pip_in $place install --quiet --upgrade "${from_where[@]}" "${checkout}[$extra]" || fail $exit_failure "$(why_pip_fails)"
    nettop_imports || fail $exit_failure "nettop does not start from $place; remove it with --uninstall and run again."
    say "$wanted" >$mark
  fi
  link_on_everyones_path
}

# The same sources in the same folder, on the same interpreter, have the same fingerprint.
fingerprint_of() {
  cd -- "$checkout"
  {
    pwd
    "$interpreter" -I -c 'import sys; print(sys.executable, sys.version)'
    find "$@" -type f ! -name '*.pyc' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum | cut -d' ' -f1
}

refuse_what_is_not_ours() {
  [[ -e $place ]] || return 0
  [[ -f $mark || -z $(ls -A $place) ]] || fail $exit_failure "$place exists and is not nettop's; move it away first."
  [[ $(stat -L -c %u $place) == 0 ]] || fail $exit_failure "$place does not belong to root; remove it first."
}

what_is_installed() { cat $mark 2>/dev/null || true; }

# Not after an interrupted first run, nor after the distribution changed its Python, nor when what should work does not.
can_be_upgraded_to() {
  case $(what_is_installed) in
    '' | unfinished | "$1") false ;;
    *) $place/bin/python -I -c 'import bcc, pip' 2>/dev/null ;;
  esac
}

start_afresh() {
  rm -rf $place
  mkdir -p $place
  say unfinished >$mark
  make_environment $place
}

nettop_imports() { $place/bin/python -I -c 'import bcc, numpy, rich, textual, typer, nettop.cli, nettop.serve.command'; }

why_pip_fails() {
  if [[ $action == wheels ]]; then
    say "pip did not find everything in $folder (its words are above); fill it again with --make-wheels" \
      "on a machine with $("$interpreter" -V) and the same processor."
  else
    say 'pip failed (its words are above). Without a package index, see --wheels.'
  fi
}

link_on_everyones_path() {
  local link
  for link in $(wanted_links); do
    if [[ -e $link || -L $link ]] && ! is_our_link "$link"; then
      fail $exit_failure "$link exists and is not ours; move it away first."
    fi
    mkdir -p "$(dirname "$link")"
    ln -sfn $place/bin/nettop "$link"
    say "Command: $link"
  done
}

# Red Hat's sudo does not look into /usr/local/bin.
wanted_links() {
  local sudo_path
  say /usr/local/bin/nettop
  sudo_path=$(LC_ALL=C sudo -V 2>/dev/null | sed -n 's/^Value to override .* with: //p')
  [[ -z $sudo_path || ":$sudo_path:" == *:/usr/local/bin:* ]] || say /usr/bin/nettop
}

is_our_link() { [[ $(readlink -- "$1") == "$place/bin/nettop" ]]; }

uninstall() {
  local link
  refuse_what_is_not_ours
  for link in /usr/local/bin/nettop /usr/bin/nettop; do
    if is_our_link "$link"; then rm -f "$link" && say "Removed $link."; fi
  done
  if [[ -e $place ]]; then rm -rf $place && say "Removed $place."; fi
  say "Left in place: the distribution's packages, and .venv in a checkout."
}

# --- .venv, for developers ------------------------------------------------------------------------

install_for_development() {
  local environment=$checkout/.venv wanted
  wanted=$(fingerprint_of pyproject.toml)
  if [[ $(cat "$environment/.nettop-install" 2>/dev/null) == "$wanted" ]] && belongs_here "$environment"; then
    say 'Development: .venv is up to date.'
    return
  fi
  say "Development: installing into $environment."
  if ! belongs_here "$environment"; then
    rm -rf -- "$environment"
    as_owner make_environment "$environment"
  fi
  as_owner pip_in "$environment" install --quiet "${from_where[@]}" --editable "${checkout}[dev]" ||
    fail $exit_failure "$(why_pip_fails)"
  as_owner tee "$environment/.nettop-install" <<<"$wanted" >/dev/null
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
    as_owner bash -euo pipefail -c "$(declare -f); $(declare -p interpreter exit_cannot); \"\$@\"" - "$@"
  else
    setpriv --reuid "$uid" --regid "$gid" --clear-groups env HOME="$(home_of "$uid" || say /nonexistent)" "$@"
  fi
}

# --- a folder of wheels ---------------------------------------------------------------------------

make_wheels() {
  local extras=$extra build_needs
  ! $for_development || extras=dev
  for interpreter in $(system_pythons) none; do
    [[ $interpreter != none ]] || fail $exit_cannot 'no Python 3.11 or later in /usr/bin.'
    ! is_new_enough "$interpreter" || break
  done
  scratch=$(mktemp -d)
  trap 'rm -rf -- "$scratch"' EXIT
  say "Wheels: filling $folder for $("$interpreter" -V) on $(uname -m)."
  # Hidden from the distribution's modules, so that the folder lacks none of them.
  "$interpreter" -I -m venv "$scratch/venv"
  mapfile -t build_needs < <("$interpreter" -I -c 'import sys, tomllib
print(*tomllib.load(open(sys.argv[1], "rb"))["build-system"]["requires"], sep="\n")' "$checkout/pyproject.toml")
  # What hatchling asks for when it builds an editable install.
  ! $for_development || build_needs+=(editables)
  mkdir -p -- "$folder"
  rm -f -- "$folder"/nettop-*.whl
  pip_in "$scratch/venv" wheel --quiet --wheel-dir "$folder" "${checkout}[$extras]" "${build_needs[@]}" ||
    fail $exit_failure 'pip failed (its words are above).'
  say "Wheels: $(find "$folder" -name '*.whl' | wc -l) in $folder."
  say 'On the other machine, in a copy of this checkout: sudo scripts/install-deps.sh --wheels DIR'
}

# --------------------------------------------------------------------------------------------------

main() {
  read_options "$@"
  [[ $action == make-wheels ]] || need_root "$@"
  tidy_environment
  case $action in
    uninstall) uninstall ;;
    make-wheels) make_wheels ;;
    *)
      install_system_packages
      find_the_interpreter_of_bcc
      install_for_everyone
      ! $for_development || install_for_development
      say 'Done. Start it with: sudo nettop'
      ;;
  esac
}

main "$@"
