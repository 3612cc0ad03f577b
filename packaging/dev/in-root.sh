#!/bin/bash
# in-root.sh ROOT DIR COMMAND...: run COMMAND in the Debian root filesystem ROOT (packaging/dev/build-root.sh makes one), in the
# folder DIR of this system, which it sees as /mnt. As root; in namespaces of its own: it has no network, and what it starts and
# mounts is gone when it ends.
set -euo pipefail
root=$(realpath "$1") share=$(realpath "$2")
shift 2
exec unshare --mount --propagation private --pid --fork --kill-child --net --ipc --uts /bin/bash -euc '
  root=$1 share=$2
  shift 2
  mount --bind "$share" "$root/mnt"
  mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  for device in null zero full random urandom tty; do
    [ -c "$root/dev/$device" ] || : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
  done
  exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C.UTF-8 ${DEB_BUILD_OPTIONS:+DEB_BUILD_OPTIONS="$DEB_BUILD_OPTIONS"} chroot "$root" /bin/sh -c "cd /mnt && exec \"\$@\"" sh "$@"
' in-root "$root" "$share" "$@"
