"""`--ckpt_path last`, refusals and preemption as a user meets them."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment

from zigma_pl.cli import lightning_cli as cli
from zigma_pl.cli.main import main
from zigma_pl.training.checkpoints.archive import damage_of
from zigma_pl.training.checkpoints.content import FORMAT_KEY

LOG = Path("logs/digits/version_0")
FOLDER = LOG / "checkpoints"


@pytest.fixture
def fit(repository, in_tmp):
    return options_of("fit", repository)


def options_of(command, repository, *more):
    return [
        command,
        *("--config", str(repository / "experiments" / "digits.yaml")),
        "--model.backbone.init_args.width=16",
        "--model.backbone.init_args.depth=1",
        "--model.sampler.init_args.num_steps=2",
        "--data.init_args.batch_size=8",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.limit_val_batches=1",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--checkpoint.every_n_train_steps=2",
        "--preview.num_samples=1",
        *more,
    ]


def step_of(path):
    return torch.load(path, weights_only=True)["global_step"]


def curve(tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(LOG)).Reload()
    return [event.step for event in events.Scalars(tag)], [event.step for event in events.Images("samples")]


def test_last_goes_on_in_the_same_folder_from_the_newest_whole_one(fit, repository, capsys):
    assert main([*fit, "--ckpt_path=last"]) == 1
    assert (
        "error: --ckpt_path last: there is no checkpoint in logs/digits/version_*/checkpoints"
        in capsys.readouterr().err
    )
    assert main([*fit, "--trainer.max_steps=5"]) == 0
    assert torch.load(FOLDER / "last.ckpt", weights_only=True)[FORMAT_KEY] == 1
    cut = FOLDER / "step_00000005.ckpt"
    cut.write_bytes(cut.read_bytes()[:-1000])
    capsys.readouterr()
    assert main([*fit, "--trainer.max_steps=7", "--ckpt_path=last"]) == 0
    assert f"warning: checkpoint {cut} is truncated" in capsys.readouterr().err
    assert f"ckpt_path: {FOLDER / 'step_00000004.ckpt'}" in (LOG / "config.yaml").read_text()
    assert [path.name for path in Path("logs/digits").iterdir()] == ["version_0"]
    assert step_of(FOLDER / "last.ckpt") == 7
    losses, samples = curve("train/loss")
    assert losses == [0, 1, 2, 3, 4, 5, 6]  # the fifth is not there twice
    assert samples == [2, 4, 6]
    assert main([*options_of("predict", repository), "--ckpt_path=last", "--data.init_args.num_predict_samples=2"]) == 0
    other = [*options_of("validate", repository), "--ckpt_path=last", "--model.backbone.init_args.scan.scheme=hilbert"]
    capsys.readouterr()
    assert main(other) == 1
    assert "--allow_changed scan" in capsys.readouterr().err
    with pytest.warns(UserWarning, match="scan.scheme zigzag -> hilbert"):
        assert main([*other, "--allow_changed=scan"]) == 0
    # Kind: a command that refuses an option which `fit` itself has written.
    assert main(["show-batch", "--config", str(LOG / "config.yaml"), "--num_samples=1"]) == 0
    assert main(["validate", "--config", str(LOG / "config.yaml"), "--ckpt_path=last"]) == 0


def loggers(*class_paths):
    init_args = {"save_dir": "logs", "name": "digits"}
    return json.dumps([{"class_path": class_path, "init_args": init_args} for class_path in class_paths])


CSV, TENSORBOARD = "lightning.pytorch.loggers.CSVLogger", "lightning.pytorch.loggers.TensorBoardLogger"
SEVERAL = loggers("id_logger.IdLogger", CSV, TENSORBOARD)


@pytest.mark.parametrize("logger", [CSV, "id_logger.IdLogger", "false", SEVERAL])
def test_a_run_has_one_folder_whatever_its_logger(logger, fit, capsys):
    """Kind: files of one run in several places, or of several runs in one."""
    options = [*fit, f"--trainer.logger={logger}", "--trainer.val_check_interval=1"]
    assert main([*options, "--trainer.max_steps=1"]) == 0
    assert main([*options, "--trainer.max_steps=2", "--ckpt_path=last"]) == 0
    assert main([*options, "--trainer.max_steps=1"]) == 0
    assert sorted(path.name for path in Path("logs/digits").iterdir()) == ["version_0", "version_1"]
    assert sorted(path.name for path in FOLDER.iterdir()) == ["last.ckpt", "step_00000001.ckpt", "step_00000002.ckpt"]
    assert sorted(path.name for path in Path().iterdir()) == ["logs"]
    assert Path("logs").is_dir()
    assert {path.name for path in Path("logs").iterdir()} == {"digits"}
    assert {path.name for path in (LOG / "previews").iterdir()} == {"step_00000001.png", "step_00000002.png"}
    assert (LOG / "config.yaml").is_file()
    if "CSV" in logger:  # what was logged before is still there
        rows = list(csv.DictReader((LOG / "metrics.csv").open()))
        assert [int(row["step"]) for row in rows if row["train/loss"]] == [0, 1]


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_a_damaged_file_that_is_named_is_refused(command, repository, in_tmp, capsys):
    torch.save({"state_dict": {"w": torch.arange(5000.0)}, "global_step": 1}, "a.ckpt")
    whole = Path("a.ckpt").read_bytes()
    Path("a.ckpt").write_bytes(whole[:9000] + b"x" + whole[9001:])
    assert main([*options_of(command, repository), "--ckpt_path=a.ckpt"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "a.ckpt is corrupted" in errors[0]


class Payload:
    """What a malicious file would hold."""

    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_a_payload_a_newer_format_and_another_model_are_refused(repository, in_tmp, capsys):
    weights = {"state_dict": {"backbone.other": torch.zeros(1)}, "global_step": 1, "pytorch-lightning_version": "2.6.6"}
    files = {
        "evil": (weights | {"callbacks": Payload()}, "could run code"),
        "newer": (weights | {FORMAT_KEY: 99}, "format version 99"),
        "other": (weights, "such as backbone.blocks.0."),
    }
    for name, (content, expected) in files.items():
        torch.save(content, f"{name}.ckpt")
        assert main([*options_of("predict", repository), f"--ckpt_path={name}.ckpt"]) == 1
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1, name
        assert expected in errors[0]
    assert not Path("was_run").exists()


def test_a_full_disk_ends_the_run_with_one_line_and_leaves_the_checkpoint_before(fit, capsys, monkeypatch):
    real = torch.save

    def save(content, file):
        real(content, file)
        if content["global_step"] == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", save)
    assert main(fit) == 1
    assert "step_00000004.ckpt cannot be written (No space left on device)" in capsys.readouterr().err
    assert [path.name for path in sorted(FOLDER.iterdir())] == ["last.ckpt", "step_00000002.ckpt"]
    assert damage_of(FOLDER / "last.ckpt") is None


def test_lightning_does_not_requeue_by_itself(fit, monkeypatch):
    made = []
    real = cli.ZigmaCLI.instantiate_trainer
    monkeypatch.setattr(
        cli.ZigmaCLI, "instantiate_trainer", lambda self, **kwargs: made.append(real(self, **kwargs)) or made[0]
    )
    for name, value in {"NTASKS": 1, "JOB_NAME": "row", "JOB_ID": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert main([*fit, "--trainer.max_steps=1"]) == 0
    environment = made[0]._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue


def test_one_of_two_processes_is_preempted_and_both_end_with_75(repository, in_tmp, capsys):
    arguments = options_of("fit", repository, "--trainer.max_steps=100000", "--trainer.val_check_interval=50000")
    several = ["--trainer.devices=2", "--trainer.strategy=ddp", "--preemption.check_every_n_steps=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "zigma_pl", *arguments, *several],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    while (
        process.poll() is None and not (FOLDER / "step_00000004.ckpt").exists() and not (FOLDER / "last.ckpt").exists()
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    said = [line for line in err.splitlines() if "preempted by" in line]
    assert len(said) == 1
    assert "--ckpt_path last" in said[0]
    saved = torch.load(FOLDER / "last.ckpt", weights_only=True)
    assert saved["global_step"] % 3 == 0
    assert len(saved["random_states"]) == 2
    further = f"--trainer.max_steps={saved['global_step'] + 2}"
    with pytest.warns(UserWarning, match="2 processes and this run has 1"):
        assert main([*options_of("fit", repository), further, "--ckpt_path=last"]) == 0
    assert step_of(FOLDER / "last.ckpt") == saved["global_step"] + 2
