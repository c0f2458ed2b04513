#!/usr/bin/env bash
# Makes .venv and installs this checkout into it; does nothing when that is done and pyproject.toml is unchanged.
# Sourced by demo.sh and test.sh, which run from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Threads that spin for long while they wait slow everything down tenfold when other work shares the cores.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-3000}"

setup_venv() {
  local stamp=.venv/pairsmith.stamp wanted
  wanted="$(cksum < pyproject.toml) $PWD"
  if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    echo "[setup] .venv is ready"
    return
  fi
  local python="${PYTHON:-python3}"
  command -v "$python" > /dev/null || { echo "[setup] no $python found; install Python 3.11 or newer" >&2; exit 2; }
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
    || { echo "[setup] $("$python" --version) is too old; set PYTHON to a Python of at least 3.11" >&2; exit 2; }
  echo "[setup] making .venv and installing Pairsmith with PyTorch; several GB, some minutes, once"
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar on torch torchvision
  echo "[setup] PyTorch is in; now the rest"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev,demo]"
  echo "$wanted" > "$stamp"
  echo "[setup] done"
}
