#!/bin/sh
# prepare.sh DIR [demo]: everything that `make demo` and `make test` need, on Debian 12 or 13 (or their relatives).
# As root it installs missing packages; as another user it says which ones are missing. Then it makes a virtual environment in
# DIR with what pyproject.toml names. With `demo` only what the tour needs. Run again, it does nothing but look.
set -eu
venv=$1 what=${2:-test}
top=$(cd "$(dirname "$0")/../.." && pwd)
root() { [ "$(id -u)" = 0 ]; }
stop() {
  echo "prepare: $*" >&2
  exit 1
}

# The package, and a command or file by which one sees that it is there.
libraries=/usr/lib/$(uname -m)-linux-gnu
needed="
fuse3:fusermount3
git:git
gcc:gcc
libc6-dev:/usr/include/stdio.h
make:make
libseccomp2:$libraries/libseccomp.so.2
"
root || needed="$needed
libfuse2:$libraries/libfuse.so.2
"
[ "$what" = demo ] && ! root || needed="$needed
python3-dev:python3-config
pkg-config:pkg-config
libacl1-dev:/usr/include/sys/acl.h
libsystemd-dev:/usr/include/systemd/sd-journal.h
"
[ "$what" = demo ] || needed="$needed
acl:setfacl
attr:setfattr
iproute2:ip
openssl:openssl
openssh-sftp-server:/usr/lib/openssh/sftp-server
rsync:rsync
sqlite3:sqlite3
sshfs:sshfs
systemd:/lib/systemd/systemd-journald
util-linux:unshare
"
find_python() {
  for python in python3 python3.13 python3.12 python3.11; do
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
  done
  python=""
}
missing=""
for entry in $needed; do
  package=${entry%%:*} sign=${entry#*:}
  case $sign in /*) [ -e "$sign" ] ;; *) command -v "$sign" >/dev/null ;; esac || missing="$missing $package"
done
find_python
[ -n "$python" ] || missing="$missing python3 python3-venv"
case $missing in *libfuse2*) apt-cache show libfuse2t64 >/dev/null 2>&1 && missing=$(echo "$missing" | sed 's/libfuse2/libfuse2t64/') ;; esac
if [ -n "$missing" ]; then
  command -v apt-get >/dev/null || stop "missing is what Debian calls$missing (Python 3.11 or later); install it and start again"
  root || stop "packages are missing. As root:

    apt-get update && apt-get install --no-install-recommends$missing

then start this again, as yourself."
  echo "prepare: installing$missing"
  # shellcheck disable=SC2086
  said=$({ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing; } 2>&1) ||
    stop "apt-get failed:
$said"
  find_python
fi
[ -n "$python" ] || stop "Python 3.11 or later is needed; this machine has $(python3 --version 2>&1)"

extras=server,test
if [ "$what" = demo ]; then
  extras=server
  root || extras=user
fi
list_of() {
  "$venv/bin/python" -c '
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print(*project["dependencies"], *(one for extra in sys.argv[2].split(",") for one in project["optional-dependencies"][extra]), sep="\n")
' "$top/pyproject.toml" "$1"
}
sum=$(cksum <"$top/pyproject.toml" | tr ' ' -)
stamp="$venv/.prepared-$(echo "$extras" | tr , -)-$sum"
if [ ! -e "$stamp" ]; then
  for place in "$venv" "$(dirname "$venv")"; do
    [ ! -e "$place" ] || [ -w "$place" ] || stop "we may not write to $place; choose another place: make $what VENV=DIRECTORY"
    [ ! -e "$place" ] || break
  done
  echo "prepare: fetching what pyproject.toml names into $venv (about half a minute, once)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  # What is run is the checkout: only what it depends on is installed. --use-pep517, because pip warns of the older way.
  list_of "$extras" >"$venv/requirements"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --use-pep517 -r "$venv/requirements" ||
    stop "pip could not fetch or build what is listed in $venv/requirements; it says why above.
It needs a way to the index of Python packages: its own, another one (PIP_INDEX_URL), or through a proxy (https_proxy)."
  touch "$stamp"
fi
# Large, and not what the product needs: without them their tests are skipped (CI=true: fail).
stamp="$venv/.prepared-frames-$sum"
if [ "$what" = test ] && [ ! -e "$stamp" ]; then
  if list_of test-frames | "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: -r /dev/stdin; then
    touch "$stamp"
  else
    echo "prepare: without dask and duckdb sessions without a mount are tested with pandas alone"
  fi
fi
