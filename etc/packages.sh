#!/usr/bin/env bash
# packages.sh NAME...: installs those of the named Debian packages that are missing. Needs root.
#
# Says one line when it installs something. Installing etcd-server must not start a service on this machine, so unless
# the machine has a policy-rc.d of its own, one that refuses every start stands there for the time of the install.
set -euo pipefail

missing=()
# dpkg-query exits with 1 when it knows nothing of one of the names.
installed=$({ dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true; } |
  awk '$2 == "installed" { print $1 }')
for name in "$@"; do
  grep -qxF -- "$name" <<<"$installed" || missing+=("$name")
done
((${#missing[@]})) || exit 0

echo "setup: installing Debian packages: ${missing[*]}"
log=$(mktemp "${TMPDIR:-/tmp}/hakobu-apt.XXXXXX")
policy=/usr/sbin/policy-rc.d
placed=""
finish() {
  [[ -z $placed ]] || rm -f "$policy"
  rm -f "$log"
}
trap finish EXIT
if [[ ! -e $policy ]]; then
  placed=yes
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
options=(-y --no-install-recommends -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o APT::Color=0)
# One apt source of many may be out of reach without harm, so only the install decides.
apt-get "${options[@]}" update >"$log" 2>&1 </dev/null || true
apt-get "${options[@]}" install "${missing[@]}" >>"$log" 2>&1 </dev/null && exit 0

# One name that this release does not have must not keep the others away.
failed=()
for name in "${missing[@]}"; do
  apt-get "${options[@]}" install "$name" >>"$log" 2>&1 </dev/null || failed+=("$name")
done
((${#failed[@]})) || exit 0
echo "setup: apt-get could not install ${failed[*]}. Its last errors:"
grep -E '^(E|W|Err)[: ]' "$log" | tail -n 5 | sed 's/^/setup:   /'
exit 1
