#!/usr/bin/env bash
# Test the feature extractors, including the FID network, on a machine with torchvision:
#   tools/device/metrics.sh [WHEELS]
# WHEELS is a folder with the wheels of missing packages, such as torch-fidelity and pytest; they are installed for this
# run only.
set -eu
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ $# -gt 0 ]; then
    "${PYTHON:-python3}" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$1"/*.whl
fi
PYTHONPATH="$site:.${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" -m pytest -p no:cacheprovider \
    tests/metrics/test_{inception,resize,dinov2,clip,i3d,distances,torchmetrics}.py
