#!/usr/bin/env bash
# From nothing to a green suite: bash launch/test.sh [PYTEST ARGUMENTS]
source "$(dirname "$0")/_venv.sh" requirements.txt requirements-test.txt
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
# Huge pages, where malloc gets them on request only: XLA's CPU backend maps its buffers anew at every step.
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
# Two workers, a file of tests at a time, the long ones of integration/ first: XLA compiles on one core.
.venv/bin/python -m pytest -m "not slow and not parity and not web" --numprocesses 2 --dist loadfile --no-loadscope-reorder "$@"
