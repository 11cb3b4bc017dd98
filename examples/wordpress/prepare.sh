#!/usr/bin/env bash
# prepare.sh DIR: makes DIR, the directory that all hosts share, ready for the site: WordPress' configuration, the directory of
# uploads, and, in the database, WordPress' tables with ten posts. Needs root. What is there already is left alone; a second run
# takes a few milliseconds.
#   HAKOBU_DB_HOST      address:port of the database (database.sh starts one)
#   HAKOBU_DB_PASSWORD  of its user `wordpress`
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if (($# != 1)) || [[ -z ${HAKOBU_DB_HOST:-} || -z ${HAKOBU_DB_PASSWORD:-} ]]; then
  echo "usage: HAKOBU_DB_HOST=address:port HAKOBU_DB_PASSWORD=... $0 DIR" >&2
  exit 2
fi
mkdir -p "$1"/{etc,uploads}
dir=$(cd "$1" && pwd)
if [[ ! -f /usr/share/wordpress/wp-load.php || ! -f /usr/lib/apache2/modules/libphp8.2.so ]]; then
  echo "$0: WordPress is not installed: apt-get install wordpress wordpress-theme-twentytwentythree apache2" \
    "libapache2-mod-php8.2 php8.2-mysql mariadb-client-core" >&2
  exit 1
fi

exec 9>"$dir/.lock"
flock --wait 120 9

chown www-data:www-data "$dir/uploads"
config=$dir/etc/config-default.php
if [[ ! -s $dir/salt ]]; then
  (umask 077 && od -An -N 48 -tx1 /dev/urandom | tr -d ' \n' >"$dir/salt")
fi
# The same on every host. The site is called what its visitors call it, by whichever host name they come.
cat >"$config.new" <<PHP
<?php
define('DB_HOST', '$HAKOBU_DB_HOST');
define('DB_NAME', 'wordpress');
define('DB_USER', 'wordpress');
define('DB_PASSWORD', '$HAKOBU_DB_PASSWORD');
define('WP_HOME', 'http://' . (\$_SERVER['HTTP_HOST'] ?? 'wordpress.localhost'));
define('WP_SITEURL', WP_HOME);
define('DISABLE_WP_CRON', true);
define('WP_HTTP_BLOCK_EXTERNAL', true);
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as \$name) {
    define(\$name . '_KEY', hash('sha256', '$(<"$dir/salt")' . \$name));
    define(\$name . '_SALT', hash('sha256', \$name . '$(<"$dir/salt")'));
}
PHP
chown root:www-data "$config.new"
chmod 640 "$config.new"
if cmp --silent "$config.new" "$config"; then rm "$config.new"; else mv "$config.new" "$config"; fi

posts=$(MYSQL_PWD=$HAKOBU_DB_PASSWORD mariadb --no-defaults --host="${HAKOBU_DB_HOST%:*}" --port="${HAKOBU_DB_HOST##*:}" \
  --protocol=tcp --user=wordpress --batch --skip-column-names wordpress \
  --execute="SELECT COUNT(*) FROM wp_posts WHERE post_type = 'post'" 2>/dev/null) || posts=0
((posts < 10)) || exit 0
# In a mount namespace in which Debian's configuration directory is that of the site, as in the container.
# shellcheck disable=SC2016 # $1 and $2 are the inner shell's
HTTP_HOST=wordpress.localhost unshare --mount --propagation private /bin/sh -ec \
  'mount --bind "$1/etc" /etc/wordpress && exec /usr/bin/php -d variables_order=EGPCS "$2/install.php"' sh "$dir" "$here"
