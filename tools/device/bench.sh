#!/usr/bin/env bash
# Run benchmarks on a GPU machine: tools/device/bench.sh [COMMIT [SUBJECT...]]
# Subjects: train, forward, order, scan (by default these four, in at most 440 seconds) and efficiency (260 seconds).
# Prints tables; writes tables, JSON files, charts and logs to $OUT/bench.tar.gz, which is updated after each benchmark.
# The machine needs only torch, numpy, einops and matplotlib. A benchmark that takes too long is interrupted; the
# settings timed until then are kept.
set -u
cd "$(dirname "$0")/../.."
archive=bench.tar.gz commit=(${1:+--commit "$1"})
source tools/device/parts.sh

declare -A seconds=([train]=150 [forward]=200 [order]=45 [scan]=45 [efficiency]=260)
[ $# -gt 1 ] && subjects=("${@:2}") || subjects=(train forward order scan)
for subject in "${subjects[@]}"; do
    bench "$subject" "${seconds[$subject]:?unknown subject: choose from ${!seconds[*]}}"
done
