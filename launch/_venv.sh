# Sourced by the other scripts: makes the virtual environment of this checkout, .venv, and installs what is named.
# Usage: source launch/_venv.sh REQUIREMENTS...    (PYTHON chooses the interpreter, default python3)
# shellcheck shell=bash
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is not Python 3.11 or newer; set PYTHON to one that is." >&2
    exit 2
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
requirements=$(cat "$@" | sha256sum)
if [ "$(cat .venv/installed 2>/dev/null)" != "$requirements" ]; then
    echo "Installing $* into .venv (about a minute)"
    for file in "$@"; do set -- "$@" -r "$file"; shift; done
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
    echo "$requirements" > .venv/installed
fi
