#!/usr/bin/env bash
# setup.sh: makes this machine ready for `npm start` and `npm test`, which call it first. Safe to run at any time:
# what is there already is left alone, and a second run takes under a second.
#
#   1. npm packages and the build, as any user;
#   2. as root on Debian or a relative: the Debian packages below;
#   3. CRIU: the distribution's where it works on this kernel, else one built from Debian's newer source (one minute).
#
# Without root or CRIU Hakobu still runs; what is missing then is said in one line. Only a failure of npm or of the
# build makes this script fail.
set -euo pipefail

debian_packages=(
  etcd-server etcd-client  # the placement store
  runc                     # the container engine
  iproute2 nftables        # hosts as network namespaces, and cutting them off
  util-linux               # mounts, namespaces, setpriv
  python3-django gunicorn  # the application of the experiment
  curl                     # asking a container by hand
  faketime                 # tests that set the clock
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
  node -e 'const [a, b] = process.versions.node.split("."); process.exit(a > 20 || (a == 20 && b >= 11) ? 0 : 1)' ||
    fail "Node.js $found is too old; Hakobu needs 20.11 or newer"
}

alone() { # alone FD FILE: waits until no other set-up holds FILE, for 15 minutes at most
  flock -n "$1" && return
  say "another set-up is running; waiting for it"
  flock -w 900 "$1" || fail "another set-up has held $2 for 15 minutes"
}

keep_owner() { # after `sudo npm start` the next `npm test` without sudo must be able to write here again
  ((EUID != 0)) || chown -R --reference="$root/package.json" "$@"
}

# Not `npm ci`: it refuses a lock file without the optional binaries of other platforms, and a partial mirror of the npm
# registry leaves those out. This installs the same locked versions, with the same integrity checks.
install_npm_packages() {
  local stamp=$root/node_modules/.hakobu-setup want
  want=$(cat "$root/package.json" "$root/package-lock.json" | sha256sum)
  [[ -f $stamp && $(<"$stamp") == "$want" ]] && return
  say "installing npm packages"
  npm install --prefix "$root" --no-save --no-audit --no-fund --no-update-notifier --loglevel=error \
    </dev/null >/dev/null ||
    fail "npm could not install the packages (its message is above); it needs the npm registry: check the network," \
      "then run this again"
  echo "$want" >"$stamp"
  keep_owner "$root/node_modules"
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
  npm run build --prefix "$root" --no-update-notifier --silent </dev/null ||
    fail "the build failed (the compiler's messages are above)"
  echo "$want" >"$stamp"
  keep_owner "$root/dist"
}

# ---- 2. and 3. what only root can add --------------------------------------------------------------------------------

has_capabilities() { # the bits of capabilities(7) that namespaces and CRIU cannot do without
  local effective bit
  effective=$((16#$(awk '/^CapEff/ { print $2 }' /proc/self/status)))
  for bit in 21 19 12; do # CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_NET_ADMIN
    (((effective >> bit) & 1)) || return 1
  done
}

# What decides whether a CRIU works here: the files it is (made of), the kernel and root's capabilities.
situation() { # situation FILE...
  stat -L -c '%n %s %Y' "$@"
  uname -r
  grep CapEff /proc/self/status
}

criu_works() { # criu_works BINARY
  local criu=$1
  [[ -x $criu ]] || return 1
  if [[ $(cat "$state/criu-works" 2>/dev/null) == "$(situation "$criu")" ]] && "$criu" check &>/dev/null; then
    return
  fi
  "$here/criu/works.sh" "$criu" >"$state/criu-trial.log" 2>&1 || return 1
  situation "$criu" >"$state/criu-works"
}

provide_criu() {
  local patch_hash distributions candidate status=0
  if [[ -n ${HAKOBU_CRIU:-} ]]; then
    criu_works "$HAKOBU_CRIU" || say "HAKOBU_CRIU=$HAKOBU_CRIU does not work on this machine: relocation starts" \
      "containers cold; to have setup choose one: unset HAKOBU_CRIU"
    return
  fi
  patch_hash=$(sha256sum <"$here/criu/rlimit-without-cap-sys-resource.patch" | cut -c 1-16)
  # Ours first, as Hakobu looks for it first; one built with another patch is built again.
  if grep -qs "patch $patch_hash" "$own_criu.built-from" && criu_works "$own_criu"; then return; fi
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

  local without="without CRIU relocation starts containers cold"
  if criu_works "$own_criu"; then without="the CRIU that was built earlier is used"; fi
  local inputs=("$here/criu/build.sh" "$here/criu/works.sh" "$here/criu/rlimit-without-cap-sys-resource.patch")
  if [[ $(cat "$state/criu-failed" 2>/dev/null) == "$(situation "${inputs[@]}")" ]]; then
    say "$without; building it failed before (log: $state/criu-build.log; to try again: rm $state/criu-failed)"
    return
  fi
  "$here/criu/build.sh" "$own_criu" || status=$?
  if ((status == 0)); then
    situation "$own_criu" >"$state/criu-works"
  else
    ((status == 3)) || situation "${inputs[@]}" >"$state/criu-failed"
    say "$without; to use one of your own set HAKOBU_CRIU=/path/to/criu"
  fi
}

prepare_machine() {
  if ((EUID != 0)); then
    say "not root: $cold; for relocation with CRIU run as root: sudo npm start"
    return
  fi
  if ! command -v apt-get >/dev/null; then
    local program missing=()
    for program in etcd runc ip nft criu gunicorn; do
      command -v "$program" >/dev/null || missing+=("$program")
    done
    ((${#missing[@]} == 0)) ||
      say "no apt-get here: install ${missing[*]} with this system's package manager; without them $cold"
    return
  fi
  mkdir -p "$state"
  exec 8>"$state/lock"
  alone 8 "$state/lock"
  "$here/packages.sh" "${debian_packages[@]}" 8>&- ||
    say "going on without them; to see what that leaves out: npx hakobu doctor"
  if ! has_capabilities; then
    say "root without CAP_SYS_ADMIN, CAP_NET_ADMIN or CAP_SYS_PTRACE: $cold; in Docker use --privileged"
  elif [[ ! -e /proc/self/timers ]]; then
    say "this kernel is built without CONFIG_CHECKPOINT_RESTORE: relocation starts containers cold"
  else
    provide_criu 8>&-
  fi
}

if [[ -f $root/tsconfig.json ]]; then # a source tree, not an installed package
  check_node
  exec 9<"${BASH_SOURCE[0]}"
  alone 9 "$root"
  install_npm_packages
  build
  exec 9<&-
fi
prepare_machine
