"""A package outside of the repository with a class of every kind: trained on two processes, resumed, exported, used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.printed import BLOCKS, REPOSITORY, SESSIONS, TINY
from processes import Processes, command_line, of_lightning

import zigma_pl
from zigma_pl.cli.main import main
from zigma_pl.conditioners import Condition
from zigma_pl.core.class_paths import class_name
from zigma_pl.core.errors import UserError
from zigma_pl.data import Batch
from zigma_pl.evaluation.record import read_result
from zigma_pl.suite.runs.experiment_files import find_experiments
from zigma_pl.suite.runs.plan import OutputFolders, plan
from zigma_pl.suite.runs.requirements import missing
from zigma_pl.training.checkpoints.io import read_checkpoint

(FIT, RESUME, TEST), (EXPORT, SAMPLE) = SESSIONS[-2:]
CHECKPOINTS = Path("logs/together/version_0/checkpoints")
FEW_IMAGES = "--data.init_args.num_images=100"
TWELVE_STEPS = {
    "--trainer.max_steps": 12,
    "--trainer.val_check_interval": 12,
    "--checkpoint.every_n_train_steps": 10,
    "--trainer.devices": 2,
    "--config": "configs/strategy/ddp.yaml",
}


# One test, so that the processes of pytest-xdist do not train twice.
def test_own_classes_train_on_two_processes_resume_and_are_exported_sampled_and_scored(outside, capsys):
    train_on_two_processes(FIT)
    (CHECKPOINTS / "step_00000012.ckpt").rename("uninterrupted.ckpt")
    train_on_two_processes(RESUME)  # from step 10
    check_that_the_resumed_run_ends_with_the_same_bits()
    check_the_exported_model(capsys)
    check_the_samples()
    check_the_scores()


def train_on_two_processes(command):
    options = [*command, *TINY, FEW_IMAGES, *(f"{name}={value}" for name, value in TWELVE_STEPS.items())]
    calls = [(command_line, *options)] * 2
    Processes("own", Path.cwd(), *calls, environments=of_lightning(2)).wait()


def check_that_the_resumed_run_ends_with_the_same_bits():
    runs = [read_checkpoint(Path(path)) for path in ("uninterrupted.ckpt", CHECKPOINTS / "last.ckpt")]
    assert [run["global_step"] for run in runs] == [12, 12]
    for part in ("state_dict", "current_model_state"):
        one, other = (run[part] for run in runs)
        assert {"backbone.conditioners.brightness.null", "loss_terms.align.head.0.weight"} <= one.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    one, other = (run["optimizer_states"][0]["state"] for run in runs)
    assert all(torch.equal(state["momentum"], other[name]["momentum"]) for name, state in one.items())


def check_the_exported_model(capsys):
    assert main([part for part in EXPORT if part not in ("--allow_import", "own")]) == 1
    assert "--allow_import own" in capsys.readouterr().err
    assert main(EXPORT) == 0
    assert "allow_imports=('own',)" in capsys.readouterr().out
    with pytest.raises(UserError, match="allow_imports"):
        zigma_pl.from_pretrained("exported")
    (printed,) = (text for language, text in BLOCKS if language == "python" and "from_pretrained" in text)
    exec(printed, found := {})
    assert [image.size for image in found["images"]] == [(16, 16)] * 4
    model = found["model"]
    mixers = [class_name(type(block.mixer)) for block in model.backbone.blocks]
    assert mixers == ["own.mixer.RetentionMixer", "MambaMixer"] * 2
    assert class_name(type(model.sampler)) == "own.sampler.AdamsBashforth"
    assert not [name for name in model.state_dict() if "align" in name]
    dark, bright = (
        model.sample(Batch(None, torch.arange(2), {"brightness": Condition(torch.full((2,), value))})).latents
        for value in (0.0, 1.0)
    )
    assert not torch.equal(dark, bright)


def check_the_samples():
    assert main([*SAMPLE, "--device", "cpu"]) == 0
    samples = json.loads(Path("samples/exported/samples.json").read_text())["samples"]
    assert [sample["class_id"] for sample in samples] == [2] * 4


def check_the_scores():
    assert main([*TEST, *TINY, FEW_IMAGES]) == 0
    record = read_result(Path("results/together.json"))
    assert record.scores.keys() == {"validation_loss", "velocity_loss", "fid_random", "kid_random"}
    assert all(np.isfinite(score.value) for score in record.scores.values())
    assert record.protocol["extractors"]["random"]["class_path"] == "own.extractor.RandomConvolutions"
    assert record.training["gflops"] > 0


def test_ablations_find_nothing_missing_for_own_classes(outside):
    """The files below have an option of another data set, which `fit` ignores too."""
    experiments = find_experiments(REPOSITORY / "experiments", patterns=["digits"])
    scales, folders = REPOSITORY / "configs" / "scale", OutputFolders(Path("logs"), Path("results"))

    def run_over(text):
        Path("below.yaml").write_text(text)
        files = [Path("below.yaml"), Path("together.yaml")]
        (run,) = plan(experiments, "smoke", [0], scales=scales, folders=folders, extra_files=files)
        return run

    run = run_over("data: {init_args: {condition: class}}\n")
    assert missing([run]) == []
    mixers = run.config["model"]["backbone"]["init_args"]["mixers"]
    assert [mixer["class_path"] for mixer in mixers] == ["own.mixer.Retention", "zigma_pl.mixers.Mamba"]
    (line,) = missing([run_over("scorer: {extractors: {other: {class_path: own.extractor.Missing}}}\n")])
    assert "own.extractor.Missing" in line
