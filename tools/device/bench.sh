#!/usr/bin/env bash
# All benchmarks on a GPU machine, in at most 8 minutes: tools/device/bench.sh [COMMIT]
# Tables go to stdout; tables, JSON files, pictures and logs to $OUT/bench.tar.gz, made anew after each benchmark.
# Needs only torch, numpy, einops and matplotlib there. A benchmark that takes too long is interrupted, and keeps what
# it has timed. Blocks are compiled one by one in training, because whole models would take all the time.
set -u
cd "$(dirname "$0")/../.."
: "${OUT:?set OUT to the folder for the results}"
results=$(mktemp -d)
commit=("${@:+--commit}" "$@")
started=$SECONDS

bench() { # seconds name arguments...
    local limit=$1 name=$2
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" "${PYTHON:-python3}" -m zigma_pl bench "$@" "${commit[@]}" \
        --json "$results/$name.json" --plot "$results/$name.png" >"$results/$name.txt" 2>"$results/$name.log"
    echo "== $name: exit status $?, $((SECONDS - started)) s so far" | tee -a "$results/status.txt"
    cat "$results/$name.txt"
    grep -v '^  ' "$results/$name.log" | tail -n 5
    tar -czf "$OUT/bench.tar.gz" -C "$results" .
}

bench 45 scan scan
bench 145 train train --compile blocks --repeats 9
bench 175 forward forward --repeats 9
bench 40 forward_batch16 forward --grids 32 --batches 16 --repeats 9
bench 50 order order --repeats 9
