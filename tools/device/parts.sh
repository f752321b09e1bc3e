# Functions for scripts that run several parts on a GPU machine. Such a script sets `archive` and `commit`, an array that
# is empty or contains --commit COMMIT, and sources this file in the root of the repository. The outputs of a part are
# written to files in $results, and all files are packed to $OUT/$archive after each part.
: "${OUT:?set OUT to the folder for the results}"
python=${PYTHON:-python3}
mkdir -p "$OUT"
results=$(mktemp -d)
started=$SECONDS

keep() { # parts on several GPUs may end at the same time
    flock 9
    tar -czf "$results.tar.gz" --warning=no-file-changed -C "$results" .
    mv "$results.tar.gz" "$OUT/$archive"
} 9>"$results.lock"

part() { # name seconds command: interrupts a command that takes too long; its output until then is kept
    local name=$1 limit=$2
    shift 2
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$results/$name.txt" 2>"$results/$name.log"
    echo "== $name: exit status $?, $((SECONDS - started)) s so far" | tee -a "$results/status.txt"
    keep
}

bench() { # subject[:name] seconds options: the files have the name, by default that of the subject
    local subject=${1%%:*} name=${1##*:} limit=$2
    shift 2
    part "$name" "$limit" "$python" -m zigma_pl bench "$subject" "$@" "${commit[@]}" \
        --json "$results/$name.json" --plot "$results/$name.png"
    cat "$results/$name.txt"
    grep -v '^  ' "$results/$name.log" | tail -n 5
}
