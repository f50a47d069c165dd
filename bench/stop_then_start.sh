#!/usr/bin/env bash
# What one would do without an agent: start a VM; when told to, press its power button, wait until
# it is gone, start the other.
#
#   stop_then_start.sh OLD NEW     each a file with QEMU's whole command, an argument a line
#   stdin    a line: change over now; its end: kill what runs
#   stdout   "pressed T", "gone T", "started T": seconds of the wall clock
#
# The VMs die with the script.
set -euo pipefail
LC_ALL=C

tell() { printf '%s %s\n' "$1" "$EPOCHREALTIME"; }

press() {
  printf '%s\n' '{"execute":"qmp_capabilities"}' >&"$qmp"
  while printf '%s\n' '{"execute":"system_powerdown"}' >&"$qmp"; do
    sleep 5 # a guest that is busy may miss it
  done
}

mapfile -t old <"$1"
mapfile -t new <"$2"

coproc OLD { exec setpriv --pdeathsig KILL -- "${old[@]}" -qmp stdio 2>/dev/null; }
old_pid=$OLD_PID
exec {qmp}>&"${OLD[1]}"

read -r
tell pressed
press >/dev/null 2>&1 &
pressing=$!
wait "$old_pid"
tell gone
kill "$pressing" 2>/dev/null || true
exec {qmp}>&-

tell started
setpriv --pdeathsig KILL -- "${new[@]}" </dev/null >/dev/null 2>&1 &
new_pid=$!

read -r || true
kill -KILL "$new_pid"
