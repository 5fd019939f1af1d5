#!/usr/bin/env bash
# Runs a fast part of the tests with the lowest and with the newest releases that the requirements allow, on several
# Pythons, each in a fresh environment: bash launch/ranges.sh [PYTEST ARGUMENTS]
# PYTHONS="3.11 3.13" says which, as versions that uv finds or downloads, or as files; one that is missing is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[ $# -gt 0 ] || set -- tests/unit/{report,test_reparam.py,test_fake_quant.py,test_sources.py,test_onnx.py} tests/integration/test_mesh.py
if ! [ -x .venv-uv/bin/uv ]; then
    "${PYTHON:-python3}" -m venv .venv-uv
    .venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv
fi
uv=.venv-uv/bin/uv here=.venv-range/bin/python results=() failed=''
export GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}
for python in ${PYTHONS:-3.11 3.13}; do
    for resolution in lowest-direct highest; do
        if ! "$uv" venv --quiet --clear --python "$python" .venv-range; then
            results+=("Python $python: skipped, it cannot be had here")
            break
        fi
        what="$("$here" -V), $resolution"
        if "$uv" pip install --quiet --python "$here" --resolution "$resolution" \
            -r requirements.txt -r requirements-test.txt &&
            "$here" -m pytest -m "not slow and not parity and not web" "$@"; then
            releases=$("$uv" pip freeze --quiet --python "$here" | grep -E '^(flax|jax|numpy)==')
            results+=("$what: passed with ${releases//$'\n'/, }")
        else
            results+=("$what: FAILED") failed=1
        fi
    done
done
printf '%s\n' "${results[@]}"
[[ -z $failed && "${results[*]}" == *passed* ]]
