#!/usr/bin/env bash
# database.sh DIR ADDRESS PORT: a MariaDB of its own for the site, in the foreground until it is ended (TERM). DIR is local to
# the database's machine; it is made at the first start, with a database and a user `wordpress` whose password is in
# DIR/password.
set -euo pipefail

if (($# != 3)); then
  echo "usage: $0 DIR ADDRESS PORT" >&2
  exit 2
fi
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [[ ! -x /usr/sbin/mariadbd ]]; then
  echo "$0: MariaDB is not installed: apt-get install mariadb-server-core mariadb-client-core" >&2
  exit 1
fi
exec 9>"$dir/.lock"
flock --nonblock 9 || {
  echo "$0: another MariaDB uses $dir" >&2
  exit 1
}
chmod 700 "$dir"
if [[ ! -s $dir/password ]]; then
  (umask 077 && od -An -N 24 -tx1 /dev/urandom | tr -d ' \n' >"$dir/password.new")
  mv "$dir/password.new" "$dir/password"
fi
if [[ ! -d $dir/data ]]; then
  rm -rf "$dir/data.new"
  # --no-defaults: nothing of a MariaDB that this machine may have.
  /usr/bin/mariadb-install-db --no-defaults --user="$(id -un)" --datadir="$dir/data.new" --skip-test-db >"$dir/install.log" 2>&1 ||
    {
      tail -n 5 "$dir/install.log" >&2
      exit 1
    }
  mv "$dir/data.new" "$dir/data"
fi
(umask 077 && cat >"$dir/init.sql") <<SQL
CREATE DATABASE IF NOT EXISTS wordpress CHARACTER SET utf8mb4;
CREATE OR REPLACE USER wordpress IDENTIFIED BY '$(<"$dir/password")';
GRANT ALL ON wordpress.* TO wordpress;
SQL
# Not the kernel's asynchronous I/O, whose few slots the machine's other databases may need.
exec /usr/sbin/mariadbd --no-defaults --user="$(id -un)" --datadir="$dir/data" --init-file="$dir/init.sql" \
  --bind-address="$2" --port="$3" --socket="$dir/socket" --pid-file="$dir/pid" \
  --skip-name-resolve --innodb-use-native-aio=0 --innodb-buffer-pool-size=64M --performance-schema=OFF
