#!/bin/sh
# smoke.sh: what fuse-gated must be able to do as it was installed, from either kind of package: the sockets listen, the first
# client starts the service, its directory is a mount, the policy is kept, and the journal says so. As root, under systemd, with
# server and client installed on the one machine. Leaves nothing behind. Exit status 77: this machine cannot mount.
set -eu

fail() {
  echo "smoke: $1" >&2
  systemctl status --no-pager --full fuse-gated.service fuse-gated.socket fuse-gated-mountd.service >&2 || true
  exit 1
}

step() {
  echo "smoke: $1"
}

[ -c /dev/fuse ] || { echo "smoke: there is no /dev/fuse" >&2; exit 77; }
[ -d /run/systemd/system ] || { echo "smoke: systemd does not run" >&2; exit 77; }

scratch=$(mktemp -d)
policy=/etc/fuse-gated/policy.d/smoke.yaml
client=""
leave() {
  [ -z "$client" ] || kill "$client" 2>/dev/null || true
  rm -f "$policy"
  systemctl stop fuse-gated.service 2>/dev/null || true
  rm -rf --one-file-system "$scratch"
}
trap leave EXIT

step "the programs are there, and the configuration as installed is right"
fuse-gated --version
fuse-gate --version
fuse-gatectl --version
fuse-gatectl check || fail "the configuration as installed is at fault"
systemd-analyze verify --man=no fuse-gated.socket fuse-gated.service fuse-gated-mountd.socket fuse-gated-mountd.service ||
  fail "systemd finds faults in the units"

step "the sockets listen, and nothing runs yet"
systemctl is-active --quiet fuse-gated.socket || fail "fuse-gated.socket does not listen"
[ "$(systemctl is-active fuse-gated.service)" = inactive ] || fail "fuse-gated.service runs without having been asked"

step "a tenant"
made=$(fuse-gatectl token new smoke --json)
token=$(echo "$made" | sed -n 's/^ *"token": "\(.*\)",$/\1/p')
digest=$(echo "$made" | sed -n 's/^ *"sha256": "\(.*\)",$/\1/p')
umask 077
cat >"$policy" <<POLICY
tenants:
  smoke:
    tokens: [{sha256: "$digest"}]
    users: ["*"]
    rules:
      - {path: "/secret", deny: [read, write]}
      - {path: "/**", allow: [read, write, delete]}
POLICY
chgrp fuse-gated "$policy"
chmod 0640 "$policy"
fuse-gatectl check || fail "the tenant's policy is at fault"
mkdir "$scratch/export"
echo "$token" >"$scratch/token"
echo from the client >"$scratch/export/file"
echo not for the server >"$scratch/export/secret"
: >"$scratch/said"
chown -R nobody: "$scratch"

step "an ordinary user's client starts the service, and its directory is a mount"
setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups fuse-gate export "$scratch/export" --name smoke \
  --server ws://127.0.0.1:7433 --token-file "$scratch/token" >"$scratch/said" 2>"$scratch/complained" &
client=$!
for _ in $(seq 100); do
  grep -q '^mounted at ' "$scratch/said" && break
  kill -0 "$client" 2>/dev/null || { cat "$scratch/complained" >&2; fail "the client has ended"; }
  sleep 0.1
done
mount=$(sed -n 's/^mounted at //p' "$scratch/said")
[ -n "$mount" ] || fail "the client was not told of a mount within ten seconds"
[ "$mount" = /run/fuse-gated/mnt/smoke/smoke ] || fail "it is mounted at $mount"
systemctl is-active --quiet fuse-gated.service fuse-gated-mountd.service || fail "a service does not run"

step "files are read and written, and the policy is kept"
[ "$(cat "$mount/file")" = "from the client" ] || fail "the file reads otherwise"
echo from the server >"$mount/new"
[ "$(cat "$scratch/export/new")" = "from the server" ] || fail "what was written did not arrive"
if cat "$mount/secret" 2>"$scratch/complained"; then fail "the secret was read"; fi
grep -q 'Permission denied' "$scratch/complained" || fail "the secret was refused otherwise: $(cat "$scratch/complained")"

step "the journal says so, and explains it"
journalctl --sync
fuse-gatectl audit --tenant smoke --decision denied | grep -q /secret || fail "the audit does not tell of the refusal"
fuse-gatectl audit --verify || fail "the audit does not verify"
journalctl --output=cat --catalog --grep=/secret FUSE_GATED_TENANT=smoke | grep -q 'policy' ||
  fail "the journal's catalog does not explain the refusal"

step "the client leaves, and the mount with it"
kill "$client"
wait "$client" || fail "the client ended with status $?"
client=""
for _ in $(seq 100); do
  [ -e "$mount" ] || break
  sleep 0.1
done
[ ! -e "$mount" ] || fail "the mount point is still there"
step "all is well"
