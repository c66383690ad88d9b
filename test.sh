#!/usr/bin/env bash
# Run every test:  ./test.sh [ARGUMENTS OF pytest]
#
# The first run makes .venv. With a Docker engine the image is built and tried as well, unless
# arguments ask for a part of the tests only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=venv.sh
source venv.sh
make_venv requirements.txt requirements-dev.txt
.venv/bin/python -m pytest "$@"

if (($#)); then
  echo "Container test left out: arguments were given."
elif docker info >/dev/null 2>&1; then
  test/container.sh
else
  echo "Container test left out: no Docker engine answers."
fi
