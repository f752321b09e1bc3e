"""Videos through the whole of training, validation and sampling, and what the callbacks leave on disk."""

import json

import lightning as L
import pytest
import torch
from callbacks.moving_bars import MovingBars
from lightning.pytorch.loggers import TensorBoardLogger

from zigma_pl.backbones import ZigMa
from zigma_pl.core import clips as clips_module
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.clips import read_clip
from zigma_pl.core.errors import UserError
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.samplers import Guidance, ODESampler, SDESampler
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.callbacks.preview import PreviewGrid
from zigma_pl.training.callbacks.sample_writer import SampleWriter
from zigma_pl.training.module import GenerativeModule


def build(latent_frames=3, **options):
    torch.manual_seed(0)
    scan = ScanConfig(video="factorized")
    size = {"patch_size": 4, "width": 16, "depth": 3, "mixers": Mamba(state_size=4)}
    backbone = ZigMa(3, 8, 8, latent_frames=latent_frames, num_classes=2, scan=scan, **size)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return GenerativeModule(backbone, Objective(), **({"sampler": ODESampler(num_steps=2)} | options))


def trainer_for(folder, callbacks, logger=False):
    return L.Trainer(
        default_root_dir=folder,
        max_steps=2,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=callbacks,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
    )


@pytest.fixture(params=[".mp4", ".gif"])
def suffix(request, monkeypatch):
    """Run with PyAV, and as if it were not there."""
    if request.param == ".gif":
        monkeypatch.setattr(clips_module, "find_spec", lambda name: None)
    return request.param


def test_training_previews_clips_on_disk_and_in_tensorboard(suffix, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callbacks = [EMA(), PreviewGrid(num_samples=4, num_columns=2, frames_per_second=5)]
    logger = TensorBoardLogger(tmp_path, name="run")
    trainer = trainer_for(tmp_path, callbacks, logger)
    trainer.fit(build(), datamodule=MovingBars())
    assert torch.isfinite(trainer.logged_metrics["train/loss"])
    assert torch.isfinite(trainer.logged_metrics["validation/loss"])
    previews = tmp_path / "run" / "version_0" / "previews"
    expected = {"step_00000002.gif"} | ({"step_00000002.mp4"} if suffix == ".mp4" else set())
    assert {path.name for path in previews.iterdir()} == expected
    for name in expected:
        frames = read_clip(previews / name, 5)
        assert [frame.size for frame in frames] == [(2 * 130 + 2, 2 * (130 + 17) + 2)] * 3  # labels are 17 pixels high
    events = EventAccumulator(str(tmp_path / "run" / "version_0")).Reload()
    (still,), (moving,) = events.Images("samples"), events.Images("clips")
    assert (still.step, still.width, still.height) == (2, 3 * 130 + 2, 4 * (130 + 17) + 2)
    assert moving.encoded_image_string == (previews / "step_00000002.gif").read_bytes()


def test_predict_writes_a_clip_for_each_sample(suffix, tmp_path):
    writer = SampleWriter(str(tmp_path / "samples"), num_grid=4, num_columns=2, frames_per_second=5)
    module, data = build(guidance=Guidance(scale=2.0)), MovingBars(num_predict_samples=5)
    trainer_for(tmp_path, [writer]).predict(module, datamodule=data)
    names = [f"{index:08d}{suffix}" for index in range(5)]
    found = {path.name for path in (tmp_path / "samples").iterdir()}
    assert found == {*names, f"grid{suffix}", "samples.json"}
    table = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert [row["file"] for row in table["samples"]] == names
    assert [row["class_id"] for row in table["samples"]] == [0, 1, 0, 1, 0]
    clip = read_clip(tmp_path / "samples" / names[3], 5)
    expected = data.decode(module.sample(data.conditions([3])).latents)[0]
    assert [frame.size for frame in clip] == [(8, 8)] * 3
    if suffix == ".gif":  # whose 64 pixels have colours enough
        for frame, pixels in zip(clip, expected, strict=True):
            rgb = torch.tensor(list(frame.get_flattened_data())).reshape(8, 8, 3).permute(2, 0, 1)
            assert (rgb - pixels * 255).abs().max() <= 1
    grid = read_clip(tmp_path / "samples" / f"grid{suffix}", 5)
    assert [frame.size for frame in grid] == [(2 * 130 + 2, 2 * (130 + 17) + 2)] * 3


@pytest.mark.parametrize(
    "sampler",
    [
        ODESampler(method="heun", num_steps=2),
        ODESampler(method="dopri5", atol=1e-2, rtol=1e-2),
        ODESampler(method="dopri5", atol=1e-2, rtol=1e-2, error_control="batch"),
        SDESampler(num_steps=3),
        SDESampler(method="heun", num_steps=3, last_step="tweedie"),
    ],
    ids=["heun", "dopri5", "dopri5, batch", "euler_maruyama", "sde heun"],
)
def test_every_sampler_draws_clips_that_do_not_depend_on_the_batch(sampler):
    module = build(sampler=sampler, guidance=Guidance(scale=2.0, interval=(0.2, 0.8))).eval()
    together = module.sample(MovingBars().conditions([0, 1, 2])).latents
    assert together.shape == (3, 3, 3, 8, 8)
    assert torch.isfinite(together).all()
    if not (isinstance(sampler, ODESampler) and sampler.error_control == "batch"):
        torch.testing.assert_close(module.sample(MovingBars().conditions([1])).latents, together[1:2])


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
def test_every_objective_trains_on_clips(prediction):
    module = build()
    module.objective = Objective(schedule="gvp", prediction=prediction)
    batch = Batch(torch.randn(4, 3, 3, 8, 8), torch.arange(4), {"class": Condition(torch.tensor([0, 1, 0, 1]))})
    together = module.loss_per_sample(batch, torch.full((4,), 0.5), generators(range(4)))
    one = Batch(batch.latents[2:3], batch.sample_ids[2:3], {"class": Condition(torch.tensor([0]))})
    torch.testing.assert_close(
        module.eval().loss_per_sample(one, torch.full((1,), 0.5), generators([2])), together[2:3]
    )


def generators(sample_ids):
    return [torch.Generator().manual_seed(sample_id) for sample_id in sample_ids]


@pytest.mark.parametrize("latent_frames", [None, 4])
def test_other_numbers_of_frames_are_refused(latent_frames, tmp_path):
    with pytest.raises(UserError, match="has latent_frames=3, but the backbone has latent_frames="):
        trainer_for(tmp_path, []).fit(build(latent_frames), datamodule=MovingBars())
