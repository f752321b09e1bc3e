#!/usr/bin/env bash
# All benchmarks on a GPU machine, in at most 560 seconds: tools/device/bench.sh [COMMIT]
# Tables go to stdout; tables, JSON files, pictures and logs to $OUT/bench.tar.gz, made anew after each benchmark.
# Needs only torch, numpy, einops and matplotlib there. What matters most comes first, and a benchmark that takes too
# long is interrupted and keeps the settings that it has timed.
set -u
cd "$(dirname "$0")/../.."
archive=bench.tar.gz commit=(${1:+--commit "$1"})
source tools/device/parts.sh

bench train 140
bench forward 140
bench efficiency 190
bench order 45
bench scan 45
