#!/usr/bin/env bash
# Benchmarks on a GPU machine: tools/device/bench.sh [COMMIT [SUBJECT...]]
# Subjects: train, forward, order, scan (all these, in at most 440 seconds, unless named) and efficiency (260 seconds).
# Tables go to stdout; tables, JSON files, pictures and logs to $OUT/bench.tar.gz, made anew after each benchmark.
# Needs only torch, numpy, einops and matplotlib there. A benchmark that takes too long is interrupted and keeps the
# settings that it has timed.
set -u
cd "$(dirname "$0")/../.."
archive=bench.tar.gz commit=(${1:+--commit "$1"})
source tools/device/parts.sh

declare -A seconds=([train]=150 [forward]=200 [order]=45 [scan]=45 [efficiency]=260)
[ $# -gt 1 ] && subjects=("${@:2}") || subjects=(train forward order scan)
for subject in "${subjects[@]}"; do
    bench "$subject" "${seconds[$subject]:?is not one of: ${!seconds[*]}}"
done
