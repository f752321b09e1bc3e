"""`average`: averages of any width from a run's snapshots, against the run's recorded weights."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import zigma_pl
from zigma_pl.cli.main import main
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.training.checkpoints.power_function import exponent_of

NUM_STEPS = 40
REPOSITORY = Path(__file__).parents[2]
OPTIONS = [
    *("--config", str(REPOSITORY / "experiments" / "digits.yaml")),
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=1",
    "--model.sampler.init_args.num_steps=2",
    "--model.lr_schedule.init_args.warmup_steps=0",
    f"--trainer.max_steps={NUM_STEPS}",
    "--trainer.limit_val_batches=0",
    "--trainer.enable_progress_bar=false",
    "--checkpoint.every_n_train_steps=1",
    f"--checkpoint.keep_last={NUM_STEPS}",
    "--data.init_args.batch_size=4",
]
SNAPSHOTS = "--ema.snapshot_every_n_steps=4"
RUN = Path("logs", "digits", "version_0")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The log folder of a run, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *OPTIONS, SNAPSHOTS]) == 0
    return folder / RUN


def stored(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def trajectory(run):
    """The raw weights after each step, (steps, ...), by name."""
    steps = [stored(run / "checkpoints" / f"step_{step:08d}.ckpt") for step in range(1, NUM_STEPS + 1)]
    raw = [checkpoint["current_model_state"] for checkpoint in steps]
    return {name: torch.stack([one[name] for one in raw]).double() for name in raw[0]}


def expected(trajectory, step, sigma_rel):
    ends = np.arange(NUM_STEPS + 1).clip(max=step) / step
    weights = torch.from_numpy(np.diff(ends ** (exponent_of(sigma_rel) + 1)))
    return {name: torch.tensordot(weights, steps, 1) for name, steps in trajectory.items()}


def relative_error(found, wanted, trajectory):
    """The error relative to what training has changed, over all weights."""
    squares = [(found[name] - wanted[name]).square().sum() for name in wanted]
    changes = [(steps[-1] - steps[0]).square().sum() for steps in trajectory.values()]
    return float((sum(squares) / sum(changes)).sqrt())


@pytest.mark.parametrize("step", [4, 20, NUM_STEPS])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.1])
def test_snapshots_are_power_function_averages(run, trajectory, step, sigma_rel):
    found = stored(run / "snapshots" / f"step_{step:08d}_sigma_rel_{sigma_rel:.3f}.ckpt")["state_dict"]
    wanted = expected(trajectory, step, sigma_rel)
    assert all(value.dtype == torch.float16 for value in found.values())
    for name, value in found.items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=6e-4, atol=1e-6)


@pytest.mark.parametrize(("step", "sigma_rel"), [(None, 0.08), (None, 0.15), (20, 0.1)])
def test_other_widths_are_reconstructed(run, trajectory, tmp_path, step, sigma_rel, capsys):
    out = tmp_path / "new" / "average.ckpt"
    of_step = [] if step is None else [f"--step={step}"]
    assert main(["average", str(run), f"--sigma_rel={sigma_rel}", *of_step, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    content = stored(out)
    assert content["global_step"] == (step or NUM_STEPS)
    wanted = expected(trajectory, step or NUM_STEPS, sigma_rel)
    assert content["state_dict"].keys() == wanted.keys()
    error = relative_error(content["state_dict"], wanted, trajectory)
    assert error < 0.02
    if sigma_rel != 0.1:  # as a control, the snapshot of another width is farther away
        snapshot = expected(trajectory, NUM_STEPS, 0.1)
        assert relative_error(snapshot, wanted, trajectory) > 2 * error


def test_the_average_is_exported_sampled_and_tested(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["average", str(run), "--sigma_rel=0.08", "--out", "average.ckpt"]) == 0
    assert main(["export", "--ckpt_path", "average.ckpt", "--out", "model"]) == 0
    model = zigma_pl.from_pretrained("model")
    weights = stored("average.ckpt")["state_dict"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    batch = Batch(None, torch.arange(3), {"class": Condition(torch.arange(3))})
    assert model.sample(batch).latents.isfinite().all()
    scoring = ["--scorer.num_samples=4", "--scorer.metrics=[]"]
    assert main(["test", *OPTIONS, *scoring, "--ckpt_path", "average.ckpt"]) == 0
    (record,) = Path("results").glob("*.json")
    assert json.loads(record.read_text())["training"]["steps"] == NUM_STEPS
    assert main(["fit", *OPTIONS, "--ckpt_path", "average.ckpt"]) == 1
    assert main(["export", "--ckpt_path", "average.ckpt", "--out", "raw", "--weights", "raw"]) == 1
    assert "average.ckpt" in capsys.readouterr().err


def test_a_resumed_run_writes_the_same_snapshots(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "snapshots", RUN / "snapshots")
    before = {path.name: stored(path)["state_dict"] for path in (run / "snapshots").iterdir()}
    of_others = RUN / "snapshots" / "step_00000099_sigma_rel_0.050.ckpt"
    shutil.copy(next((run / "snapshots").iterdir()), of_others)
    middle = run / "checkpoints" / "step_00000022.ckpt"
    folder = ["--trainer.logger.init_args.version=0"]
    assert main(["fit", *OPTIONS, SNAPSHOTS, *folder, "--ckpt_path", str(middle)]) == 0
    after = {path.name: stored(path)["state_dict"] for path in (RUN / "snapshots").iterdir()}
    assert after.keys() == before.keys()
    for name, weights in after.items():
        assert all(torch.equal(value, before[name][parameter]) for parameter, value in weights.items())
    ends = [stored(folder / "checkpoints" / "last.ckpt")["power_averages"] for folder in (run, RUN)]
    assert ends[0].keys() == ends[1].keys() == {"0.05", "0.1"}
    for width, weights in ends[0].items():
        assert all(torch.equal(value, ends[1][width][name]) for name, value in weights.items())


def test_a_run_without_averages_cannot_begin_them(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = stored(run / "checkpoints" / "last.ckpt")
    del checkpoint["power_averages"]
    torch.save(checkpoint, "without.ckpt")
    longer = f"--trainer.max_steps={NUM_STEPS + 1}"
    assert main(["fit", *OPTIONS, longer, SNAPSHOTS, "--ckpt_path", "without.ckpt"]) == 1
    assert "ema.snapshot_every_n_steps" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--sigma_rel=0.3"], "sigma_rel"),
        (["--sigma_rel=0"], "sigma_rel"),
        (["--sigma_rel=0.001"], "snapshots"),
        (["--sigma_rel=0.08", "--step=5"], "--step 5"),
        (["--sigma_rel=0.08", "--out=checkpoints/a.ckpt"], "checkpoints/a.ckpt"),
        (["--sigma_rel=0.08", "--out=a.pt"], "a.pt"),
    ],
)
def test_refusals(run, tmp_path, monkeypatch, capsys, options, named):
    monkeypatch.chdir(tmp_path)
    assert main(["average", str(run), "--out=a.ckpt", *options]) == 1
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_missing_files(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["average", "copy", "--sigma_rel=0.08", "--out=a.ckpt"]
    assert main(command) == 1
    shutil.copytree(run / "snapshots", "copy/snapshots")
    assert main(command) == 1  # no checkpoint
    (tmp_path / "copy" / "checkpoints").mkdir()
    shutil.copy(run / "checkpoints" / "last.ckpt", "copy/checkpoints/step_00000040.ckpt")
    assert main(command) == 0
    damaged = tmp_path / "copy" / "snapshots" / "step_00000020_sigma_rel_0.050.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    capsys.readouterr()
    assert main(command) == 1
    assert re.search(damaged.name, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "shape"), [("backbone.unknown", (2,)), ("backbone.final_layer.projection.bias", (99,))]
)
def test_a_snapshot_of_another_model_is_one_line(run, tmp_path, monkeypatch, capsys, name, shape):
    """Kind: files that fit each other in name alone."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "snapshots", "copy/snapshots")
    Path("copy/checkpoints").mkdir()
    shutil.copy(run / "checkpoints" / "last.ckpt", "copy/checkpoints/step_00000040.ckpt")
    first = sorted(Path("copy", "snapshots").iterdir())[0]
    content = torch.load(first, weights_only=True)
    content["state_dict"][name] = torch.zeros(shape, dtype=torch.float16)
    torch.save(content, first)
    (first.parent / "step_00000000_sigma_rel_0.000.ckpt").write_bytes(first.read_bytes())  # of no profile
    assert main(["average", "copy", "--sigma_rel=0.08", "--out=a.ckpt"]) == 1
    assert f"{first.name} belongs to another model" in capsys.readouterr().err
