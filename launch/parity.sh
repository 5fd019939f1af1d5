#!/usr/bin/env bash
# Compares our logits with PyTorch's (timm, transformers) on random weights: bash launch/parity.sh [PYTEST ARGUMENTS]
source "$(dirname "$0")/_venv.sh" requirements.txt requirements-test.txt requirements-parity.txt
.venv/bin/python -m pytest -m parity "$@"
