"""What TensorBoard shows of a run, and that commands which log nothing leave no run."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from zigma_pl.cli.main import main
from zigma_pl.core.errors import UserError
from zigma_pl.training.module import GenerativeModule

OPTIONS = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=1",
    "--model.sampler.init_args.num_steps=1",
    "--data.init_args.batch_size=8",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--preview.num_samples=1",
]


@pytest.fixture
def config(repository, in_tmp):
    text = (repository / "experiments" / "digits.yaml").read_text()
    Path("mine.yaml").write_text(text)
    return ["--config", "mine.yaml", *OPTIONS]


def runs():
    return sorted(str(path.parent) for path in Path("logs").rglob("events.out.tfevents.*"))


def test_a_run_has_the_name_and_options_of_its_config_and_other_commands_make_none(config, capsys):
    assert main(["fit", *config]) == 0
    assert runs() == ["logs/mine/version_0"]
    events = EventAccumulator("logs/mine/version_0").Reload()
    assert "train/loss" in events.Tags()["scalars"]
    assert "epoch" not in events.Tags()["scalars"]
    (start,) = [
        metadata.parse_session_start_info_plugin_data(content)
        for tag, content in events.PluginTagToContent("hparams").items()
        if tag == metadata.SESSION_START_INFO_TAG
    ]
    assert start.hparams["model.backbone.width"].number_value == 16
    assert start.hparams["model.backbone.class_path"].string_value == "zigma_pl.backbones.ZigMa"
    assert start.hparams["data.batch_size"].number_value == 8
    assert start.hparams["trainer.max_steps"].number_value == 2

    assert main(["predict", *config, "--ckpt_path=last", "--data.init_args.num_predict_samples=1"]) == 0
    assert main(["validate", *config, "--ckpt_path=last"]) == 0
    assert "validation/loss" in capsys.readouterr().out
    assert set(runs()) == {"logs/mine/version_0"}
    assert len(runs()) == 2  # the loss of `validate` is logged to the run that the checkpoint is of
    assert [path.name for path in Path("logs/mine").iterdir()] == ["version_0"]


@pytest.mark.parametrize("where", ["setup", "training_step"])
def test_a_run_that_cannot_start_leaves_nothing(where, config, monkeypatch):
    def fail(*_, **__):
        raise UserError("something is wrong")

    monkeypatch.setattr(GenerativeModule, where, fail)
    assert main(["fit", *config]) == 1
    assert not Path("logs/mine").exists()


def test_a_run_that_fails_later_keeps_its_folder(config, monkeypatch):
    step = GenerativeModule.training_step

    def fail(module, *arguments):
        if module.global_step == 1:
            raise UserError("something is wrong")
        return step(module, *arguments)

    monkeypatch.setattr(GenerativeModule, "training_step", fail)
    assert main(["fit", *config]) == 1
    assert runs() == ["logs/mine/version_0"]
