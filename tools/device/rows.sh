#!/usr/bin/env bash
# Rows of the tables on a GPU machine without a network, which is lent for some minutes at a time:
#
#     tools/device/rows.sh begin FOLDER WHEELS PLAN ROWS_PER_GPU ARCHIVE...
#     tools/device/rows.sh collect FOLDER SECONDS ARCHIVE...
#
# `begin` copies the repository to FOLDER, installs the packages in WHEELS that the machine lacks, unpacks the archives of data
# (what tools/synthetic/portraits.py packs, named portraits-*, or the packed folder of another set) to data/synthetic/, and starts
# to run the commands in PLAN, one in a line, in their order and so many on each GPU at a time. They go on when it has returned.
# `collect` waits until all are done or the seconds are over, tells how they do, and packs what they have made so far, without
# checkpoints, to $OUT/rows.tar.gz.aa, .ab, ... (`cat` puts the parts together). Archives given to it are unpacked first.
set -u
: "${OUT:?set OUT to the folder for the results}"
verb=$1 folder=$2
shift 2
python=${PYTHON:-python3}

unpack() {
    for archive; do
        local name
        name=$(basename "${archive%%.tar*}")
        case $name in
        portraits-*) "$python" tools/synthetic/portraits.py "$archive" "$folder/data/synthetic/portraits" 2>&1 | tail -n 1 ;;
        *) tar -xf "$archive" -C "$folder/data/synthetic" ;;
        esac
    done
}

run_one() {
    export CUDA_VISIBLE_DEVICES=$((SLOT % NUM_GPUS))
    local log began
    log=output/$(date +%H%M%S)_$SLOT began=$(date +%s)
    { echo "$1" && bash -c "$1"; } >"$log" 2>&1
    echo "$? after $(($(date +%s) - began)) s on GPU $CUDA_VISIBLE_DEVICES: $1" >>done
}

case $verb in
begin)
    wheels=$1 plan=$2 rows_per_gpu=$3
    shift 3
    mkdir -p "$folder/data/synthetic"
    cp -r configs experiments tools tests zigma_pl setup.cfg "$folder/"
    cp "$plan" "$folder/plan"
    [ -d .git ] && cp -r .git "$folder/"
    [ -d "$folder/site" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target "$folder/site" "$wheels"/*.whl
    export PYTHONPATH="$folder/site:$folder"
    unpack "$@"
    cd "$folder" || exit
    mkdir -p output
    touch begun done
    NUM_GPUS=$(nvidia-smi --list-gpus | wc -l)
    export NUM_GPUS OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1 max_rows=$((rows_per_gpu * NUM_GPUS))
    export -f run_one
    # A session of its own, which goes on when this call has returned.
    setsid bash -c '
        nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader,nounits -l 5 >utilization &
        xargs --arg-file=plan --delimiter="\n" --max-args=1 --max-procs="$max_rows" --process-slot-var=SLOT \
            bash -c "run_one \"\$0\""
        kill $!
    ' </dev/null >/dev/null 2>&1 &
    ;;
collect)
    seconds=$1
    shift
    export PYTHONPATH="$folder/site:$folder"
    unpack "$@"
    cd "$folder" || exit
    while [ $SECONDS -lt "$seconds" ] && [ "$(wc -l <done)" -lt "$(wc -l <plan)" ]; do sleep 2; done
    cut -c 1-120 done
    echo "the newest outputs:"
    ls -t output/* | head -n 16 | while read -r log; do head -n 1 "$log" | cut -c 1-100 && tail -c 90 "$log" && echo; done
    echo "GPU, busy %, MiB over the last minutes:"
    tail -n 480 utilization | awk -F', ' '{ n[$1]++; u[$1] += $2; m[$1] = $3 } END { for (i in n) print i, u[i] / n[i], m[i] }'
    find results logs output build -type f -newer begun ! -path '*/checkpoints/*' ! -path '*/previews/*' \
        ! -path 'build/cache/*' -print0 2>/dev/null | tar -cz --null --files-from - | split -b 15m - "$OUT/rows.tar.gz."
    ls -l "$OUT"
    ;;
*)
    echo "rows.sh: begin or collect, not $verb" >&2
    exit 2
    ;;
esac
