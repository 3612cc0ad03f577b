#!/bin/bash
# lifecycle.sh OLD NEW: the Debian packages through everything that happens to packages, on a throw-away Debian 13 system with
# systemd: OLD and NEW are apt repositories (packaging/dev/build-repo.sh), of which the second has a later version too. As root.
set -euo pipefail
old=$(realpath "$1") new=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
client=""
trap '[ -z "$client" ] || kill "$client" 2>/dev/null || true' EXIT

fail() {
  echo "lifecycle: $1" >&2
  systemctl status --no-pager --full 'fuse-gated*' >&2 || true
  exit 1
}

step() {
  echo "lifecycle: $1"
}

use() {
  install -D -m 644 "$1/fuse-gated.gpg" /etc/apt/keyrings/fuse-gated.gpg
  printf 'Types: deb\nURIs: file:%s\nSuites: ./\nSigned-By: /etc/apt/keyrings/fuse-gated.gpg\n' "$1" \
    >/etc/apt/sources.list.d/fuse-gated.sources
  apt-get -q update -o Dir::Etc::sourcelist=/dev/null >/dev/null
}

apt() {
  apt-get -q -y -o Dpkg::Use-Pty=0 "$@" >/tmp/apt.log 2>&1 || { cat /tmp/apt.log >&2; fail "apt-get $* failed"; }
}

installed() {
  dpkg-query -f '${Version}' -W "$1"
}

tenant() {
  made=$(fuse-gatectl token new acme --json)
  echo "$made" | sed -n 's/^ *"token": "\(.*\)",$/\1/p' >/tmp/token
  chmod 600 /tmp/token
  # An administrator's editor: it writes in place, so owner and mode stay.
  cat >>/etc/fuse-gated/policy.yaml <<POLICY
tenants:
  acme:
    tokens: [{sha256: "$(echo "$made" | sed -n 's/^ *"sha256": "\(.*\)",$/\1/p')"}]
    users: [root]
    rules: [{path: "/**", allow: [read, write, delete]}]
POLICY
}

session() {
  mkdir -p /tmp/export
  echo content >/tmp/export/file
  fuse-gate export /tmp/export --name work --server ws://127.0.0.1:7433 --token-file /tmp/token >/tmp/client.log 2>&1 &
  client=$!
  for _ in $(seq 100); do
    if [ -e /run/fuse-gated/mnt/acme/work/file ]; then return; fi
    sleep 0.1
  done
  cat /tmp/client.log >&2
  fail "no session within ten seconds"
}

end_session() {
  kill "$client" 2>/dev/null || true
  wait "$client" || true
  client=""
}

# Copies a tree onto the mount, compares it and removes it, over and over, until copies_end: nothing of it may ever fail.
copies() {
  mount=/run/fuse-gated/mnt/acme/work
  rounds=0
  while [ ! -e /tmp/copies-end ]; do
    cp -r /tmp/tree "$mount/copied" && diff -r /tmp/tree "$mount/copied" && rm -r "$mount/copied" || return 1
    rounds=$((rounds + 1))
  done
  echo "$rounds rounds"
}

copies_begin() {
  rm -rf /tmp/tree /tmp/copies-end
  cp -r "$(python3 -c 'import encodings, os; print(os.path.dirname(encodings.__file__))')" /tmp/tree
  exec 9</run/fuse-gated/mnt/acme/work/file
  copies >/tmp/copies.log 2>&1 &
  copying=$!
}

copies_end() {
  touch /tmp/copies-end
  wait "$copying" || fail "$1: a copy onto the mount failed: $(cat /tmp/copies.log)"
  echo "$1: $(cat /tmp/copies.log) of copies meanwhile, none of which failed"
  [ "$(cat <&9)" = content ] || fail "$1: what was open cannot be read any more"
  exec 9<&-
  [ "$(grep -c 'mounted at' /tmp/client.log)" = 1 ] || fail "$1: the session was another one: $(cat /tmp/client.log)"
}

no_mount() {
  if grep ' /run/fuse-gated/mnt/' /proc/self/mountinfo; then fail "$1: a mount is left"; fi
}

no_process() {
  if pgrep -u fuse-gated -a || pgrep -f /usr/libexec/fuse-gated/ -a; then fail "$1: a process is left"; fi
}

policy_as_edited() {
  grep -q '^  acme:' /etc/fuse-gated/policy.yaml || fail "$1: the edited policy is gone"
  [ "$(stat -c %U:%G:%a /etc/fuse-gated/policy.yaml)" = root:fuse-gated:640 ] || fail "$1: $(ls -l /etc/fuse-gated/policy.yaml)"
}

files() {
  find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /srv -o -path /root \
    -o -path /var/log -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /etc/apt \
    -o -path /var/lib/systemd/random-seed -o -name __pycache__ \) -prune -o -print | sort
}

# A distribution that confines fusermount3, and an administrator who allows it something.
mkdir -p /etc/apparmor.d/local
echo 'profile fusermount3 /usr/bin/fusermount3 {}' >/etc/apparmor.d/fusermount3
echo '# allowed here: nothing else' >/etc/apparmor.d/local/fusermount3

use "$old"
files >/tmp/files-before
getent passwd | sort >/tmp/users-before
getent group | sort >/tmp/groups-before
first=$(apt-cache show --no-all-versions fuse-gated | sed -n 's/^Version: //p')

step "install"
apt install fuse-gated fuse-gated-client
"$here/smoke.sh"

[ "$(sed '/^#/d' /etc/apparmor.d/local/fusermount3)" = 'include if exists <abstractions/fuse-gated>' ] ||
  fail "install: AppArmor's local rules: $(cat /etc/apparmor.d/local/fusermount3)"

step "upgrade, with an edited policy and a live session"
tenant
session
copies_begin
use "$new"
second=$(apt-cache show --no-all-versions fuse-gated | sed -n 's/^Version: //p')
[ "$first" != "$second" ] || fail "both repositories have the version $first"
apt install -o Dpkg::Options::=--force-confold fuse-gated fuse-gated-client
[ "$(installed fuse-gated) $(installed python3-fuse-gated)" = "$second $second" ] || fail "it was not upgraded"
policy_as_edited "upgrade"
systemctl is-active --quiet fuse-gated.socket || fail "upgrade: the socket does not listen"
systemctl is-active --quiet fuse-gated.service || fail "upgrade: the service that ran does not run any more"
timeout 5 ls -R /run/fuse-gated/mnt >/tmp/ls.log 2>&1 || fail "upgrade: a mount is dead: $(cat /tmp/ls.log)"
copies_end upgrade
end_session
session
[ "$(cat /run/fuse-gated/mnt/acme/work/file)" = content ] || fail "upgrade: a new session reads otherwise"
end_session

step "downgrade, with a live session"
session
apt install --allow-downgrades -o Dpkg::Options::=--force-confold \
  "fuse-gated=$first" "fuse-gated-client=$first" "python3-fuse-gated=$first"
[ "$(installed fuse-gated)" = "$first" ] || fail "it was not downgraded"
policy_as_edited "downgrade"
timeout 5 ls -R /run/fuse-gated/mnt >/tmp/ls.log 2>&1 || fail "downgrade: a mount is dead: $(cat /tmp/ls.log)"
end_session
session
end_session

step "a service that does not run is not started by an upgrade, and a socket that is disabled stays so"
systemctl disable --now --quiet fuse-gated.socket
systemctl stop fuse-gated.service
apt install -o Dpkg::Options::=--force-confold fuse-gated fuse-gated-client
systemctl is-active --quiet fuse-gated.service && fail "the service was started"
systemctl is-active --quiet fuse-gated.socket && fail "the disabled socket listens"
systemctl enable --now --quiet fuse-gated.socket

step "remove, with a live session"
session
apt remove fuse-gated
for _ in $(seq 50); do kill -0 "$client" 2>/dev/null || break; sleep 0.1; done
end_session
no_mount "remove"
no_process "remove"
[ ! -e /run/fuse-gated ] || fail "remove: /run/fuse-gated is left: $(ls -lR /run/fuse-gated)"
policy_as_edited "remove"
getent passwd fuse-gated >/dev/null || fail "remove: the user is gone, whose files stay"
systemctl daemon-reload
systemctl list-units --no-legend --state=active,activating,deactivating,failed 'fuse-gated*' | grep . && fail "remove: units are left"

step "install again: the policy that was left counts"
apt install fuse-gated
policy_as_edited "install again"
session
end_session

step "purge, with a live session"
session
mkdir -p /etc/fuse-gated/tls
echo 'tenants: {}' >/etc/fuse-gated/policy.d/more.yaml
apt purge fuse-gated fuse-gated-client python3-fuse-gated
end_session
no_mount "purge"
for path in /etc/fuse-gated /run/fuse-gated /var/lib/fuse-gated /var/log/fuse-gated; do
  [ ! -e "$path" ] || fail "purge: $path is left"
done
getent passwd | sort | diff /tmp/users-before - || fail "purge: the users differ"
getent group | sort | diff /tmp/groups-before - || fail "purge: the groups differ"
journalctl --list-catalog 2fc745923ea84cdd9e1ec3bf0bea91fa 2>/dev/null | grep . && fail "purge: the journal still has our catalog"
files | diff /tmp/files-before - || fail "purge: the files differ"
[ "$(cat /etc/apparmor.d/local/fusermount3)" = '# allowed here: nothing else' ] || fail "purge: the administrator's file was changed"
rm /etc/apparmor.d/fusermount3 /etc/apparmor.d/local/fusermount3

users_and_groups() {
  getent passwd | sort
  getent group | sort
}

step "install beside a user of that name, who stays, in a group whose name begins alike"
groupadd fuse-gated-admins
useradd --create-home --shell /bin/bash --gid fuse-gated-admins fuse-gated
users_and_groups >/tmp/before
apt install fuse-gated fuse-gated-client
grep -q 'was there before' /tmp/apt.log || fail "nothing was said of the user who was there before"
id -nG fuse-gated | tr ' ' '\n' | grep -qxF fuse-gated || fail "the user is not in the group: $(id fuse-gated)"
"$here/smoke.sh"
apt purge fuse-gated fuse-gated-client python3-fuse-gated
users_and_groups | diff /tmp/before - || fail "purge: users or groups differ"
step "all is well"
