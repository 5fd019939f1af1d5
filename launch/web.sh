#!/usr/bin/env bash
# Compares the page in examples/web, in headless Chromium, with Python, and checks the report with axe-core:
# bash launch/web.sh [PYTEST ARGUMENTS]
# CHROMIUM is the browser's file, where it is not on the PATH.
command -v npm > /dev/null || { echo "error: npm is missing; install Node.js." >&2; exit 2; }
source "$(dirname "$0")/_venv.sh" requirements.txt requirements-test.txt requirements-web.txt
for folder in examples/web tests/web; do
    npm install --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel=error
done
.venv/bin/python -m pytest tests/web -m web "$@"
