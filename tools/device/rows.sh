#!/usr/bin/env bash
# Rows of the tables on a GPU machine without a network, as many as the time allows:
#
#     tools/device/rows.sh SECONDS WHEELS 'ARCHIVE...' --scale h100 --rows 'table1_*' --seeds 0 --jobs 4 --config FILE...
#
# WHEELS is a folder with the packages that the machine lacks. An archive is what tools/standins/portraits.py packs, named
# portraits-*, or the folder of another data set; what is in it goes to data/standins/. The rest is for
# `python -m zigma_pl ablations`, which leaves out rows whose records are here, and goes on where a call before this one was
# interrupted as long as the machine is the same. Records that were made there, their pictures, curves and output go to
# $OUT/rows.tar.gz.aa, .ab, ... (`cat` puts the parts together). Checkpoints stay on the machine, but for the models of the
# rows in $EXPORT (pilot/table1_zigzag8 ..., a space between), which are exported, with 16 bits a weight, to $OUT/models.tar.
# For the rows in $ATTRIBUTES, $CLASSIFIER, which tools/standins/attribute_classifier.py has trained, tells how often the
# portraits show what their captions say: results/SCALE/ROW/attributes.json.
set -u
cd "$(dirname "$0")/../.."
: "${OUT:?set OUT to the folder for the results}"
seconds=$1 wheels=$2 archives=$3
shift 3
python=${PYTHON:-python3}
site=$PWD/build/site
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
started=$SECONDS
begun=build/begun # with the first call on this machine

mkdir -p build
[ -f "$begun" ] || touch "$begun"
if [ ! -d "$site" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
for archive in $archives; do
    name=$(basename "${archive%%.tar*}")
    case $name in portraits-*) name=portraits ;; esac
    [ -d "data/standins/$name" ] && continue
    if [ "$name" = portraits ]; then
        "$python" tools/standins/portraits.py "$archive" data/standins/portraits >"$OUT/portraits.log" 2>&1
    else
        tar -xf "$archive" -C data/standins
    fi
done
echo "ready after $((SECONDS - started)) s"

timeout --signal=USR1 --kill-after=60 "$((seconds - (SECONDS - started)))" \
    "$python" -m zigma_pl ablations "$@" --no-report >"$OUT/ablations.log" 2>&1
echo "ablations: exit status $?, after $((SECONDS - started)) s"
tail -n 40 "$OUT/ablations.log"

for run in ${ATTRIBUTES:-}; do
    samples=$(find "samples/${run#*/}" -name sampling.json | head -n 1)
    [ -n "$samples" ] && "$python" tools/standins/attribute_classifier.py data/standins/portraits \
        --classifier "$CLASSIFIER" --samples "$(dirname "$samples")" --out "results/$run/attributes.json" \
        >>"$OUT/attributes.log" 2>&1
done
for run in ${EXPORT:-}; do
    checkpoint=$(find "logs/$run" -name last.ckpt | head -n 1)
    [ -n "$checkpoint" ] &&
        "$python" -m zigma_pl export --ckpt_path "$checkpoint" --dtype float16 --out "build/models/${run#*/}"
done
[ -n "${EXPORT:-}" ] && tar -cf "$OUT/models.tar" -C build models
find results logs -type f -newer "$begun" ! -path '*/checkpoints/*' ! -path '*/previews/*' -print0 |
    tar -cz --null --files-from - | split -b 15m - "$OUT/rows.tar.gz."
ls -l "$OUT"
