#!/bin/bash
# lifecycle-rpm.sh OLD NEW: the rpm packages installed, upgraded and erased on a throw-away system with systemd; OLD and NEW are
# folders with the packages of two releases. As root. On Debian too (where --nodeps stands for names that its rpm does not know).
set -euo pipefail
old=$(realpath "$1") new=$(realpath "$2")
here=$(cd "$(dirname "$0")" && pwd)
export LC_ALL=C.UTF-8
policy=/etc/fuse-gated/policy.yaml

fail() {
  echo "lifecycle-rpm: $1" >&2
  exit 1
}

step() {
  echo "lifecycle-rpm: $1"
}

step "install"
rpm -i --nodeps "$old"/*.noarch.rpm
rpm -V --nodeps fuse-gated fuse-gated-client python3-fuse-gated || fail "what was installed is not what was packaged"
for file in "$policy" /etc/fuse-gated/fuse-gated.yaml; do
  [ "$(stat -c %U:%G:%a "$file")" = root:fuse-gated:640 ] || fail "$(ls -l "$file")"
done
journalctl --list-catalog 2fc745923ea84cdd9e1ec3bf0bea91fa | grep -q fuse-gated || fail "the journal does not know our catalog"
# Debian's rpm has no triggers for it; and where packages start nothing, the administrator does.
systemctl daemon-reload
systemctl enable --quiet --now fuse-gated.socket
"$here/smoke.sh"

step "upgrade, with an edited policy, while the service runs"
echo '# edited' >>"$policy"
systemctl start fuse-gated.service
before=$(systemctl show --property=MainPID --value fuse-gated.service)
rpm -U --nodeps "$new"/*.noarch.rpm
grep -q '^# edited' "$policy" || fail "the edited policy is gone"
[ "$(stat -c %U:%G:%a "$policy")" = root:fuse-gated:640 ] || fail "$(ls -l "$policy")"
systemctl is-active --quiet fuse-gated.service || fail "the service that ran does not run any more"
[ "$(systemctl show --property=MainPID --value fuse-gated.service)" != "$before" ] || fail "the service was not started again"
systemctl stop fuse-gated.service
"$here/smoke.sh"

step "downgrade"
rpm -U --nodeps --oldpackage "$old"/*.noarch.rpm
"$here/smoke.sh"

step "erase, while the service runs"
systemctl start fuse-gated.service
rpm -e --nodeps fuse-gated fuse-gated-client python3-fuse-gated
[ ! -e /run/fuse-gated ] || fail "/run/fuse-gated is left"
if pgrep -u fuse-gated -a || pgrep -f /usr/libexec/fuse-gated/ -a; then fail "a process is left"; fi
[ -e "$policy.rpmsave" ] || fail "the edited policy was not kept"
left=$(find /usr /etc -name '*fuse?gate*' ! -name '*.rpmsave' ! -path '/usr/lib/python3/dist-packages/fuse_gated*/__pycache__*' \
  ! -path /etc/fuse-gated ! -type d)
[ -z "$left" ] || fail "files are left: $left"
step "all is well"
