"""Compare the results of targets.sh with the targets: python tools/device/targets.py FOLDER. Fails if one is missed."""

import json
import re
import sys
from pathlib import Path

# (grid, batch size): least images per second; for training, of the faster of two variants.
FORWARD = {(32, 1): 250, (64, 1): 200, (128, 1): 70, (196, 1): 28, (32, 16): 1200}
TRAINING = {(32, 32): 380, (64, 8): 95, (128, 2): 23}
TRAINING_GB = {(32, 32): 8.7}  # most peak memory, with activation memory "lean"
TO_SWEEP = 0.98  # least throughput, as a fraction of the sweep's
# (B, L): most time, as a fraction of that of mamba-ssm's kernels.
TO_MAMBA = {(8, 4096): 0.36, (32, 1024): 0.36, (1, 1024): 1, (1, 4096): 1, (1, 16384): 1, (1, 38416): 1}

# The output file of a check: the pattern with the number of failures.
CHECKS = {"check": r"(\d+) failures", "memcheck": r"ERROR SUMMARY: (\d+) errors"}


def records_of(path):
    """Return the records of a benchmark by (grid, batch size) and contestant."""
    records = {}
    for record in json.loads(path.read_text())["records"]:
        records.setdefault((record["grid"], record["batch_size"]), {})[record["contestant"]] = record
    return records


def comparisons(folder):
    """Yield (what, measured, comparison, target); measured is None if there is no result."""
    speeds = [
        ("forward", FORWARD, ["zigzag8-compiled-graph"]),
        ("train", TRAINING, ["zigzag8-fast-graph", "zigzag8-fast"]),
    ]
    for subject, targets, contestants in speeds:
        path = folder / f"{subject}.json"
        by_setting = records_of(path) if path.is_file() else {}
        for setting, target in targets.items():
            records = [by_setting.get(setting, {}).get(contestant) for contestant in contestants]
            best = max((record["per_second"] for record in records if record), default=None)
            yield f"{subject} {setting}, per second", best, ">=", target
            ratio = records[0] and records[0]["ratios"]["to sweep"]
            yield f"{subject} {setting}, to sweep", ratio and ratio["median"], ">=", TO_SWEEP
            if subject == "train" and setting in TRAINING_GB:
                lean = by_setting.get(setting, {}).get("zigzag8")
                yield (
                    f"train {setting}, GB in lean",
                    lean and lean["peak_memory_bytes"] / 1e9,
                    "<=",
                    TRAINING_GB[setting],
                )
    for name, pattern in CHECKS.items():
        path = folder / f"{name}.txt"
        match = re.search(pattern, path.read_text()) if path.is_file() else None
        yield f"{name}, failures", match and int(match[1]), "<=", 0
    path = folder / "mamba.json"
    ratios = json.loads(path.read_text()) if path.is_file() else {}
    for shape, target in TO_MAMBA.items():
        yield f"scan {shape}, to mamba-ssm", ratios.get(str(shape), {}).get("ratio"), "<=", target


def main():
    """Print a line for each target."""
    all_met = True
    for what, measured, comparison, target in comparisons(Path(sys.argv[1])):
        met = measured is not None and (measured >= target if comparison == ">=" else measured <= target)
        all_met = all_met and met
        verdict = "not measured" if measured is None else "met" if met else "MISSED"
        shown = "-" if measured is None else f"{measured:.4g}"
        print(f"{what:34s} {shown:>8s} {comparison} {target:<6g} {verdict}")
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
