"""Compare the results of targets.sh with the targets: python tools/device/targets.py FOLDER_OR_ARCHIVE...

Of files with the same name, those of the last folder or archive count. Prints a line for each target, and fails if one
is missed or not measured, or if the results are of different commits or kinds of machines.
"""

import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Setting = tuple[int, int]  # grid and batch size
Records = dict[Setting, dict[str, dict[str, Any]]]  # of a benchmark, by setting and contestant

READ = (".txt", ".json")  # files with results
# The output file of a check: the pattern with the number of failures.
CHECKS = {
    "check": r"(\d+) failures",
    "ssd_check": r"(\d+) failures",
    "row_check": r"(\d+) failures",
    "memcheck": r"ERROR SUMMARY: (\d+) errors",
    "ssd_memcheck": r"ERROR SUMMARY: (\d+) errors",
    "row_memcheck": r"ERROR SUMMARY: (\d+) errors",
}

# --- Mamba-1 without captions -----------------------------------------------------------------------------------------
FORWARD = {(32, 1): 250, (64, 1): 200, (128, 1): 70, (196, 1): 28, (32, 16): 1200}  # least frames per second
TRAINING = {(32, 32): 380, (64, 8): 95, (128, 2): 23}  # least images per second, of the faster of two variants
TRAINING_GB = {(32, 32): 8.7}  # most peak memory, with activation memory "lean"
TO_SWEEP = 0.98  # least throughput, as a fraction of the sweep's
# (B, L): most time, as a fraction of that of mamba-ssm's kernels.
TO_MAMBA = {(8, 4096): 0.36, (32, 1024): 0.36, (1, 1024): 1, (1, 4096): 1, (1, 16384): 1, (1, 38416): 1}

# --- Mamba-2, captions, runs as shipped, sampling of small images, clips ----------------------------------------------
DIT, SAMPLED_DIT = "to DiT, compiled", "to DiT, compiled, CUDA graph"  # columns of ratios of speeds
SSD_SHAPES = [(32, 1024), (8, 4096)]
SSD_TO_MAMBA, SSD_TO_SCAN = 0.17, 0.40  # most time, as a fraction of mamba-ssm's SSD and of this package's Mamba-1 scan
MAMBA2_TO_DIT = {(32, 32): 1.0, (64, 8): 1.55, (128, 2): 3.3}  # least speed of training
MAMBA2_FORMS = ("mamba2-fast-graph", "mamba2-graph", "mamba2")  # the fastest counts; the memory is the last one's
MAMBA2_GB_TO_DIT, MAMBA2_PARAMETERS = 0.6, 0.03  # most memory in "lean"; most difference in parameters
PARAMETERS_SETTING = (32, 32)  # on larger grids, only the learnable position embedding is larger
CAPTION_STEP = 1.20  # most time of a step with captions, as a multiple of one without
CAPTION_SETTINGS = [(32, 32), (64, 8)]
MIXERS = {"mamba1": "zigzag8-fast-graph", "mamba2": "mamba2-fast-graph"}  # the fastest form of each mixer in training
SHIPPED_TO_DIT = {"mamba1": 0.80, "mamba2": 1.0}  # least speed of `fit`, as a fraction of DiT's steps with captions
SAMPLING_TO_DIT = {(32, 1): 0.9, (32, 16): 1.0}  # least speed of the fastest
STEP_TO_SWEEP = 1.02  # most time of a training step along any order
ORDERS = {
    "orders_mamba1": ["zigzag8-fast-graph", "random8-fast-graph"],
    "orders_mamba2": ["mamba2-fast-graph", "mamba2-random8-fast-graph"],
    "orders_hybrid": ["hybrid-graph", "hybrid-random8-graph"],
}
FIRST_CALL_SECONDS = {"compiled": 10, "from the cache": 0.5}
TWO_GPUS = 0.95  # least efficiency of two GPUs, with captions
CLIPS = {
    "3D zigzag": ["zigzag8-fast-graph", "mamba2-fast-graph"],
    "factorized": ["factorized-fast-graph", "mamba2-factorized-fast-graph"],
}
CLIPS_SETTING, CLIPS_TO_DIT = (16, 4), 1.0


class Target(NamedTuple):
    """A target; `measured` is None if there is no result."""

    what: str
    comparison: str
    required: float
    measured: float | None

    @property
    def verdict(self) -> str:
        """Return met, MISSED or not measured."""
        if self.measured is None:
            return "not measured"
        is_met = self.measured >= self.required if self.comparison == ">=" else self.measured <= self.required
        return "met" if is_met else "MISSED"  # NaN is never met


class Results:
    """The texts of result files by name."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.texts = texts

    @classmethod
    def read(cls, paths: list[Path]) -> "Results":
        """Read all .txt and .json files in folders and .tar.gz archives."""
        texts = {}
        for path in paths:
            if path.is_dir():
                texts |= {file.name: file.read_text() for file in path.iterdir() if file.name.endswith(READ)}
                continue
            with tarfile.open(path) as archive:
                for member in archive.getmembers():
                    if member.name.endswith(READ):
                        texts[Path(member.name).name] = archive.extractfile(member).read().decode()
        return cls(texts)

    def json(self, part: str) -> dict[str, Any]:
        """Return the content of a part's JSON file, empty if there is none."""
        return json.loads(self.texts.get(f"{part}.json", "{}"))

    def records(self, part: str) -> Records:
        """Return the records of a benchmark."""
        records: Records = {}
        for record in self.json(part).get("records", []):
            records.setdefault((record["grid"], record["batch_size"]), {})[record["contestant"]] = record
        return records

    def machines(self) -> dict[str, set[str]]:
        """Return the kinds of devices and the commits that the results are of."""
        parts = [self.json(name.removesuffix(".json")) for name in self.texts if name.endswith(".json")]
        machines = [part["machine"] if isinstance(part.get("machine"), dict) else part for part in parts]
        return {key: {machine[key] for machine in machines if machine.get(key)} for key in ("device", "commit")}


# --- values -----------------------------------------------------------------------------------------------------------
def speed_ratio(record: dict[str, Any] | None, column: str) -> float | None:
    """Return the median ratio of a record's speed to that of its rival, None without one."""
    spread = record and record["ratios"].get(column)
    return spread["median"] if spread else None


def inverse(value: float | None) -> float | None:
    """Return 1 / value, None for None."""
    return None if value is None else 1 / value


def quotient(value: float | None, other: float | None) -> float | None:
    """Return value / other, None if one of them is None."""
    return None if value is None or other is None else value / other


def largest(values: list[float | None]) -> float | None:
    """Return the largest value that was measured."""
    return max((value for value in values if value is not None), default=None)


def sum_of(times: dict[str, float]) -> float | None:
    """Return the time of the kernels of both passes."""
    return times["forward"] + times["backward"] if "backward" in times else None


# --- tables -----------------------------------------------------------------------------------------------------------
def check_targets(results: Results) -> Iterator[Target]:
    """Yield the numbers of failures."""
    for name, pattern in CHECKS.items():
        match = re.search(pattern, results.texts.get(f"{name}.txt", ""))
        yield Target(f"{name}, failures", "<=", 0, int(match[1]) if match else None)


def mamba1_targets(results: Results) -> Iterator[Target]:
    """Yield the targets of Mamba-1 without captions."""
    speeds = [
        ("forward", FORWARD, ["zigzag8-compiled-graph"]),
        ("train", TRAINING, ["zigzag8-fast-graph", "zigzag8-fast"]),
    ]
    for subject, targets, contestants in speeds:
        by_setting = results.records(subject)
        for setting, target in targets.items():
            of_setting = by_setting.get(setting, {})
            records = [of_setting.get(contestant) for contestant in contestants]
            fastest = largest([record["per_second"] for record in records if record])
            yield Target(f"{subject} {setting}, per second", ">=", target, fastest)
            yield Target(f"{subject} {setting}, to sweep", ">=", TO_SWEEP, speed_ratio(records[0], "to sweep"))
            if subject == "train" and setting in TRAINING_GB:
                peak = of_setting.get("zigzag8", {}).get("peak_memory_bytes")
                yield Target(f"train {setting}, GB in lean", "<=", TRAINING_GB[setting], peak and peak / 1e9)
    ratios = results.json("mamba")
    for shape, target in TO_MAMBA.items():
        yield Target(f"scan {shape}, to mamba-ssm", "<=", target, ratios.get(str(shape), {}).get("ratio"))


def ssd_targets(results: Results) -> Iterator[Target]:
    """Yield the targets of the SSD op: its kernels against mamba-ssm's, in their faster form, and the Mamba-1 scan."""
    times = results.json("ssd")
    for shape in SSD_SHAPES:
        ours, scan = (sum_of(times.get(f"{op} {shape}", {})) for op in ("ssd", "selective scan"))
        theirs = min(times.get(f"mamba_ssm {shape}", {}).values(), default=None)
        yield Target(f"SSD {shape}, time to mamba-ssm", "<=", SSD_TO_MAMBA, quotient(ours, theirs))
        yield Target(f"SSD {shape}, time to Mamba-1's scan", "<=", SSD_TO_SCAN, quotient(ours, scan))


def training_targets(results: Results) -> Iterator[Target]:
    """Yield the targets of training steps: Mamba-2 to DiT, captions, orders, clips."""
    by_setting = results.records("steps")
    for setting, target in MAMBA2_TO_DIT.items():
        records = by_setting.get(setting, {})
        lean, dit = records.get(MAMBA2_FORMS[-1], {}), records.get("dit-compiled", {})
        ratio = largest([speed_ratio(records.get(name), DIT) for name in MAMBA2_FORMS])
        yield Target(f"Mamba-2 training {setting}, to DiT", ">=", target, ratio)
        gigabytes = quotient(lean.get("peak_memory_bytes"), dit.get("peak_memory_bytes"))
        yield Target(f"Mamba-2 training {setting} in lean, memory to DiT", "<=", MAMBA2_GB_TO_DIT, gigabytes)
        if setting == PARAMETERS_SETTING:
            parameters = quotient(lean.get("num_parameters"), dit.get("num_parameters"))
            difference = None if parameters is None else abs(parameters - 1)
            yield Target(f"Mamba-2 {setting}, parameters unlike DiT's", "<=", MAMBA2_PARAMETERS, difference)
    for mixer, name in MIXERS.items():
        by_setting = results.records(f"captions_{mixer}")
        for setting in CAPTION_SETTINGS:
            record = by_setting.get(setting, {}).get(f"{name}+captions")
            slower = inverse(speed_ratio(record, "to no captions"))
            yield Target(f"{mixer}, captioned step {setting}, to uncaptioned", "<=", CAPTION_STEP, slower)
    for part, names in ORDERS.items():
        for setting, name in ((setting, name) for setting in CAPTION_SETTINGS for name in names):
            slower = inverse(speed_ratio(results.records(part).get(setting, {}).get(name), "to sweep"))
            yield Target(f"{name} {setting}, step to sweep", "<=", STEP_TO_SWEEP, slower)
    records = results.records("clips").get(CLIPS_SETTING, {})
    for scan, names in CLIPS.items():
        ratio = largest([speed_ratio(records.get(name), DIT) for name in names])
        yield Target(f"clips, {scan}, to DiT", ">=", CLIPS_TO_DIT, ratio)


def run_targets(results: Results) -> Iterator[Target]:
    """Yield the targets of runs as shipped, sampling, first calls and two GPUs."""
    shipped = results.json("shipped").get("contestants", {})
    for mixer, target in SHIPPED_TO_DIT.items():
        steps = results.records(f"captions_{mixer}").get((32, 32), {}).get("dit-compiled+captions", {})
        ratio = quotient(shipped.get(mixer, {}).get("images_per_second"), steps.get("per_second"))
        yield Target(f"table 1 as shipped, {mixer}, to DiT", ">=", target, ratio)
    by_setting = results.records("sampling")
    for setting, target in SAMPLING_TO_DIT.items():
        records = by_setting.get(setting, {})
        names = ("zigzag8-compiled-graph", "mamba2-compiled-graph", "mamba2-graph")
        ratio = largest([speed_ratio(records.get(name), SAMPLED_DIT) for name in names])
        yield Target(f"sampling {setting}, to DiT", ">=", target, ratio)
    first = results.json("first_call").get("seconds", {}).values()
    for call, target in FIRST_CALL_SECONDS.items():
        yield Target(f"first call, {call}, seconds", "<=", target, largest([one[call]["first step"] for one in first]))
    for mixer in MIXERS:
        rows = {row["num_devices"]: row for row in results.json(f"scaling_{mixer}").get("rows", [])}
        yield Target(f"two GPUs, {mixer}, captions", ">=", TWO_GPUS, rows.get(2, {}).get("efficiency"))


TABLES = (check_targets, mamba1_targets, ssd_targets, training_targets, run_targets)


def main() -> int:
    """Print a line for each target; returns the exit status."""
    results = Results.read([Path(argument) for argument in sys.argv[1:]])
    machines = results.machines()
    for key, values in machines.items():
        print(f"{key}: {', '.join(sorted(values)) or 'unknown'}{' MIXED' if len(values) > 1 else ''}")
    targets = [target for table in TABLES for target in table(results)]
    print(f"{'target':52s} {'required':>11s} {'measured':>8s}")
    for target in targets:
        shown = "-" if target.measured is None else f"{target.measured:.4g}"
        print(f"{target.what:52s} {target.comparison} {target.required:<8g} {shown:>8s} {target.verdict}")
    is_one_run = all(len(values) <= 1 for values in machines.values())
    return 0 if is_one_run and all(target.verdict == "met" for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
