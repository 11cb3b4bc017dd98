#!/usr/bin/env bash
# prepare.sh DIR: makes DIR, the directory that all hosts share, ready for the site: its secret key, the locked versions of the
# installed gems, the database's tables with 1,000 entries, and bootsnap's cache. What is there already is left alone; a second
# run takes a few milliseconds.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if (($# != 1)); then
  echo "usage: $0 DIR" >&2
  exit 2
fi
mkdir -p "$1"
DATA_DIR=$(cd "$1" && pwd)

exec 9>"$DATA_DIR/.lock"
flock --wait 120 9

# The gems are those of Debian, so an upgrade of one means another lock file.
stamp=$DATA_DIR/.prepared
want=$(cd "$here" && sha256sum Gemfile db/seeds.rb db/migrate/*.rb && find /usr/share/rubygems-integration -name '*.gemspec' | sort | sha256sum)
[[ -s $DATA_DIR/guestbook.sqlite3 && -f $stamp && $(<"$stamp") == "$want" ]] && exit

if ! /usr/bin/ruby -e 'gem "rails"; gem "puma"; gem "sqlite3"; gem "bootsnap"' 2>/dev/null || [[ ! -x /usr/bin/bundle ]]; then
  echo "$0: Rails is not installed: apt-get install ruby-rails bundler puma ruby-sqlite3 ruby-bootsnap" >&2
  exit 1
fi
if [[ ! -s $DATA_DIR/secret-key ]]; then
  (umask 077 && /usr/bin/ruby -rsecurerandom -e 'puts SecureRandom.hex(64)' >"$DATA_DIR/secret-key.new")
  mv "$DATA_DIR/secret-key.new" "$DATA_DIR/secret-key"
fi
cp "$here/Gemfile" "$DATA_DIR/Gemfile"
rm -f "$DATA_DIR/Gemfile.lock"
# Bundler wants a home that it can write to, and says so at every run by root.
export DATA_DIR HOME=$DATA_DIR BUNDLE_SILENCE_ROOT_WARNING=1 LANG=C.UTF-8 RAILS_ENV=production
export BUNDLE_GEMFILE=$DATA_DIR/Gemfile BOOTSNAP_CACHE_DIR=$DATA_DIR/cache
cd "$here"
/usr/bin/bundle lock --local >/dev/null
/usr/bin/bundle exec rake db:migrate db:seed >/dev/null
echo "$want" >"$stamp"
