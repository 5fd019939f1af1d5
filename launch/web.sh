#!/usr/bin/env bash
# Compares the page in examples/web, in headless Chromium, with Python: bash launch/web.sh [PYTEST ARGUMENTS]
# CHROMIUM is the browser's file, where it is not on the PATH.
command -v npm > /dev/null || { echo "error: npm is missing; install Node.js." >&2; exit 2; }
source "$(dirname "$0")/_venv.sh" requirements.txt requirements-test.txt requirements-web.txt
npm install --prefix examples/web --ignore-scripts --no-audit --no-fund --loglevel=error
.venv/bin/python -m pytest tests/web -m web "$@"
