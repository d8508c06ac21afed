# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash disable=SC2154,SC2013,SC2086  # the variables are install-deps.sh's, and without spaces
#
# How install-deps.sh installs, upgrades and removes the units of systemd. Those that a user edited stay as they are.

# Directory of units, and the SHA-256 of each unit ever installed: any other content is a user's edit.
readonly units=/etc/systemd/system unit_sums=$place/.nettop-units

install_services() {
  local source unit edited=() count=0
  begin 'Services'
  # Record the sums before installing the units, so that a killed run can be repeated.
  must record_units
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
    'install-deps: %s was edited and is kept. Put changes into a drop-in (systemctl edit), remove it, and run again.\n' \
    "${edited[@]}"
}

# Adds the sums of these units to those of units installed before.
record_units() {
  cd -- "$checkout/deploy/systemd" && touch $unit_sums &&
    sha256sum -- *.service | sed "s|  |  $units/|" | sort -u - $unit_sums >$unit_sums.new &&
    mv -fT $unit_sums.new $unit_sums
}

is_edited() { [[ -e $1 || -L $1 ]] && ! { [[ ! -L $1 ]] && grep -qsxF -- "$(sha256sum -- "$1")" $unit_sums; }; }

place_unit() {
  local new=$units/.${2##*/}.new
  install -D -m 644 -- "$1" "$new" && mv -fT -- "$new" "$2"
}

systemd_runs() { [[ -d /run/systemd/system ]]; }

reload_systemd() { ! systemd_runs || must systemctl daemon-reload; }

# Sets `left` to the files that stay.
remove_services() {
  local name
  [[ -f $unit_sums ]] || return 0
  for name in $(sed "s|.* $units/||" $unit_sums | sort -u); do
    if [[ -f $units/$name ]] && systemd_runs; then
      run systemctl --quiet disable --now "$name" || give_up "systemctl disable --now $name" $units
    fi
    is_edited "$units/$name" || must rm -f "$units/$name"
    must rm -f "$units/multi-user.target.wants/$name" "$units/.$name.new"
    left+=("$units/$name" "$units/$name.d" "/etc/default/${name%.service}")
  done
  mapfile -t left < <(ls -d "${left[@]}" 2>/dev/null)
  reload_systemd
}
