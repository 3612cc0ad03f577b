#!/bin/bash
# copy-source.sh DIR: a clean copy of the tree in DIR, which must not be there yet: what git knows or would take, changes that
# are not committed included, or without git (a source archive) everything but what builds and tests leave.
set -euo pipefail
copy=$1
cd "$(dirname "$0")/../.."
mkdir -p "$(dirname "$copy")"
mkdir "$copy"
if [ -e .git ] && command -v git >/dev/null; then
  git -c safe.directory="$PWD" ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' name; do if [ -e "$name" ] || [ -L "$name" ]; then printf '%s\0' "$name"; fi; done |
    tar -c --null --no-recursion -T - | tar -x -C "$copy"
else
  tar -c --exclude=./build --exclude='./.[!c]*' --exclude=./.coverage* --exclude=__pycache__ --exclude='*.egg-info' . |
    tar -x -C "$copy"
fi
