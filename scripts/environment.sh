# Sourced by scripts/run and scripts/test: makes .venv if it is missing or stale. Needs $root, the clone's absolute path.

say() { echo "$(basename "$0"): $*" >&2; }

# The first Python >= 3.11 that works (a pyenv shim may exist and refuse); $PYTHON wins.
find_python() {
  local candidate candidates=(python3.13 python3.12 python3.11 python3 python)
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  say "needs Python 3.11 or newer, found none as ${candidates[*]}; give one with PYTHON=/path/to/python"
  exit 2
}

# What an installation depends on. The path counts: an editable installation and its scripts name it.
fingerprint() {
  { echo "$root"; cat "$root/pyproject.toml" "$root/constraints.txt" "$root/.venv/pyvenv.cfg"; } | cksum
}

complete() { # complete EXTRAS: was this installed to its end, with all that stands in the files now?
  [[ -x $root/.venv/bin/python && -f $root/.venv/installed"$1" && $(<"$root/.venv/installed$1") == "$(fingerprint)" ]]
}

same_python() { # is .venv of the Python that $PYTHON asks for?
  [[ -z ${PYTHON:-} ]] && return
  local version='import sys; print(sys.version_info[:2])'
  [[ $("$PYTHON" -c "$version" 2>/dev/null) == "$("$root/.venv/bin/python" -c "$version")" ]]
}

ensure_environment() { # ensure_environment [EXTRAS], as in [test,dev]
  local extras=${1:-} python venv=$root/.venv
  if complete "$extras" && same_python; then return; fi
  python=$(find_python)
  # A lock on pyproject.toml, held until this shell closes 9; Python takes it because flock(1) is not everywhere.
  exec 9<>"$root/pyproject.toml"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null || {
    say "waiting for another call that installs"
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
  }
  if ! { complete "$extras" && same_python; }; then
    if [[ ! -x $venv/bin/python ]] || ! same_python; then
      say "making .venv with $("$python" --version)"
      "$python" -m venv --clear "$venv" >&2
    fi
    rm -f "$venv"/installed*
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >&2
    say "installing paper-runner$extras into .venv (the first time this downloads PyTorch and takes minutes)"
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --constraint "$root/constraints.txt" --editable "$root$extras" >&2; then
      say "the installation failed (see above); give the command again when the cause is removed"
      exit 1
    fi
    fingerprint >"$venv/installed"
    [[ -z $extras ]] || fingerprint >"$venv/installed$extras" # last: an interrupted installation is not complete
  fi
  exec 9>&-
}
