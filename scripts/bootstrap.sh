# Sourced by the scripts: what they need on a bare Debian 12+ or Ubuntu 24.04+, and the environment.
#
# need_packages PACKAGE...   installs what is missing as root or by passwordless sudo; otherwise
#                            prints the one command to run and exits 2
# make_venv [KIND [DIR]]     .venv with the project in it: what requirements/KIND.txt (agent.txt) locks,
#                            brought up to date when that or pyproject.toml changes
# pip_locked PYTHON FILE...  installs what these files lock: wheels alone, each by its hash
# build_wheel TREE OUT       the wheel of a copy of the sources, by the build backend that is locked
# reload_link_managers       has the host's link managers read their configuration again
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

pip_locked() {
  local python=$1 file arguments=()
  shift
  for file in "$@"; do arguments+=(-r "$root_dir/requirements/$file.txt"); done
  "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
    "${pip_options[@]}" "${arguments[@]}"
}
pip_options=()

# made_from KIND: what an environment of this kind is made from, in one line
made_from() {
  local files
  files=$(cat "$root_dir"/pyproject.toml "$root_dir"/requirements/{"$1",build}.txt | sha256sum | cut -d' ' -f1)
  printf '%s %s %s\n' "$files" "$1" "$root_dir"
}

make_venv() {
  local kind=${1:-agent} venv=${2:-$root_dir/.venv} made
  made=$(cat "$venv/.made-from" 2>/dev/null || true)
  if [ -x "$venv/bin/python" ]; then
    [ "$made" != "$(made_from "$kind")" ] || return 0
    [ "$kind" != agent ] || [ "$made" != "$(made_from dev)" ] || return 0 # more than asked for
  fi
  say "making or mending the virtual environment ${venv#"$root_dir"/} ($kind)"
  if ! "$venv/bin/python" -c '' 2>/dev/null; then
    rm -rf "$venv"
    "$(find_python)" -m venv "$venv"
  fi
  pip_locked "$venv/bin/python" build "$kind"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    -e "$root_dir"
  made_from "$kind" >"$venv/.made-from"
}

build_wheel() {
  local venv
  venv=$(mktemp -d)
  "$(find_python)" -m venv "$venv"
  pip_locked "$venv/bin/python" build
  "$venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-index \
    --no-build-isolation -w "$2" "$1"
  rm -rf "$venv"
}

# sources TO: a copy of what a wheel is built from; a build writes beside the sources
sources() {
  tar -C "$root_dir" --exclude=__pycache__ -cf - pyproject.toml README.md LICENSE agent | tar -xf - -C "$1"
}
