#!/bin/bash
# build-deb.sh [--root ROOT] [--output DIR] [--version VERSION]: build the Debian packages from a clean copy of the tree, and put
# them into DIR (build/). On Debian 13 with the build dependencies (debian/control); elsewhere in ROOT, a root filesystem that
# packaging/dev/build-root.sh made. With --version the packages call themselves so: for upgrades in tests.
set -euo pipefail
root="" output="" version=""
top=$(cd "$(dirname "$0")/../.." && pwd)
while [ $# -gt 0 ]; do
  case $1 in
    --root) root=$2 ;;
    --output) output=$2 ;;
    --version) version=$2 ;;
    *) echo "build-deb: unknown option $1" >&2; exit 2 ;;
  esac
  shift 2
done
output=${output:-$top/build}
mkdir -p "$output"
scratch=$(mktemp -d "${TMPDIR:-/tmp}/fuse-gated-deb.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
"$top/packaging/dev/copy-source.sh" "$scratch/source"
if [ -n "$version" ]; then
  changelog=$scratch/source/debian/changelog
  entry=$(sed "1s/(.*)/($version)/; s/^\( -- .*>  \).*/\1$(date -R)/; /^ -- /q" "$changelog")
  printf '%s\n\n%s\n' "$entry" "$(cat "$changelog")" >"$changelog.new"
  mv "$changelog.new" "$changelog"
fi
# Nothing of this checkout's own environment may reach into the build, a virtual environment's Python least of all.
build='cd source && env -u PYTHONPATH -u VIRTUAL_ENV -u MAKEFLAGS -u MAKELEVEL PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  dpkg-buildpackage -us -uc -b'
if [ -n "$root" ]; then
  "$top/packaging/dev/in-root.sh" "$root" "$scratch" sh -c "$build"
else
  (cd "$scratch" && sh -c "$build")
fi
find "$output" -maxdepth 1 \( -name '*fuse-gated*.deb' -o -name 'fuse-gated_*.changes' -o -name 'fuse-gated_*.buildinfo' \) -delete
find "$scratch" -maxdepth 1 -type f -exec cp -t "$output" {} +
ls -l "$output"/*.deb
