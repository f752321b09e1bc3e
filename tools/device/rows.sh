#!/usr/bin/env bash
# Rows of the tables on a GPU machine without a network, as many as the time allows:
#
#     tools/device/rows.sh SECONDS WHEELS PORTRAITS.tar.xz --scale h100 --rows 'table1_*' --seeds 0 1 --jobs 2
#
# WHEELS is a folder with the packages that the machine lacks. The archive is what tools/standins/portraits.py packs. The
# rest is for `python -m zigma_pl ablations`, which goes on where a call before this one was interrupted, as long as the
# machine is the same. Records and their pictures go to $OUT/results.tar.gz, curves and output to $OUT/logs.tar.gz;
# checkpoints stay on the machine, but for the models of the rows in $EXPORT (names with a space between), which are exported
# to $OUT/models.tar. $OVERLAYS may name more configuration files, such as configs/pilot.yaml.
set -u
cd "$(dirname "$0")/../.."
: "${OUT:?set OUT to the folder for the results}"
seconds=$1 wheels=$2 archive=$3
shift 3
python=${PYTHON:-python3}
site=$PWD/build/site
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
started=$SECONDS

if [ ! -d "$site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
if [ ! -d data/standins/portraits ]; then
    "$python" tools/standins/portraits.py "$archive" data/standins/portraits >"$OUT/portraits.log" 2>&1
fi
echo "ready after $((SECONDS - started)) s"

timeout --signal=USR1 --kill-after=60 "$((seconds - (SECONDS - started)))" \
    "$python" -m zigma_pl ablations "$@" --config configs/data/portraits.yaml ${OVERLAYS:-} --no-report >"$OUT/ablations.log" 2>&1
echo "ablations: exit status $?, after $((SECONDS - started)) s"
tail -n 40 "$OUT/ablations.log"

for row in ${EXPORT:-}; do
    checkpoint=$(find logs -path "*/$row/*/checkpoints/last.ckpt" | head -n 1)
    [ -n "$checkpoint" ] && "$python" -m zigma_pl export --ckpt_path "$checkpoint" --out "build/models/$row"
done
[ -n "${EXPORT:-}" ] && tar -cf "$OUT/models.tar" -C build models
tar -czf "$OUT/results.tar.gz" results
find logs -type f ! -path '*/checkpoints/*' ! -path '*/previews/*' -print0 |
    tar -czf "$OUT/logs.tar.gz" --null --files-from -
ls -l "$OUT"
