#!/usr/bin/env bash
# Builds the documentation from nothing into site/; a warning is an error: bash launch/docs.sh [MKDOCS OPTIONS]
# To read while you write: .venv-docs/bin/mkdocs serve
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cmp --silent requirements-docs.txt .venv-docs/installed; then
    "${PYTHON:-python3}" -m venv .venv-docs
    .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
    cp requirements-docs.txt .venv-docs/installed
fi
NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --clean "$@"
