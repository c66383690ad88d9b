#!/usr/bin/env bash
# Run every test:  ./test.sh [ARGUMENTS OF pytest]
#
# The first run makes .venv. Without arguments two processes share the tests, file by file, and with
# a Docker engine the image is built and tried as well.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=venv.sh
source venv.sh
make_venv requirements.txt requirements-dev.txt

if (($#)); then
  .venv/bin/python -m pytest "$@"
  echo "Container test left out: arguments were given."
  exit
fi

# Half of many a test is a program that starts, on one core. More processes than two would ask for
# more memory than some machines have.
OMP_NUM_THREADS=$((($(nproc) + 1) / 2)) .venv/bin/python -m pytest --numprocesses=2 --dist=loadfile
if docker info >/dev/null 2>&1; then
  test/container.sh
else
  echo "Container test left out: no Docker engine answers."
fi
