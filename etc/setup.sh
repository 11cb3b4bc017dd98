#!/usr/bin/env bash
# setup.sh: makes this machine ready for `npm start` and `npm test`, which call it first. Safe to run at any time:
# what is there already is left alone, and a second run takes under a second.
#
#   1. npm packages and the build, as any user;
#   2. as root on Debian or a relative: the Debian packages below;
#   3. CRIU: the distribution's where it works on this kernel, else one built from Debian's newer source (one minute).
#
# Without root or CRIU Hakobu still runs; what is missing then is said in one line. Only a failure of npm or of the build
# makes this script fail.
set -euo pipefail

debian_packages=(
  etcd-server etcd-client  # the placement store
  runc                     # the container engine
  iproute2 nftables        # hosts as network namespaces, and cutting them off
  util-linux               # mounts, namespaces, setpriv
  python3-django gunicorn  # the application of the experiment
  curl
)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$here")
own_criu=/usr/local/lib/hakobu/criu
state=/var/cache/hakobu

say() { echo "setup: $*"; }
fail() {
  say "$*" >&2
  exit 1
}

cold="hosts run on loopback addresses with the process engine and cold starts"

# ---- 1. npm packages and the build -----------------------------------------------------------------------------------

check_node() {
  local found
  found=$(node --version 2>/dev/null) || fail "Node.js is not installed; Hakobu needs 20.11 or newer"
  node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 20 || (a === 20 && b >= 11) ? 0 : 1)' ||
    fail "Node.js $found is too old; Hakobu needs 20.11 or newer"
}

install_npm_packages() {
  local stamp=$root/node_modules/.hakobu-setup want
  want=$(sha256sum <"$root/package-lock.json")
  [[ -f $stamp && $(<"$stamp") == "$want" ]] && return
  say "installing npm packages"
  npm ci --prefix "$root" --no-audit --no-fund --loglevel=error </dev/null ||
    fail "npm ci failed (its message is above). It needs the npm registry: check the network and run this again"
  echo "$want" >"$stamp"
}

build() {
  local stamp=$root/dist/.built want
  # The content of every source, so that a removed or renamed file counts as a change too.
  want=$(cd "$root" && {
    find machines actors runtime test bench examples -name '*.ts' -print0 2>/dev/null || true
    printf '%s\0' tsconfig.json package.json package-lock.json
  } | sort -z | xargs -0 sha256sum | sha256sum)
  [[ -f $stamp && $(<"$stamp") == "$want" ]] && return
  say "building"
  rm -rf "$root/dist"
  npm run build --prefix "$root" --silent </dev/null || fail "the build failed (the compiler's messages are above)"
  echo "$want" >"$stamp"
}

# ---- 2. and 3. what only root can add --------------------------------------------------------------------------------

has_capabilities() { # the bits of capabilities(7) that namespaces and CRIU cannot do without
  local effective bit
  effective=$((16#$(awk '/^CapEff/ { print $2 }' /proc/self/status)))
  for bit in 21 19 12; do # CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN
    (((effective >> bit) & 1)) || return 1
  done
}

# What decides whether a CRIU works here: the binary, the kernel and root's capabilities. A try is not repeated for these.
situation() { # situation FILE...
  stat -L -c '%n %s %Y' "$@"
  uname -r
  grep CapEff /proc/self/status
}

criu_works() { # criu_works BINARY
  local criu=$1
  [[ -x $criu ]] || return 1
  [[ $(cat "$state/criu-works" 2>/dev/null) == "$(situation "$criu")" ]] && return
  "$here/criu/works.sh" "$criu" >"$state/criu-trial.log" 2>&1 || return 1
  situation "$criu" >"$state/criu-works"
}

provide_criu() {
  local patch_hash distributions candidate status=0
  patch_hash=$(sha256sum <"$here/criu/rlimit-without-cap-sys-resource.patch" | cut -c 1-16)
  # Ours first, as Hakobu looks for it first; one built with another patch is built again.
  if [[ -e $own_criu ]] && grep -qs "patch $patch_hash" "$own_criu.built-from" && criu_works "$own_criu"; then return; fi
  distributions=$(command -v criu || true)
  if [[ -z $distributions ]]; then
    candidate=$(apt-cache policy criu 2>/dev/null | awk '/Candidate:/ { print $2 }')
    if [[ -n $candidate && $candidate != "(none)" ]] && dpkg --compare-versions "$candidate" ge 4.0; then
      "$here/packages.sh" criu || true
      distributions=$(command -v criu || true)
    fi
  fi
  if [[ -n $distributions ]] && criu_works "$distributions"; then
    rm -f "$own_criu" "$own_criu.built-from"
    return
  fi

  local inputs=("$here/criu/build.sh" "$here/criu/works.sh" "$here/criu/rlimit-without-cap-sys-resource.patch")
  if [[ $(cat "$state/criu-failed" 2>/dev/null) == "$(situation "${inputs[@]}")" ]]; then
    say "without CRIU relocation starts containers cold; building it failed before (log: $state/criu-build.log;" \
      "to try again: rm $state/criu-failed)"
    return
  fi
  "$here/criu/build.sh" "$own_criu" || status=$?
  if ((status == 0)); then
    situation "$own_criu" >"$state/criu-works"
  else
    ((status == 3)) || situation "${inputs[@]}" >"$state/criu-failed"
    say "without CRIU relocation starts containers cold; to use one of your own set HAKOBU_CRIU=/path/to/criu"
  fi
}

prepare_machine() {
  if ((EUID != 0)); then
    say "not root: $cold; for relocation with CRIU run as root: sudo npm start"
    return
  fi
  if ! command -v apt-get >/dev/null; then
    say "no apt-get here: install etcd, runc, iproute2, nftables, criu (4.0 or newer), gunicorn and Django with this" \
      "system's package manager; without them $cold"
    return
  fi
  mkdir -p "$state"
  exec 8>"$state/lock"
  flock --wait 900 8 || fail "another set-up has held $state/lock for 15 minutes"
  "$here/packages.sh" "${debian_packages[@]}" 8>&- ||
    say "some Debian packages could not be installed (above): what needs them is left out; \`npx hakobu doctor\` tells what"
  if ! has_capabilities; then
    say "root without CAP_SYS_ADMIN, CAP_NET_ADMIN or CAP_SYS_PTRACE: $cold; in Docker use --privileged"
  elif [[ ! -e /proc/self/timers ]]; then
    say "this kernel is built without CONFIG_CHECKPOINT_RESTORE: relocation starts containers cold"
  else
    provide_criu 8>&-
  fi
}

check_node
install_npm_packages
build
prepare_machine
