#!/bin/bash
# build-root.sh DIR [PACKAGE,...]: make a Debian 13 root filesystem with all that `make deb`, `make repo` and `make rpm` need, for
# systems that are not Debian 13; or one with these packages and little else. As root, with mmdebstrap, from the mirror that this
# system's own apt uses, or the one in $MIRROR.
set -euo pipefail
root=$1
top=$(cd "$(dirname "$0")/../.." && pwd)
mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/\?$')}
build=$(sed -n '/^Build-Depends:/,/^[^ ]/s/^ \([a-z][^ ,]*\).*/\1/p' "$top/debian/control" | grep -v '^debhelper-compat$' | paste -sd,)
tools=debhelper,lintian,apt-utils,gpg,gpg-agent,rpm,rpmlint,python3-pip,python3-installer,python3-wheel
if [ $# -gt 1 ]; then
  mmdebstrap --variant=minbase --include="$2" trixie "$root" "$mirror"
else
  mmdebstrap --variant=buildd --include="$build,$tools" trixie "$root" "$mirror"
fi
