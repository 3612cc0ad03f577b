#!/bin/bash
# build-rpm.sh [--root ROOT] [--output DIR] [--release NUMBER] [-- OPTION...]: build the rpm packages from a clean copy of the
# tree, and put them into DIR (build/); OPTIONs go to rpmbuild. On Fedora or a relative with the build dependencies
# (packaging/rpm/fuse-gated.spec); or on Debian 13, or elsewhere in ROOT, a Debian 13 root filesystem that
# packaging/dev/build-root.sh made, with packaging/rpm/macros.
set -euo pipefail
root="" output="" release=1
top=$(cd "$(dirname "$0")/../.." && pwd)
while [ $# -gt 0 ]; do
  case $1 in
    --root) root=$2 ;;
    --output) output=$2 ;;
    --release) release=$2 ;;
    --) shift; break ;;
    *) echo "build-rpm: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
output=${output:-$top/build}
mkdir -p "$output"
scratch=$(mktemp -d "${TMPDIR:-/tmp}/fuse-gated-rpm.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
version=$(sed -n 's/^Version: *//p' "$top/packaging/rpm/fuse-gated.spec")
mkdir "$scratch/SOURCES"
"$top/packaging/dev/copy-source.sh" "$scratch/fuse-gated-$version"
cp "$scratch/fuse-gated-$version/packaging/rpm/"* "$scratch"
cp "$scratch/fuse-gated-$version/systemd/fuse-gated.sysusers" "$scratch/SOURCES"
tar -C "$scratch" --remove-files -czf "$scratch/SOURCES/fuse-gated-$version.tar.gz" "fuse-gated-$version"

build='
unset PYTHONPATH VIRTUAL_ENV MAKEFLAGS MAKELEVEL
PATH=/usr/sbin:/usr/bin:/sbin:/bin
# Where the packages that are built against are not rpms, their names are of no use.
[ "$(rpm --eval %_unitdir)" != %_unitdir ] ||
  set -- --macros "$(rpm --showrc | sed -n "s/^Macro path: //p"):$PWD/macros" --nodeps "$@"
exec rpmbuild -ba --define "_topdir $PWD" "$@" fuse-gated.spec'
if [ -n "$root" ]; then
  "$top/packaging/dev/in-root.sh" "$root" "$scratch" sh -c "$build" sh --define "baserelease $release" "$@"
else
  (cd "$scratch" && sh -c "$build" sh --define "baserelease $release" "$@")
fi
find "$output" -maxdepth 1 -name '*fuse-gated*.rpm' -delete
cp "$scratch"/RPMS/noarch/*.rpm "$scratch"/SRPMS/*.rpm "$output"
ls -l "$output"/*.rpm
