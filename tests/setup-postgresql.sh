#!/bin/sh
# Installs the PostgreSQL server that tests start by themselves, where apt is there and may be used. Says what is
# missing otherwise and never fails: the tests that need it are then skipped. No server is started or left running.
find_server() { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; }
missing() { echo "setup: PostgreSQL's server is missing, its tests will be skipped (Debian: apt-get install -y postgresql-15)$1"; exit 0; }

find_server > /dev/null 2>&1 && exit 0
command -v apt-get > /dev/null || missing ""
as_root=""
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2> /dev/null || missing "; it takes root or sudo without a password"
  as_root="sudo -n"
fi

echo "setup: installing PostgreSQL's server for the tests"
log=$(mktemp)
# Debian's package makes a cluster and starts it, unless it is told not to.
drop_in=/etc/postgresql-common/createcluster.d/spftsql.conf
trap '$as_root rm -f "$drop_in"; rm -f "$log"' EXIT
$as_root mkdir -p "${drop_in%/*}"
echo "create_main_cluster = false" | $as_root tee "$drop_in" > /dev/null
install() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1" < /dev/null >> "$log" 2>&1; }
install postgresql-15 || { $as_root apt-get update < /dev/null >> "$log" 2>&1; install postgresql-15 || install postgresql; }
find_server > /dev/null 2>&1 || { tail -n 5 "$log"; missing ""; }
