#!/bin/sh
# prepare-bench.sh: what `make bench` measures with, beside prepare.sh's: fio. What cannot be had is told; its rows are then
# measured with a program of our own.
set -eu
if command -v fio >/dev/null; then
  exit 0
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  echo "prepare: installing fio"
  "$(dirname "$0")/install-quietly.sh" fio || echo "prepare: without fio random reads are made by a program of our own"
fi
