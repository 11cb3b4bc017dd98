#!/usr/bin/env bash
# works.sh CRIU: exits with 0 when this CRIU binary can really dump and restore on this machine.
#
# `criu check` alone is not enough: it passes where the dump of another user's process is refused (root without
# CAP_SYS_RESOURCE, as in many containers), and web servers run their workers as another user. So after the check a
# sleeping process of user `nobody` is dumped and restored. Takes about a second. What failed is printed.
set -euo pipefail

criu=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/hakobu-criu.XXXXXX")
sleeper=""

finish() {
  if [[ -n $sleeper ]] && [[ $(cat "/proc/$sleeper/comm" 2>/dev/null) == sleep ]]; then
    kill -KILL "$sleeper" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT

attempt() { # attempt WHAT COMMAND...: runs it with a deadline; its last lines are shown when it fails
  local what=$1
  shift
  if ! timeout --kill-after=5 30 "$@" >"$work/output" 2>&1 </dev/null; then
    echo "$criu: $what failed"
    { grep -h "Error" "$work"/{dump,restore}.log 2>/dev/null || cat "$work/output"; } | tail -n 3
    exit 1
  fi
}

attempt "criu check" "$criu" check

mkdir "$work/images"
# A session of its own, no terminal and no open file of ours: nothing but the process itself is in the image.
(
  cd /
  exec setsid setpriv --reuid=65534 --regid=65534 --clear-groups sleep 60 </dev/null &>/dev/null
) &
sleeper=$!
disown
for _ in {1..100}; do
  [[ $(cat "/proc/$sleeper/comm" 2>/dev/null) == sleep ]] && break
  sleep 0.02
done

attempt "the dump of a process" "$criu" dump -t "$sleeper" -D "$work/images" -W "$work" -o dump.log --network-lock skip
attempt "the restore of a process" "$criu" restore -d -D "$work/images" -W "$work" -o restore.log
[[ $(cat "/proc/$sleeper/comm" 2>/dev/null) == sleep ]] || {
  echo "$criu: the restored process is not there"
  exit 1
}
