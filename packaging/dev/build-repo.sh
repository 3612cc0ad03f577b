#!/bin/bash
# build-repo.sh [--root ROOT] [--output DIR] [PACKAGE.deb...]: make a signed flat apt repository in DIR (build/repo) with these
# packages, or with those in build/. Its key is made for it and kept in build/repo-key, so that a repository made again is still
# trusted where the first one was; `make clean` throws it away. SIGNING_HOME names another GnuPG home, whose first secret key signs.
# With --root, apt-ftparchive and gpg come from that root filesystem (packaging/dev/build-root.sh).
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
root="" output=$top/build/repo
packages=()
while [ $# -gt 0 ]; do
  case $1 in
    --root) root=$2; shift ;;
    --output) output=$2; shift ;;
    -*) echo "build-repo: unknown option $1" >&2; exit 2 ;;
    *) packages+=("$1") ;;
  esac
  shift
done
[ ${#packages[@]} -gt 0 ] || packages=("$top"/build/*.deb)
key_home=${SIGNING_HOME:-$top/build/repo-key}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/fuse-gated-repo.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
mkdir "$scratch/repo"
mkdir -p -m 700 "$key_home"
cp "${packages[@]}" "$scratch/repo"
cp -a "$key_home" "$scratch/key"

# In a folder of its own under /tmp: gpg-agent's socket must have a short name.
cat >"$scratch/sign" <<'SIGN'
set -eu
export GNUPGHOME=$PWD/key
trap 'gpgconf --kill all' EXIT
if ! gpg --batch --list-secret-keys --with-colons 2>/dev/null | grep -q ^sec; then
  gpg --batch --quiet --pinentry-mode loopback --passphrase '' --quick-generate-key \
    'fuse-gated test repository <repository@fuse-gated.example>' ed25519 sign 2y
fi
cd repo
apt-ftparchive packages . >Packages
gzip -9nk Packages
apt-ftparchive -o APT::FTPArchive::Release::Origin=fuse-gated -o APT::FTPArchive::Release::Label=fuse-gated \
  -o APT::FTPArchive::Release::Architectures=all release . >../Release
mv ../Release .
gpg --batch --quiet --yes --armor --detach-sign --output Release.gpg Release
gpg --batch --quiet --yes --clear-sign --output InRelease Release
gpg --batch --quiet --export >fuse-gated.gpg
SIGN
if [ -n "$root" ]; then
  "$top/packaging/dev/in-root.sh" "$root" "$scratch" sh sign
else
  (cd "$scratch" && sh sign)
fi
cp -a "$scratch/key/." "$key_home"
rm -rf "$output"
mkdir -p "$output"
cp "$scratch"/repo/* "$output"
chmod 644 "$output"/*
ls -l "$output"
