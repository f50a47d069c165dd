# Sourced by the scripts: what they need on a bare Debian 12+ or Ubuntu 24.04+, and the environment.
#
# need_packages PACKAGE...   installs what is missing as root or by passwordless sudo; otherwise
#                            prints the one command to run and exits 2
# reload_link_managers       has the host's link managers read their configuration again
# make_venv [EXTRAS]         .venv with the project in it, brought up to date when pyproject.toml changes
# shellcheck shell=bash

root_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export root_dir

say() { printf '%s\n' "$*" >&2; }

need_packages() {
  local missing=() package
  for package in "$@"; do
    # shellcheck disable=SC2016
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local install="apt-get install -y --no-install-recommends ${missing[*]}"
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if ! sudo -n true 2>/dev/null; then
      say "These packages are missing. Run this once, then run this script again:"
      say "  sudo apt-get update && sudo $install"
      exit 2
    fi
    as_root=(sudo -n)
  fi
  say "installing: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${as_root[@]}" apt-get update &&
    # shellcheck disable=SC2086
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $install; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    say "could not install ${missing[*]}"
    exit 2
  fi
  rm -f "$log"
}

# What systemd-networkd and NetworkManager are to leave alone is read by them at once.
reload_link_managers() {
  if systemctl --quiet is-active systemd-networkd.service; then networkctl reload || true; fi
  if systemctl --quiet is-active NetworkManager.service; then
    systemctl reload NetworkManager.service || true
  fi
}

find_python() {
  # The distribution's own comes first: an unprivileged user can run it too.
  local candidate
  for candidate in /usr/bin/python3 python3.13 python3.12 python3.11 python3; do
    if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  say "Python 3.11 or newer with venv is needed"
  exit 2
}

make_venv() {
  local extras=${1:-} stamp want
  stamp="$root_dir/.venv/.made-from"
  want="$(sha256sum <"$root_dir/pyproject.toml" | cut -d' ' -f1) ${extras:-plain} $root_dir"
  if [ -x "$root_dir/.venv/bin/python" ] && [ -f "$stamp" ]; then
    case "$(cat "$stamp")" in
    "$want") return 0 ;;
    "${want/ plain / dev }") return 0 ;; # more than asked for
    esac
  fi
  say "making or mending the virtual environment .venv${extras:+ [$extras]}"
  if ! "$root_dir/.venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$root_dir/.venv"
    "$(find_python)" -m venv "$root_dir/.venv"
  fi
  "$root_dir/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    -e "$root_dir${extras:+[$extras]}"
  printf '%s\n' "$want" >"$stamp"
}
