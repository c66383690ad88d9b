# Sourced by run.sh, test.sh and .ci/run; defines make_venv, does nothing else.
# shellcheck shell=bash

# make_venv REQUIREMENTS_FILE ...: bring .venv in line with these files, quickly when it is already.
# PYTHON=... names another interpreter than python3, TORCH=... one release of torch.
make_venv() {
  local python=${PYTHON:-python3} torch=${TORCH:-} stamp wanted driver quiet=()

  # a .venv from an older or since removed Python is of no use
  if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "Python 3.11 or newer is needed; '$python' is $("$python" --version 2>/dev/null || echo "not there")." >&2
      echo "Install it (Debian: apt-get install python3 python3-venv) or name one: PYTHON=python3.12 $0" >&2
      return 1
    fi
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$("$python" --version) cannot make a virtual environment: its venv module is missing." >&2
      echo "Install it (Debian: apt-get install python3-venv) and start again." >&2
      return 1
    fi
    echo "Making .venv with $("$python" --version)."
    rm -rf .venv
    "$python" -m venv .venv
  fi

  # the stamp is written last, so an installation that was broken off is taken up again
  stamp=.venv/installed-$(basename "${!#}")
  wanted=$(cat "$@" && echo "TORCH=$torch")
  [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && return

  # A driver too old for CUDA 13 gets the image's CUDA 12 build; a torch that is there stays. PyPI's
  # build for Linux brings CUDA even where there is no GPU. To spare the download, put PyTorch's CPU
  # build into .venv first (pytorch.org says how): it is kept too.
  if [[ -z $torch ]] && ! .venv/bin/python -c 'from importlib.metadata import version; version("torch")' 2>/dev/null; then
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
    if [[ $driver =~ ^[0-9]+ ]] && ((BASH_REMATCH[0] < 580)); then
      torch=$(sed -n 's/^ARG TORCH=//p' Dockerfile)
    fi
    echo "Installing into .venv. PyTorch is large, up to 3 GB: this may take some minutes."
  fi
  [[ -t 1 ]] || quiet=(--quiet)
  .venv/bin/python -m pip install --disable-pip-version-check "${quiet[@]}" \
    "${@/#/--requirement=}" ${torch:+"torch==$torch"}
  echo "$wanted" >"$stamp"
}
