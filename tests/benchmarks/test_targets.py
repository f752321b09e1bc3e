"""tools/device/targets.py: which targets results meet, and what counts as one run."""

import importlib.util
import json
import re
import tarfile
from pathlib import Path

import pytest

from zigma_pl.benchmarks.model_table import CAPTIONED, rivals_among
from zigma_pl.benchmarks.models import FAMILIES

TOOLS = Path(__file__).parents[2] / "tools" / "device"
MACHINE = {"device": "a GPU", "commit": "abc1234"}


@pytest.fixture(scope="module")
def targets():
    spec = importlib.util.spec_from_file_location("targets", TOOLS / "targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(setting, name, speed=1000.0, gigabytes=1.0, parameters=100, **ratios):
    return {
        "grid": setting[0], "batch_size": setting[1], "contestant": name, "per_second": speed,
        "peak_memory_bytes": int(gigabytes * 1e9), "num_parameters": parameters,
        "ratios": {column: {"median": ratio} for column, ratio in ratios.items()},
    }  # fmt: skip


def benchmark(*records):
    return {"machine": MACHINE, "records": list(records)}


@pytest.fixture
def results(targets):
    """Files, by name, that meet every target exactly."""
    sweep = {"to sweep": 0.98}
    dit = {"to DiT, compiled": 4.0}
    files = {f"{name}.txt": "3 modules, 0 failures\n" for name in ("check", "ssd_check", "row_check")}
    files |= {f"{name}.txt": "= ERROR SUMMARY: 0 errors\n" for name in ("memcheck", "ssd_memcheck", "row_memcheck")}
    files["forward.json"] = benchmark(*(record(s, "zigzag8-compiled-graph", 1200, **sweep) for s in targets.FORWARD))
    training = [record(s, "zigzag8-fast-graph", 380, **sweep) for s in targets.TRAINING]
    files["train.json"] = benchmark(*training, record((32, 32), "zigzag8", gigabytes=8.7))
    files["mamba.json"] = {str(shape): {"ratio": most} for shape, most in targets.TO_MAMBA.items()}
    files["ssd.json"] = {"device": "a GPU"}
    for shape in targets.SSD_SHAPES:
        files["ssd.json"] |= {
            f"ssd {shape}": {"inference": 9, "forward": 0.07, "backward": 0.10},
            f"selective scan {shape}": {"forward": 0.125, "backward": 0.3, "autograd": 9},
            f"mamba_ssm {shape}": {"autograd": 2.0, "replayed": 1.0},
        }
    steps = [
        each
        for setting, least in targets.MAMBA2_TO_DIT.items()
        for each in (
            record(setting, "mamba2", gigabytes=0.6, parameters=98, **{"to DiT, compiled": 0.1}),
            record(setting, "mamba2-graph", **{"to DiT, compiled": least}),
            record(setting, "dit-compiled"),
        )
    ]
    files["steps.json"] = benchmark(*steps)
    for mixer, name in targets.MIXERS.items():
        ratio = {"to no captions": 1 / 1.2}
        captioned = [record(setting, f"{name}+captions", **ratio) for setting in targets.CAPTION_SETTINGS]
        dit_step = record((32, 32), "dit-compiled+captions", speed=400)
        files[f"captions_{mixer}.json"] = benchmark(*captioned, dit_step)
    for part, names in targets.ORDERS.items():
        of_part = [record(s, name, **{"to sweep": 1 / 1.02}) for s in targets.CAPTION_SETTINGS for name in names]
        files[f"{part}.json"] = benchmark(*of_part)
    files["clips.json"] = benchmark(
        record(targets.CLIPS_SETTING, "mamba2-fast-graph", **dit),
        record(targets.CLIPS_SETTING, "factorized-fast-graph", **dit),
    )
    shipped = {"mamba1": {"images_per_second": 320}, "mamba2": {"images_per_second": 400}}
    files["shipped.json"] = {"machine": MACHINE, "contestants": shipped}
    sampled = {"to DiT, compiled, CUDA graph": 1.0}
    files["sampling.json"] = benchmark(
        *(record(s, "mamba2-compiled-graph", **sampled) for s in targets.SAMPLING_TO_DIT)
    )
    first = {"compiled": {"first step": 10}, "from the cache": {"first step": 0.5}}
    files["first_call.json"] = {"machine": MACHINE, "seconds": {"zigzag8": first, "mamba2": first}}
    for mixer in ("mamba1", "mamba2"):
        rows = [{"num_devices": 1, "efficiency": 1.0}, {"num_devices": 2, "efficiency": 0.95}]
        files[f"scaling_{mixer}.json"] = {"device": "a GPU", "rows": rows}
    return files


def judge(targets, files, folder, monkeypatch):
    """Return the exit status for these files."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    monkeypatch.setattr("sys.argv", ["targets.py", str(folder)])
    return targets.main()


def verdicts(output):
    """Return the targets that are not met, with their verdicts."""
    return {
        line[:52].strip(): verdict
        for line in output.splitlines()
        for verdict in ("MISSED", "not measured")
        if verdict in line
    }


def test_results_that_meet_every_target_pass(targets, results, tmp_path, monkeypatch, capsys):
    assert judge(targets, results, tmp_path, monkeypatch) == 0
    output = capsys.readouterr().out
    assert verdicts(output) == {}
    assert output.count(" met\n") == 66
    assert output.startswith("device: a GPU\ncommit: abc1234\n")


def change(files, name, **values):
    """Change all records of a benchmark."""
    for one in files[name]["records"]:
        one.update(values)


def slower(files, name, column, contestant, ratio):
    for one in files[name]["records"]:
        if one["contestant"] == contestant:
            one["ratios"][column]["median"] = ratio


SPOILT = {
    "check, failures": lambda files: files.update({"check.txt": "2 failures"}),
    "ssd_memcheck, failures": lambda files: files.update({"ssd_memcheck.txt": "ERROR SUMMARY: 1 errors"}),
    "SSD (32, 1024), time to mamba-ssm": lambda files: files["ssd.json"]["mamba_ssm (32, 1024)"].update(replayed=0.9),
    "SSD (8, 4096), time to Mamba-1's scan": lambda files: files["ssd.json"]["selective scan (8, 4096)"].update(
        forward=0.1
    ),
    "train (32, 32), GB in lean": lambda files: files["train.json"]["records"][-1].update(peak_memory_bytes=8.8e9),
    "table 1 as shipped, mamba1, to DiT": lambda files: files["shipped.json"]["contestants"]["mamba1"].update(
        images_per_second=319
    ),
    "first call, from the cache, seconds": lambda files: files["first_call.json"]["seconds"].update(
        mamba2={"compiled": {"first step": 9}, "from the cache": {"first step": 0.6}}
    ),
    "two GPUs, mamba2, captions": lambda files: files["scaling_mamba2.json"]["rows"][1].update(efficiency=0.94),
    "clips, factorized, to DiT": lambda files: slower(
        files, "clips.json", "to DiT, compiled", "factorized-fast-graph", 0.99
    ),
}


@pytest.mark.parametrize("target", SPOILT)
def test_a_missed_target_is_named_and_fails(target, targets, results, tmp_path, monkeypatch, capsys):
    SPOILT[target](results)
    assert judge(targets, results, tmp_path, monkeypatch) == 1
    assert verdicts(capsys.readouterr().out) == {target: "MISSED"}


def test_every_setting_of_a_benchmark_counts(targets, results, tmp_path, monkeypatch, capsys):
    slower(results, "captions_mamba2.json", "to no captions", "mamba2-fast-graph+captions", 1 / 1.21)
    slower(results, "orders_hybrid.json", "to sweep", "hybrid-random8-graph", 1 / 1.03)
    change(results, "steps.json", peak_memory_bytes=10**9)
    change(results, "sampling.json", ratios={"to DiT, compiled, CUDA graph": {"median": 0.95}})
    assert judge(targets, results, tmp_path, monkeypatch) == 1
    missed = verdicts(capsys.readouterr().out)
    assert set(missed.values()) == {"MISSED"}
    assert sorted(missed) == sorted(
        [f"mamba2, captioned step {setting}, to uncaptioned" for setting in targets.CAPTION_SETTINGS]
        + [f"hybrid-random8-graph {setting}, step to sweep" for setting in targets.CAPTION_SETTINGS]
        + [f"Mamba-2 training {setting} in lean, memory to DiT" for setting in targets.MAMBA2_TO_DIT]
        + ["sampling (32, 16), to DiT"]
    )


def test_what_was_not_measured_fails(targets, results, tmp_path, monkeypatch, capsys):
    del results["clips.json"], results["check.txt"]
    change(results, "captions_mamba2.json", per_second=None)  # out of memory
    assert judge(targets, results, tmp_path, monkeypatch) == 1
    unmeasured = verdicts(capsys.readouterr().out)
    assert set(unmeasured.values()) == {"not measured"}
    assert {"check, failures", "clips, 3D zigzag, to DiT", "table 1 as shipped, mamba2, to DiT"} < set(unmeasured)
    assert len(unmeasured) == 4


@pytest.mark.parametrize("changed", [{"device": "another GPU"}, {"commit": "def5678"}])
def test_results_of_different_machines_or_commits_are_not_one_run(
    changed, targets, results, tmp_path, monkeypatch, capsys
):
    results["clips.json"]["machine"] = MACHINE | changed
    assert judge(targets, results, tmp_path, monkeypatch) == 1
    output = capsys.readouterr().out
    assert verdicts(output) == {}
    assert "MIXED" in output


def test_archives_of_several_calls_are_read_together(targets, results, tmp_path, monkeypatch, capsys):
    judge(targets, results, tmp_path / "files", monkeypatch)
    names = sorted(results)
    for archive, part in (("one.tar.gz", names[::2]), ("two.tar.gz", names[1::2])):
        with tarfile.open(tmp_path / archive, "w:gz") as file:
            for name in part:
                file.add(tmp_path / "files" / name, f"./{name}")
    archives = [str(tmp_path / archive) for archive in ("one.tar.gz", "two.tar.gz")]
    monkeypatch.setattr("sys.argv", ["targets.py", *archives])
    capsys.readouterr()
    assert targets.main() == 0
    monkeypatch.setattr("sys.argv", ["targets.py", archives[0]])
    assert targets.main() == 1


def test_the_script_times_what_the_targets_name(targets):
    script = (TOOLS / "targets.sh").read_text()
    timed = set(re.findall(r"[a-z0-9_]+(?:-[a-z0-9]+)+", script)) & set(FAMILIES) | {"mamba2"}
    judged = {
        name for names in (*targets.ORDERS.values(), *targets.CLIPS.values(), targets.MIXERS.values()) for name in names
    }
    assert judged < timed
    rivals = rivals_among([*timed, f"dit-compiled{CAPTIONED}"])
    assert {rivals["to sweep"][name] for names in targets.ORDERS.values() for name in names} < timed
    assert targets.SAMPLED_DIT in rivals
    assert targets.DIT in rivals_among(["dit-compiled"])
    assert "to no captions" in rivals
    parts = set(re.findall(r"^run_(\w+)\(\)", script, re.MULTILINE))
    assert set(re.search(r"set -- (.*)", script)[1].split()) == parts
    assert set(re.findall(r"^#   (\w+) +\d+  ", script, re.MULTILINE)) == parts
