#!/bin/sh
# prepare.sh DIR [demo]: everything that `make demo` and `make test` need, on Debian 12 or 13 (or their relatives).
# As root it installs missing packages; as another user it says which ones are missing. Then it makes a virtual environment in
# DIR with what pyproject.toml names. With `demo` only what the tour needs. Run again, it does nothing but look.
set -eu
venv=$1 what=${2:-test}
top=$(cd "$(dirname "$0")/../.." && pwd)

# The package, and a command or file by which one sees that it is there.
needed="
fuse3:fusermount3
git:git
gcc:gcc
make:make
"
[ "$(id -u)" = 0 ] || needed="$needed
libfuse2:/usr/lib/$(uname -m)-linux-gnu/libfuse.so.2
"
[ "$what" = demo ] && [ "$(id -u)" != 0 ] || needed="$needed
python3-dev:python3-config
pkg-config:pkg-config
libacl1-dev:/usr/include/sys/acl.h
libsystemd-dev:/usr/include/systemd/sd-journal.h
libseccomp2:/usr/lib/$(uname -m)-linux-gnu/libseccomp.so.2
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
missing=""
for entry in $needed; do
  package=${entry%%:*} sign=${entry#*:}
  case $sign in /*) [ -e "$sign" ] ;; *) command -v "$sign" >/dev/null ;; esac || missing="$missing $package"
done
case $missing in *libfuse2*) apt-cache show libfuse2t64 >/dev/null 2>&1 && missing=$(echo "$missing" | sed 's/libfuse2/libfuse2t64/') ;; esac
if [ -n "$missing" ]; then
  if [ "$(id -u)" != 0 ]; then
    echo "prepare: missing packages; as root: apt-get install$missing" >&2
    exit 1
  fi
  echo "prepare: installing$missing"
  apt-get update -qq
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

python=""
for candidate in python3 python3.13 python3.12 python3.11; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  [ "$(id -u)" = 0 ] || { echo "prepare: Python 3.11 or later with venv is missing; as root: apt-get install python3-venv" >&2; exit 1; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null
  python=python3
fi

extras=server,test
if [ "$what" = demo ]; then
  extras=server
  [ "$(id -u)" = 0 ] || extras=user
fi
stamp="$venv/.prepared-$(echo "$extras" | tr , -)-$(cksum <"$top/pyproject.toml" | tr ' ' -)"
if [ ! -e "$stamp" ]; then
  echo "prepare: making $venv"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$top[$extras]"
  # What is run is the checkout, not the copy that came with its dependencies.
  "$venv/bin/python" -m pip uninstall --quiet --yes fuse-gated
  touch "$stamp"
fi
