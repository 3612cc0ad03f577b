#!/bin/bash
# build-arm64.sh DIR: make DIR, a Debian 13 for ARM64 that qemu-system-aarch64 boots: disk.img (root filesystem, ext4), and for each
# KIND of Debian's kernels KIND.kernel and KIND.initrd: `cloud-arm64`, with pages of 4 KiB, and `arm64-16k`. As root, with
# mmdebstrap, qemu-user-static and e2fsprogs, from the mirror that this system's own apt uses, or the one in $MIRROR. Takes about
# five minutes.
#
# In it lie, downloaded and not installed, Debian's packages that ours depend on: a machine without a network installs ours.
# A second disk, labelled SHARE, is at /srv: its guest.py is started, and given the virtio serial port called guest.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
KINDS="cloud-arm64 arm64-16k"
# A server as Debian installs one has Python. python3-pytest and python3-hypothesis are for tests that run in there.
PACKAGES=systemd,systemd-sysv,udev,dbus,libnss-systemd,libpam-systemd,kmod,procps,util-linux,iproute2,acl,python3,python3-pytest,python3-hypothesis

# Programs for ARM64 run by qemu-user, registered in a user namespace of ours where the machine does not run them by itself.
# Flag C: what is setuid stays so.
enter() {
  if arch-test arm64 >/dev/null 2>&1; then exec "$0" --build "$1"; fi
  setpriv --pdeathsig KILL unshare --user sleep infinity &
  holder=$!
  trap 'kill "$holder"' EXIT
  until [ "$(readlink "/proc/$holder/ns/user")" != "$(readlink /proc/self/ns/user)" ]; do sleep 0.05; done
  echo 0 0 4294967295 >"/proc/$holder/uid_map"
  echo 0 0 4294967295 >"/proc/$holder/gid_map"
  # An interrupted test kills this script alone: what it started goes too.
  nsenter --target "$holder" --user -- setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child bash -euc '
    mount -t proc proc /proc
    mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
    sed "s/:O\?P\?F\$/:OCPF/" /usr/lib/binfmt.d/qemu-aarch64.conf >/proc/sys/fs/binfmt_misc/register
    exec "$1" --build "$2"' enter "$0" "$1"
}

build() {
  local root=$1/root mirror
  mirror=${MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian/\?$')}
  mmdebstrap --quiet --mode=root --arch=arm64 --variant=minbase --include="$PACKAGES" --skip=cleanup/apt/lists,cleanup/apt/cache \
    --customize-hook="'$0' --customize \"\$1\" '$1'" trixie "$root" "$mirror"
  truncate -s 2G "$1/disk.img"
  mkfs.ext4 -q -L ROOT -E root_owner=0:0 -d "$root" "$1/disk.img"
  rm -rf "$root"
}

customize() {
  local root=$1 place=$2 kind version modules
  rm -f "$root"/var/cache/apt/archives/*.deb
  # shellcheck disable=SC2046
  chroot "$root" apt-get install --quiet=2 --download-only --yes \
    $(sed -n '/^Build-Depends:/,/^$/d; s/^ \(python3-[a-z0-9-]*\|fuse3\)\b.*/\1/p' "$top/debian/control" | grep -v fuse-gated | sort -u) \
    python3-msgspec python3-websockets python3-yaml
  mkdir "$root/tmp/boot"
  for kind in $KINDS; do
    version=$(chroot "$root" apt-cache depends "linux-image-$kind" | sed -n 's/^ *Depends: linux-image-//p')
    fetch "$root" "linux-image-$version"
    # In Debian /lib leads to /usr/lib, wherever the package has them.
    modules=$(find "$root/tmp/boot/linux-image-$version" -type d -path "*/modules/$version")
    mkdir -p "$root/usr/lib/modules"
    cp -a "$modules" "$root/usr/lib/modules/"
    chroot "$root" depmod "$version"
    cp "$root/tmp/boot/linux-image-$version/boot/vmlinuz-$version" "$place/$kind.kernel"
    initrd "$root" "$version" "$place/$kind.initrd"
    rm -rf "$root/tmp/boot/linux-image-$version"
  done
  rm -rf "$root/tmp/boot"
  echo fuse-gated-arm64 >"$root/etc/hostname"
  printf '%s\n' 'LABEL=ROOT / ext4 defaults 0 1' 'LABEL=SHARE /srv ext4 ro 0 0' >"$root/etc/fstab"
  cat >"$root/etc/systemd/system/guest.service" <<'UNIT'
[Unit]
Description=Commands from outside the virtual machine
RequiresMountsFor=/srv
[Service]
ExecStart=/usr/bin/python3 -I /srv/guest.py /dev/virtio-ports/guest
UNIT
  mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
  ln -s ../guest.service "$root/etc/systemd/system/multi-user.target.wants/guest.service"
}

# A package's files, in /tmp/boot.
fetch() {
  chroot "$1" sh -euc 'cd /tmp/boot; apt-get -o APT::Sandbox::User=root --quiet=2 download "$1"' fetch "$2"
  dpkg-deb -x "$1/tmp/boot/$2"_*.deb "$1/tmp/boot/$2"
  rm "$1/tmp/boot/$2"_*.deb
}

# What a kernel needs until it sees the disk: a few modules, and somebody who loads them.
initrd() {
  local root=$1 version=$2 target=$3 tree=$1/tmp/boot/initrd module
  mkdir -p "$tree"/{bin,proc,dev,root}
  [ -d "$root/tmp/boot/busybox-static" ] || fetch "$root" busybox-static
  cp "$root/tmp/boot/busybox-static/usr/bin/busybox" "$tree/bin/"
  for module in virtio_blk ext4; do
    chroot "$root" modprobe --set-version "$version" --show-depends "$module"
  done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' |
    while read -r module; do
      xz -dc "$root/$module" >"$tree/$(basename "$module" .xz)"
      echo "/bin/busybox insmod /$(basename "$module" .xz)"
    done >"$tree/modules"
  cat >"$tree/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs devtmpfs /dev
. /modules
until [ -b /dev/vda ]; do /bin/busybox usleep 10000; done
/bin/busybox mount -t ext4 /dev/vda /root && exec /bin/busybox switch_root /root /sbin/init
INIT
  chmod 755 "$tree/init"
  chroot "$root" /tmp/boot/initrd/bin/busybox sh -euc 'cd /tmp/boot/initrd; ./bin/busybox find . | ./bin/busybox cpio -o -H newc' |
    gzip >"$target"
  rm -rf "$tree"
}

case $1 in
  --build) build "$2" ;;
  --customize) customize "$2" "$3" ;;
  *) mkdir -p "$1" && enter "$(realpath "$1")" ;;
esac
