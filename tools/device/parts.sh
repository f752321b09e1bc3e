# For scripts that run parts on a GPU machine: they set `archive` and `commit`, an array with --commit COMMIT or nothing, and
# source this in the root of the repository. Outputs of a part go to files in $results, which $OUT/$archive holds after each.
: "${OUT:?set OUT to the folder for the results}"
python=${PYTHON:-python3}
results=$(mktemp -d)
started=$SECONDS

keep() {
    tar -czf "$OUT/$archive" -C "$results" .
}

part() { # name seconds command: one that takes too long is interrupted, and keeps what it has
    local name=$1 limit=$2
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$results/$name.txt" 2>"$results/$name.log"
    echo "== $name: exit status $?, $((SECONDS - started)) s so far" | tee -a "$results/status.txt"
    keep
}

bench() { # subject seconds options
    local subject=$1 limit=$2
    shift 2
    part "$subject" "$limit" "$python" -m zigma_pl bench "$subject" "$@" "${commit[@]}" \
        --json "$results/$subject.json" --plot "$results/$subject.png"
    cat "$results/$subject.txt"
    grep -v '^  ' "$results/$subject.log" | tail -n 5
}
