#!/bin/bash
# install-files.sh DESTDIR: put everything but the Python package where it belongs beneath DESTDIR: units, configuration, manual
# pages, completion, and the programs that pip or its like has put into usr/bin but are looked for elsewhere. Both debian/rules
# and the spec use it. SBINDIR and ZSHDIR may be set where a system has them elsewhere.
set -euo pipefail
shopt -s nullglob
destination=$(realpath "$1")
cd "$(dirname "$0")/../.."
sbin=${SBINDIR:-/usr/sbin} zsh=${ZSHDIR:-/usr/share/zsh/vendor-completions}

put() {
  install -D -p -m "$1" "$2" "$destination$3"
}

# Not for people's PATH: one program is started by root alone, the other by systemd alone.
if [ "$sbin" != /usr/bin ]; then
  mkdir -p "$destination$sbin"
  mv "$destination/usr/bin/fuse-gated" "$destination$sbin/fuse-gated"
fi
rm -f "$destination/usr/bin/fuse-gated-mountd"
put 755 packaging/libexec/fuse-gated-mountd /usr/libexec/fuse-gated/fuse-gated-mountd
put 755 packaging/libexec/tell-stop /usr/libexec/fuse-gated/tell-stop

for unit in systemd/fuse-gated*.service systemd/fuse-gated*.socket systemd/fuse-gated*.slice; do
  put 644 "$unit" "/usr/lib/systemd/system/${unit##*/}"
done
put 644 systemd/fuse-gate@.service /usr/lib/systemd/user/fuse-gate@.service
put 644 systemd/fuse-gated.sysusers /usr/lib/sysusers.d/fuse-gated.conf
put 644 systemd/fuse-gated.tmpfiles /usr/lib/tmpfiles.d/fuse-gated.conf
put 644 systemd/fuse-gated.catalog /usr/lib/systemd/catalog/fuse-gated.catalog
put 644 packaging/apparmor/fusermount3 /etc/apparmor.d/abstractions/fuse-gated
put 640 etc/fuse-gated.yaml /etc/fuse-gated/fuse-gated.yaml
put 640 etc/policy.yaml /etc/fuse-gated/policy.yaml
install -d -m 755 "$destination/etc/fuse-gated/policy.d"
for page in docs/man/*.[1-8]; do
  put 644 "$page" "/usr/share/man/man${page##*.}/${page##*/}"
done
for completion in packaging/completion/*.bash; do
  name=${completion##*/}
  put 644 "$completion" "/usr/share/bash-completion/completions/${name%.bash}"
done
for completion in packaging/completion/_*; do
  put 644 "$completion" "$zsh/${completion##*/}"
done
