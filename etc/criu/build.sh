#!/usr/bin/env bash
# build.sh TARGET: builds CRIU from the source of a newer Debian release and installs it as the file TARGET.
#
# Needed where the distribution's CRIU is too old for the running kernel (Debian 12) or cannot dump another user's
# process (see the patch beside this file). The source comes from the Debian mirror that this machine's apt already
# uses, is checked by apt (signature and SHA-256), and no other apt setting of the machine is touched.
# Exit status: 0 installed; 3 the source or a build package could not be had (worth trying again); 1 the build failed.
set -euo pipefail

target=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
suite=forky # the first with CRIU 4.2, which kernels from 6.16 need
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
build=/var/cache/hakobu/criu-build
log=/var/cache/hakobu/criu-build.log
patch_file=$here/rlimit-without-cap-sys-resource.patch
build_packages=(
  debian-archive-keyring gcc libbsd-dev libcap-dev libgnutls28-dev libnet1-dev libnftables-dev libnl-3-dev
  libprotobuf-c-dev libprotobuf-dev make patch pkg-config protobuf-c-compiler protobuf-compiler uuid-dev
)

say() { echo "setup: $*"; }

give_up() { # give_up STATUS WHY
  say "CRIU was not built: $2"
  if [[ -s $log ]]; then
    say "the last lines of $log:"
    tail -n 5 "$log" | sed 's/^/setup:   /'
  fi
  exit "$1"
}

mkdir -p "$(dirname "$log")"
: >"$log"
rm -rf "$build"
mkdir -p "$build"/{sources,lists/partial,cache/archives/partial,source}
trap 'rm -rf "$build"' EXIT

# 1. The Debian mirror of this machine, whichever way its apt sources are written.
mirror=$(
  apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' "Created-By: Packages" 2>>"$log" |
    awk -F'|' '$1 == "Debian" && $2 == "Debian" && !found { print $3; found = 1 }'
) || true
[[ -n $mirror ]] ||
  give_up 3 "apt has no Debian archive among its sources; on Ubuntu add the PPA criu/ppa and run this again"

# 2. What the build needs.
"$here/../packages.sh" "${build_packages[@]}" || give_up 3 "its build packages could not be installed"

# 3. The source, through a private apt state: one deb-src entry.
printf 'Types: deb-src\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
  "$mirror" "$suite" "$keyring" >"$build/sources/source.sources"
private=(
  -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$build/sources"
  -o Dir::State::Lists="$build/lists" -o Dir::Cache="$build/cache" -o Acquire::Retries=3
  -o APT::Sandbox::User=root # the private folders are root's
)
apt-get "${private[@]}" update >>"$log" 2>&1 </dev/null || give_up 3 "Debian's list of sources could not be fetched"
# One line a file: 'URI' NAME SIZE SHA256:HASH. Only the upstream archive is wanted.
read -r uri archive _ hash < <(
  apt-get "${private[@]}" --print-uris source criu 2>>"$log" | grep -E '\.orig\.tar\.[a-z0-9]+ ' | head -n 1
) || true
[[ ${hash:-} == SHA256:* ]] || give_up 3 "Debian $suite lists no source for criu"
uri=${uri//\'/}
version=${archive#criu_}
version=${version%%.orig.tar.*}
say "building CRIU $version for this machine; this takes up to a minute (log: $log)"
(cd "$build" && /usr/lib/apt/apt-helper "${private[@]}" download-file "$uri" "$archive" "$hash") >>"$log" 2>&1 ||
  give_up 3 "its source could not be fetched"

# 4. Build and install.
started=$SECONDS
{
  tar -xf "$build/$archive" -C "$build/source" --strip-components=1 &&
    patch -p1 --forward -d "$build/source" <"$patch_file" &&
    nice make -C "$build/source" -j"$(nproc)" criu
} >>"$log" 2>&1 </dev/null || give_up 1 "the compiler or the patch failed"

install -D -m 755 "$build/source/criu/criu" "$target.new"
if ! why=$("$here/works.sh" "$target.new"); then
  rm -f "$target.new"
  echo "$why" >>"$log"
  give_up 1 "it builds, but does not work on this machine"
fi
mv "$target.new" "$target"
echo "CRIU $version, patch $(sha256sum <"$patch_file" | cut -c 1-16)" >"$target.built-from"
say "CRIU $version is installed as $target ($((SECONDS - started)) s)"
