#!/usr/bin/env bash
# Run experiments on a GPU machine without network access, in calls of a few minutes each:
#
#     tools/device/experiments.sh begin FOLDER WHEELS COMMANDS RUNS_PER_GPU ARCHIVE...
#     tools/device/experiments.sh collect FOLDER SECONDS ARCHIVE...
#
# `begin` copies the repository to FOLDER, installs the packages in WHEELS, unpacks the archives of data sets to
# data/synthetic/ (archives packed by tools/synthetic/portraits.py, named portraits-*, or packed folders of other sets;
# archives packed by tools/fashion_mnist.py, named fashion-*, to data/fashion-mnist)
# and starts the commands in the file COMMANDS, one per line, in this order, RUNS_PER_GPU at a time on each GPU. They
# continue after `begin` has returned.
# `collect` unpacks its archives, waits until all commands are done or SECONDS have passed, prints progress and scores,
# and packs the results so far, without checkpoints, to $OUT/results.tar.gz.aa, .ab, ... (join the parts with `cat`).
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
        fashion-*) "$python" tools/fashion_mnist.py "$archive" "$folder/data/fashion-mnist" 2>&1 | tail -n 1 ;;
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
    wheels=$1 commands=$2 runs_per_gpu=$3
    shift 3
    mkdir -p "$folder/data/synthetic"
    cp -r configs experiments tools tests zigma_pl setup.cfg "$folder/"
    cp "$commands" "$folder/commands"
    [ -d .git ] && cp -r .git "$folder/"
    [ -d "$folder/site" ] || "$python" -m pip install -q --no-index --no-deps --no-compile --target "$folder/site" "$wheels"/*.whl
    export PYTHONPATH="$folder/site:$folder"
    unpack "$@"
    cd "$folder" || exit
    mkdir -p output
    touch begun done
    NUM_GPUS=$(nvidia-smi --list-gpus | wc -l)
    export NUM_GPUS OMP_NUM_THREADS=2 PYTHONUNBUFFERED=1 max_runs=$((runs_per_gpu * NUM_GPUS))
    export -f run_one
    # In a new session, so that the commands continue after this script has returned.
    setsid bash -c '
        nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader,nounits -l 5 >utilization &
        xargs --arg-file=commands --delimiter="\n" --max-args=1 --max-procs="$max_runs" --process-slot-var=SLOT \
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
    while [ $SECONDS -lt "$seconds" ] && [ "$(wc -l <done)" -lt "$(wc -l <commands)" ]; do sleep 2; done
    cut -c 1-120 done
    echo "the newest outputs:"
    ls -t output/* | head -n 16 | while read -r log; do head -n 1 "$log" | cut -c 1-100 && tail -c 90 "$log" && echo; done
    echo "GPU, busy %, MiB over the last minutes:"
    tail -n 480 utilization | awk -F', ' '{ n[$1]++; u[$1] += $2; m[$1] = $3 } END { for (i in n) print i, u[i] / n[i], m[i] }'
    [ -d results ] && "$python" tools/device/scores.py results
    find results logs output build -type f -newer begun ! -path '*/checkpoints/*' ! -path '*/previews/*' \
        ! -path 'build/cache/*' -print0 2>/dev/null | tar -cz --null --files-from - | split -b 15m - "$OUT/results.tar.gz."
    ls -l "$OUT"
    ;;
*)
    echo "experiments.sh: the first argument must be begin or collect, got $verb" >&2
    exit 2
    ;;
esac
