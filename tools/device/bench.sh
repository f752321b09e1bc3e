#!/usr/bin/env bash
# All benchmarks on a GPU machine, in at most 560 seconds: tools/device/bench.sh [COMMIT]
# Tables go to stdout; tables, JSON files, pictures and logs to $OUT/bench.tar.gz, made anew after each benchmark.
# Needs only torch, numpy, einops and matplotlib there. What matters most comes first, and a benchmark that takes too
# long is interrupted and keeps the settings that it has timed.
set -u
cd "$(dirname "$0")/../.."
: "${OUT:?set OUT to the folder for the results}"
results=$(mktemp -d)
commit=("${@:+--commit}" "$@")
started=$SECONDS

bench() { # seconds subject
    local limit=$1 subject=$2
    timeout --signal=INT --kill-after=10 "$limit" "${PYTHON:-python3}" -m zigma_pl bench "$subject" "${commit[@]}" \
        --json "$results/$subject.json" --plot "$results/$subject.png" >"$results/$subject.txt" 2>"$results/$subject.log"
    echo "== $subject: exit status $?, $((SECONDS - started)) s so far" | tee -a "$results/status.txt"
    cat "$results/$subject.txt"
    grep -v '^  ' "$results/$subject.log" | tail -n 5
    tar -czf "$OUT/bench.tar.gz" -C "$results" .
}

bench 140 train
bench 140 forward
bench 190 efficiency
bench 45 order
bench 45 scan
