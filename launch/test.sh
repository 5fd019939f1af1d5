#!/usr/bin/env bash
# From nothing to a green suite: bash launch/test.sh [PYTEST ARGUMENTS]
source "$(dirname "$0")/_venv.sh" requirements.txt requirements-test.txt
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
.venv/bin/python -m pytest -m "not slow" "$@"
