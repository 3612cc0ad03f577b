#!/bin/bash
# base.sh ROOT MIRROR: make what stands here for the image debian:trixie: the root filesystem ROOT of Debian's own packages, with
# all others that our images and their tests install beside them, in ROOT/srv/debian. Its apt takes packages from there, so that
# images are built, and packages installed in containers, without a network. As root, with mmdebstrap; the packages become a
# signed repository by packaging/dev/build-repo.sh, whose options may follow.
set -euo pipefail
root=$1 mirror=$2
shift 2
top=$(cd "$(dirname "$0")/../.." && pwd)
libraries=python3,python3-websockets,python3-msgspec,python3-yaml,python3-systemd,python3-sdnotify,python3-seccomp,python3-pylibacl
# More than one set, because systemd-standalone-sysusers and systemd exclude each other. The last is what autopkgtest wants.
sets="ca-certificates,systemd,systemd-sysv,dbus,libnss-systemd,$libraries systemd-standalone-sysusers,$libraries apt-utils,dpkg-dev"
work=$(mktemp -d "${TMPDIR:-/tmp}/fuse-gated-base.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/pool"
# shellcheck disable=SC2016
mmdebstrap --quiet --variant=minbase \
  --customize-hook='for set in '"$sets"'; do
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq --yes --download-only install $(echo "$set" | tr , " ") >&2
  done
  cp "$1"/var/cache/apt/archives/*.deb "'"$work"'/pool"' \
  trixie "$root" "$mirror"
SIGNING_HOME=$work/key "$top/packaging/dev/build-repo.sh" "$@" --output "$root/srv/debian" "$work"/pool/*.deb >/dev/null
rm -f "$root/etc/apt/sources.list"
printf 'Types: deb\nURIs: file:/srv/debian\nSuites: ./\nSigned-By: /srv/debian/fuse-gated.gpg\n' \
  >"$root/etc/apt/sources.list.d/debian.sources"
