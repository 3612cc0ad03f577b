#!/bin/sh
# prepare-docs.sh DIR: what the tests of the documents need beside prepare.sh's, in and beside the virtual environment DIR:
# linters for the manual pages, zsh, a compiler of TypeScript, mkdocs. Under CI=true also nginx, haproxy and caddy, which
# elsewhere nobody wants on his machine for a test. What cannot be had is told, and the tests that need it are skipped (CI=true:
# fail).
set -eu
venv=$1

missing=""
want() { command -v "$2" >/dev/null || missing="$missing $1"; }
want mandoc mandoc
want man-db man
want zsh zsh
want nodejs node
[ "${CI:-}" != true ] || { want nginx-light nginx; want haproxy haproxy; want caddy caddy; }
command -v npm >/dev/null || command -v tsc >/dev/null || missing="$missing node-typescript"
if [ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "prepare: installing$missing"
  # shellcheck disable=SC2086
  "$(dirname "$0")/install-quietly.sh" $missing
elif [ -n "$missing" ]; then
  echo "prepare: some tests of the documents need what is missing here:$missing"
fi

"$venv/bin/python" -c 'import mkdocs' 2>/dev/null ||
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check 'mkdocs>=1.6' ||
  echo "prepare: without mkdocs the site is not built"

# Debian's nodejs brings Node's types along; elsewhere npm has them, and the compiler.
if command -v npm >/dev/null && [ ! -e "$venv/node_modules/@types/node" ] && [ ! -e /usr/share/nodejs/@types/node ]; then
  npm install --prefix "$venv" --no-save --no-audit --no-fund --silent typescript@5 @types/node@20 ||
    echo "prepare: without TypeScript's compiler the example client is not built"
fi
