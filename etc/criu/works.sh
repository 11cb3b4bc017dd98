#!/usr/bin/env bash
# works.sh CRIU: exits with 0 when this CRIU binary can really dump and restore on this machine.
#
# `criu check` alone is not enough: it passes where the dump of another user's process is refused (root without
# CAP_SYS_RESOURCE, as in many containers), and where a socket has an option less than CRIU expects (CRIU before 4.2 on
# kernels from 6.16). So after the check a process of user `nobody` that listens on TCP for two seconds is dumped,
# restored and waited for. What failed is printed.
set -euo pipefail

criu=$1
work=$(mktemp -d "${TMPDIR:-/tmp}/hakobu-criu.XXXXXX")
trap 'rm -rf "$work"' EXIT

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

# A session of its own, no terminal, and no open file of ours or of who called us: only the process is in the image.
mkdir "$work/images"
(
  cd /
  for fd in /proc/self/fd/*; do
    fd=${fd##*/}
    if ((fd > 2)); then exec {fd}>&-; fi
  done
  exec setsid setpriv --reuid=65534 --regid=65534 --clear-groups \
    perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die; sleep 2' </dev/null &>/dev/null
) &
sleeper=$!
disown # the dump kills it, and bash shall not report that
for _ in {1..100}; do
  [[ -n $(find "/proc/$sleeper/fd" -lname 'socket:*' 2>/dev/null) ]] && break
  sleep 0.01
done

attempt "the dump of a process" "$criu" dump -t "$sleeper" -D "$work/images" -W "$work" -o dump.log --network-lock skip
# Not detached: CRIU stays its parent and ends when the sleep ends, so no process is left behind.
attempt "the restore of a process" "$criu" restore -D "$work/images" -W "$work" -o restore.log
