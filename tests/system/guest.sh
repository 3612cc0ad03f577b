#!/usr/bin/env bash
# guest.sh ROOT WORK NAME: a Debian root filesystem under a real systemd as PID 1, in namespaces of its own, until stdin ends.
# ROOT is left as it is: what changes goes to WORK/upper (what lies there before is in the guest from the start).
# Prints the pid of the guest's PID 1 once it is up; enter it with: nsenter -t PID -m -u -i -n -p -C -- COMMAND
# Needs root, util-linux and iproute2; no engine, no network.
set -euo pipefail
root=$(realpath "$1") work=$(realpath "$2") name=$3
mkdir -p "$work/upper" "$work/scratch" "$work/merged"
# Where the unified hierarchy is: beside the old one, or alone.
unified=$(findmnt -nr -t cgroup2 -o TARGET | head -n 1)
group=$unified/$name; mkdir -p "$group"
boot='
root=$1; work=$2; hostname "$3"; ip link set lo up
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/scratch" "$work/merged"; cd "$work/merged"
mount -t proc -o nosuid,nodev,noexec proc proc
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev; mkdir dev/pts dev/shm
for d in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 fuse:10:229; do IFS=: read -r n a b <<<"$d"; mknod -m 666 "dev/$n" c "$a" "$b"; done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts; ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run; mount -t tmpfs -o mode=1777 tmpfs tmp
mkdir -p run/old; pivot_root . run/old; umount -l /run/old; mount --make-rshared /
# As systemd sets it where it is no container: so many records may wait for journald.
echo 512 >/proc/sys/net/unix/max_dgram_qlen
exec env -i container=guest PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd </dev/null >/run/console.log 2>&1'
( echo "$BASHPID" >"$group/cgroup.procs"
  exec unshare --pid --fork --kill-child --mount --propagation private --cgroup --uts --ipc --net bash -ec "$boot" boot "$root" "$work" "$name" ) </dev/null >&2 &
holder=$!
leader() { tr -d ' ' <"/proc/$holder/task/$holder/children" 2>/dev/null; }
inside() { nsenter -t "$(leader)" -m -u -i -n -p -C -- "$@"; }
trap 'kill -9 "$holder" 2>/dev/null || true; wait "$holder" 2>/dev/null || true; find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  case $(inside systemctl is-system-running 2>/dev/null || true) in running|degraded) break ;; esac
  kill -0 "$holder"; sleep 0.1
done
leader; echo
cat >/dev/null
inside systemctl poweroff 2>/dev/null || true
for _ in $(seq 100); do kill -0 "$holder" 2>/dev/null || break; sleep 0.1; done
