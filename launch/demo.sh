#!/usr/bin/env bash
# From nothing to the result table on real MNIST digits: bash launch/demo.sh [WORKDIR]
workdir=$(realpath -m "${1:-workdir/demo}")
source "$(dirname "$0")/_venv.sh" requirements.txt
.venv/bin/python -m lraqvit_jax.main --config configs/mnist5k.py --workdir "$workdir"
