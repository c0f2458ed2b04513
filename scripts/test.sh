#!/usr/bin/env bash
# Sets up .venv and runs the tests; arguments go to pytest, e.g. -m slow or tests/synth.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup_venv
echo "[test] running the tests; under 10 minutes on two CPU cores"
exec .venv/bin/python -m pytest "$@"
