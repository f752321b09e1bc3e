#!/usr/bin/env bash
# Tests of the feature extractors where torchvision is, on the FID network too: tools/device/metrics.sh [WHEELS]
# WHEELS is a folder with what the machine lacks, such as torch-fidelity and pytest; it is installed for this run alone.
set -eu
cd "$(dirname "$0")/../.."
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ $# -gt 0 ]; then
    "${PYTHON:-python3}" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$1"/*.whl
fi
PYTHONPATH="$site:.${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" -m pytest -p no:cacheprovider \
    tests/metrics/test_{inception,resize,dinov2,clip,i3d,distances}.py
