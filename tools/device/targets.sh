#!/usr/bin/env bash
# On a GPU machine, in 600 seconds, run the checks, memcheck and the benchmarks that have targets. Fails if a target is
# missed:
#   tools/device/targets.sh [COMMIT [MAMBA]]
# MAMBA: folder with mamba-ssm's csrc/selective_scan, which is built for this GPU for comparison.
# Prints tables; writes all results to $OUT/targets.tar.gz, which is updated after each part. Needs the packages that
# bench.sh needs, and compute-sanitizer. Timing comes before compilation, which uses all CPU cores.
set -u
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
archive=targets.tar.gz commit=(${1:+--commit "$1"}) mamba=${2:+$(realpath "$2")}
source tools/device/parts.sh

kernels=("$python" tools/device/kernels.py --out)
part check 150 "${kernels[@]}" "$results/check.json" --check
grep -E "FAIL|failures" "$results/check.txt"
bench forward 150 --contestants zigzag8-compiled-graph sweep-compiled-graph dit-compiled-graph
bench train 160 --repeats 3 --grids 128 32 64 --batches 2 32 8 \
    --contestants zigzag8-fast-graph zigzag8-fast zigzag8 sweep-fast-graph dit-compiled
part kernels 40 "${kernels[@]}" "$results/kernels.json" --variants "" --keeps 16 8 32 \
    --shapes 8,4096 32,1024 1,1024 1,4096 1,16384 1,38416 2,16384
part mixers 30 "${kernels[@]}" "$results/mixers.json" --mixers 0 1 --keeps 8 --shapes 1,4096 1,16384 2,16384
cat "$results/kernels.txt" "$results/mixers.txt"

export PYTORCH_NO_CUDA_MEMORY_CACHING=1
part memcheck 120 compute-sanitizer --tool memcheck "${kernels[@]}" "$results/memcheck.json" --check-small &
unset PYTORCH_NO_CUDA_MEMORY_CACHING
if [ -n "$mamba" ]; then
    MAX_JOBS=12 part mamba_build 250 "$python" tools/device/mamba.py "$mamba" "$results/mamba.json" --build-only
    wait
    part mamba 40 "$python" tools/device/mamba.py "$mamba" "$results/mamba.json"
    cat "$results/mamba.txt"
fi
wait
grep "ERROR SUMMARY" "$results/memcheck.txt"
"$python" tools/device/targets.py "$results" | tee "$results/targets.txt"
all_met=${PIPESTATUS[0]}
keep
exit "$all_met"
