#!/usr/bin/env bash
# engine.sh DIR: a Docker engine of our own until stdin ends, in namespaces of its own: its bridges, firewall rules and mounts are
# nobody else's, and gone with it. DIR/docker.sock is where it listens, DIR/data where images are kept; DIR/log is what it says.
# Prints the pid of its dockerd once it answers. To be on 'the host' of its containers: nsenter -t PID -m -n -p -- COMMAND
# Needs root, docker.io, util-linux and iproute2.
set -euo pipefail
dir=$(realpath "$1")
# One engine at a time for one folder. Not inherited by the engine, which may leave somebody behind for a moment.
exec 9>"$dir/lock"
flock 9
# As on a machine of today, the unified hierarchy alone, of which it sees a part of its own; also where this machine still has
# the old ones beside it.
unified=$(findmnt -nr -t cgroup2 -o TARGET | head -n 1)
if [ -z "$unified" ]; then echo "engine: no cgroup2 is mounted" >&2; exit 1; fi
group=$unified/fuse-gated-engine-$$
mkdir "$group"
# The containers' host is one that has just been booted: its /run is empty, and shared, as systemd makes it. What is written to
# its /etc is seen in here alone.
boot='
ip link set lo up
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/engine
echo 0 >/sys/fs/cgroup/engine/cgroup.procs
mount -t tmpfs -o mode=755 tmpfs /run
mount --make-shared /run
mkdir -p /run/etc/upper /run/etc/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work /etc
rm -rf "$1/exec" "$1/pid"
exec dockerd --host "unix://$1/docker.sock" --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/pid" \
  --storage-driver overlay2 >"$1/log" 2>&1'
( echo "$BASHPID" >"$group/cgroup.procs"
  exec unshare --mount --propagation private --mount-proc --net --pid --ipc --uts --cgroup --fork --kill-child \
    bash -euc "$boot" boot "$dir" ) 9>&- </dev/null >&2 &
holder=$!
leader() { tr -d ' ' <"/proc/$holder/task/$holder/children" 2>/dev/null; }
trap 'kill -9 "$holder" 2>/dev/null || true; wait "$holder" 2>/dev/null || true
  for _ in $(seq 100); do
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    if [ ! -e "$group" ]; then break; fi
    sleep 0.1
  done' EXIT
for _ in $(seq 600); do
  if DOCKER_HOST=unix://$dir/docker.sock docker version >/dev/null 2>&1; then break; fi
  kill -0 "$holder"
  sleep 0.1
done
leader; echo
cat >/dev/null
kill "$(leader)" 2>/dev/null || true
for _ in $(seq 200); do kill -0 "$holder" 2>/dev/null || break; sleep 0.1; done
