#!/usr/bin/env bash
# setup.sh: the Debian packages of the four applications. What the applications keep in their data directories the benchmark
# prepares itself (prepare.sh of each example), since WordPress needs its database running for that.
set -euo pipefail

packages=(
  apache2 libapache2-mod-php8.2 php8.2-mysql wordpress wordpress-theme-twentytwentythree # WordPress
  mariadb-server-core mariadb-client-core                                              # its database, no service
  ruby-rails bundler puma ruby-sqlite3 ruby-bootsnap                                   # Rails
  python3-django gunicorn                                                              # Django
)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ((EUID != 0)); then
  echo "setup: the benchmark of relocation needs root (namespaces, CRIU): sudo npm run bench:relocation" >&2
  exit 1
fi
exec "$here/../../etc/packages.sh" "${packages[@]}"
