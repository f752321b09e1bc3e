#!/usr/bin/env bash
# On a GPU machine, run the checks, memcheck and the benchmarks that have targets, and compare the results with them:
#   tools/device/targets.sh [-c COMMIT] [-m MAMBA] [PART...]
# MAMBA: folder with mamba-ssm's csrc/selective_scan, which is built for this GPU for comparison.
# Parts, all by default, with the seconds that each takes at most:
#   checks      630  kernels against float64, and memcheck
#   mamba1      380  forward passes, training steps and the scan of Mamba-1 without captions
#   mamba       290  the scan against mamba-ssm's kernels; only with -m
#   ssd         360  SSD against mamba-ssm's Triton kernels and the scan of Mamba-1; needs the Python package mamba_ssm
#   steps       200  training steps with Mamba-2 and of DiT
#   captions    300  training steps with captions
#   orders      360  training steps along the sweep and other orders: Mamba-1, Mamba-2 and a hybrid
#   sampling    120  forward passes at 32 x 32 tokens
#   clips       180  training steps on clips of 16 frames
#   shipped     480  `fit` with experiments/table1_zigzag8.yaml, from a prepared folder and with live encoding
#   first_call  120  the first training step on a machine, and the first of a later process
#   gpus        420  training steps with captions on two GPUs
# With several GPUs, each takes the next part that is left, so the parts' tables are printed as they end; `gpus` runs last.
# Prints tables; writes all results to $OUT/targets.tar.gz, which is updated after each part. An archive that is already
# there is continued, so parts can be run in several calls with the same OUT. To compare archives of several calls on
# machines of one kind: tools/device/targets.py ARCHIVE... Fails if a check fails or a target is missed or not measured.
# All parts but `shipped` need only the packages that bench.sh needs; `checks` needs compute-sanitizer.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
commit=() mamba=
while getopts c:m: option; do
    case $option in
    c) commit=(--commit "$OPTARG") ;;
    m) mamba=$(realpath "$OPTARG") ;;
    *) exit 2 ;;
    esac
done
shift $((OPTIND - 1))
archive=targets.tar.gz
source tools/device/parts.sh
[ -f "$OUT/$archive" ] && tar -xzf "$OUT/$archive" -C "$results"
kernels=("$python" tools/device/kernels.py --out)
both=(--grids 32 64 --batches 32 8)
mixers=(mamba1:zigzag8-fast-graph mamba2:mamba2-fast-graph) # the fastest form of each mixer in training

run_checks() {
    part check 150 "${kernels[@]}" "$results/check.json" --check
    part ssd_check 150 "$python" tools/device/ssd.py --no-time --no-variants --out "$results/ssd_check.json"
    part row_check 150 "$python" tools/device/row_checks.py
    grep -hE "FAIL|failures" "$results"/{check,ssd_check,row_check}.txt
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    local memcheck=(compute-sanitizer --tool memcheck)
    part memcheck 180 "${memcheck[@]}" "${kernels[@]}" "$results/memcheck.json" --check-small &
    part ssd_memcheck 180 "${memcheck[@]}" "$python" tools/device/ssd.py --check-small &
    part row_memcheck 180 "${memcheck[@]}" "$python" tools/device/row_checks.py --small
    wait
    unset PYTORCH_NO_CUDA_MEMORY_CACHING
    grep "ERROR SUMMARY" "$results"/{memcheck,ssd_memcheck,row_memcheck}.txt
}

run_mamba1() {
    bench forward 150 --contestants zigzag8-compiled-graph sweep-compiled-graph dit-compiled-graph
    bench train 160 --repeats 3 --grids 128 32 64 --batches 2 32 8 \
        --contestants zigzag8-fast-graph zigzag8-fast zigzag8 sweep-fast-graph dit-compiled
    part kernels 40 "${kernels[@]}" "$results/kernels.json" --variants "" --keeps 16 8 32 \
        --shapes 8,4096 32,1024 1,1024 1,4096 1,16384 1,38416 2,16384
    part mixers 30 "${kernels[@]}" "$results/mixers.json" --mixers 0 1 --keeps 8 --shapes 1,4096 1,16384 2,16384
    cat "$results/kernels.txt" "$results/mixers.txt"
}

run_mamba() {
    [ -n "$mamba" ] || return
    MAX_JOBS=12 part mamba_build 250 "$python" tools/device/mamba.py "$mamba" "$results/mamba.json" --build-only
    part mamba 40 "$python" tools/device/mamba.py "$mamba" "$results/mamba.json"
    cat "$results/mamba.txt"
}

run_ssd() {
    part ssd 360 "$python" tools/device/ssd.py --no-check --no-variants --peers 270 --out "$results/ssd.json"
    cat "$results/ssd.txt"
}

run_steps() {
    bench train:steps 200 --repeats 5 --grids 128 32 64 --batches 2 32 8 \
        --contestants mamba2-fast-graph mamba2-graph mamba2 dit-compiled
}

run_captions() {
    local name
    for name in "${mixers[@]}"; do
        bench "train:captions_${name%%:*}" 150 --captions --repeats 5 "${both[@]}" --contestants "${name##*:}" dit-compiled
    done
}

run_orders() {
    bench train:orders_mamba1 120 "${both[@]}" --repeats 7 \
        --contestants sweep-fast-graph zigzag8-fast-graph random8-fast-graph
    bench train:orders_mamba2 120 "${both[@]}" --repeats 7 \
        --contestants mamba2-sweep-fast-graph mamba2-fast-graph mamba2-random8-fast-graph
    bench train:orders_hybrid 120 "${both[@]}" --repeats 7 \
        --contestants hybrid-sweep-graph hybrid-graph hybrid-random8-graph
}

run_sampling() {
    bench forward:sampling 120 --grids 32 --batches 1 16 \
        --contestants zigzag8-compiled-graph mamba2-compiled-graph mamba2-graph dit-compiled-graph
}

run_clips() {
    bench train:clips 180 --repeats 5 --frames 16 --grids 16 --batches 4 \
        --contestants zigzag8-fast-graph mamba2-fast-graph factorized-fast-graph mamba2-factorized-fast-graph dit-compiled
}

run_shipped() {
    part shipped 480 "$python" tools/device/shipped.py "$results/shipped.json" "${commit[@]}"
    grep -E '^[a-z0-9]+ \{' "$results/shipped.txt"
}

run_first_call() {
    part first_call 120 "$python" tools/device/first_call.py "$results/first_call.json" "${commit[@]}"
    cat "$results/first_call.txt"
}

run_gpus() {
    local name
    for name in "${mixers[@]}"; do
        part "scaling_${name%%:*}" 210 "$python" tools/device/scaling.py "$results/scaling_${name%%:*}.json" \
            --captions --contestant "${name##*:}" --num_devices 1 2
        cat "$results/scaling_${name%%:*}.txt"
    done
}

[ $# -gt 0 ] || set -- checks mamba1 mamba ssd steps captions orders sampling clips shipped first_call gpus
for name; do
    declare -F "run_$name" >/dev/null || { echo "targets.sh: there is no part $name" >&2 && exit 2; }
done
take_parts() { # GPU: runs parts until none is left
    local name
    [ "$num_gpus" -gt 1 ] && export CUDA_VISIBLE_DEVICES=$1
    while name=$(take_part) && [ -n "$name" ]; do
        "run_$name" >"$results/$name.out" 2>&1
        cat "$results/$name.out"
    done
}

take_part() { # prints the next part and removes it from the list
    flock 9
    head -n 1 "$results.parts"
    sed -i 1d "$results.parts"
} 9>"$results.lock"

num_gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
printf '%s\n' "$@" | grep -vx gpus >"$results.parts"
workers=()
for ((gpu = 0; gpu < (num_gpus > 1 ? num_gpus : 1); ++gpu)); do
    take_parts "$gpu" &
    workers+=($!)
done
wait "${workers[@]}"
[[ " $* " != *" gpus "* ]] || run_gpus
"$python" tools/device/targets.py "$results" | tee "$results/targets.txt"
all_met=${PIPESTATUS[0]}
keep
exit "$all_met"
