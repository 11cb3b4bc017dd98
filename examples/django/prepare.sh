#!/usr/bin/env bash
# prepare.sh DIR: makes DIR, the directory that all hosts share, ready for the site: its secret key, the database's tables and
# 1,000 entries. What is there already is left alone; a second run takes a few milliseconds.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if (($# != 1)); then
  echo "usage: $0 DIR" >&2
  exit 2
fi
mkdir -p "$1"
DATA_DIR=$(cd "$1" && pwd)
export DATA_DIR PYTHONDONTWRITEBYTECODE=1

exec 9>"$DATA_DIR/.lock"
flock --wait 60 9

stamp=$DATA_DIR/.prepared
want=$(cd "$here" && sha256sum guestbook/models.py guestbook/migrations/*.py guestbook/management/commands/seed.py)
[[ -s $DATA_DIR/guestbook.sqlite3 && -f $stamp && $(<"$stamp") == "$want" ]] && exit

if ! /usr/bin/python3 -c 'import django' 2>/dev/null; then
  echo "$0: Django is not installed: apt-get install python3-django gunicorn" >&2
  exit 1
fi
if [[ ! -s $DATA_DIR/secret-key ]]; then
  (umask 077 && /usr/bin/python3 -c 'import secrets; print(secrets.token_urlsafe(50))' >"$DATA_DIR/secret-key.new")
  mv "$DATA_DIR/secret-key.new" "$DATA_DIR/secret-key"
fi
cd "$here"
/usr/bin/python3 manage.py migrate --verbosity 0
/usr/bin/python3 manage.py seed --entries 1000
echo "$want" >"$stamp"
