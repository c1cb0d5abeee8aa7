#!/bin/sh
# Installs the programs that tests start by themselves, where apt is there and may be used: PostgreSQL's server and the
# Chromium browser with its driver. Says what is missing otherwise and never fails: the tests that need it are then
# skipped. No server is started or left running.
find_server() { command -v initdb || ls /usr/lib/postgresql/*/bin/initdb; }
find_browser() { { command -v chromium || command -v google-chrome; } && command -v chromedriver; }

lacking=""
find_server > /dev/null 2>&1 || lacking="server"
find_browser > /dev/null 2>&1 || lacking="$lacking browser"
[ -n "$lacking" ] || exit 0

missing() {
  for what in $lacking; do
    case $what in
      server) echo "setup: PostgreSQL's server is missing, its tests will be skipped (Debian: apt-get install -y postgresql-15)$1" ;;
      browser) echo "setup: Chromium is missing, the tests of pages will be skipped (Debian: apt-get install -y chromium chromium-driver)$1" ;;
    esac
  done
  exit 0
}

command -v apt-get > /dev/null || missing ""
as_root=""
if [ "$(id -u)" -ne 0 ]; then
  sudo -n true 2> /dev/null || missing "; it takes root or sudo without a password"
  as_root="sudo -n"
fi

log=$(mktemp)
# Debian's package makes a cluster and starts it, unless it is told not to.
drop_in=/etc/postgresql-common/createcluster.d/spftsql.conf
trap '$as_root rm -f "$drop_in"; rm -f "$log"' EXIT
$as_root mkdir -p "${drop_in%/*}"
echo "create_main_cluster = false" | $as_root tee "$drop_in" > /dev/null
apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get "$@" < /dev/null >> "$log" 2>&1; }
updated=""
install() {
  apt install -y --no-install-recommends "$@" && return 0
  [ -z "$updated" ] || return 1
  updated=yes
  apt update
  apt install -y --no-install-recommends "$@"
}
for what in $lacking; do
  case $what in
    server)
      echo "setup: installing PostgreSQL's server for the tests"
      install postgresql-15 || install postgresql ;;
    browser)
      echo "setup: installing Chromium for the tests"
      install chromium chromium-driver fonts-dejavu-core ;;
  esac
done

lacking=""
find_server > /dev/null 2>&1 || lacking="server"
find_browser > /dev/null 2>&1 || lacking="$lacking browser"
[ -z "$lacking" ] || { tail -n 5 "$log"; missing ""; }
