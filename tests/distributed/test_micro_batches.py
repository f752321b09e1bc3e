"""Accumulated micro-batches are one batch; and what DDP's settings promise of every backbone."""

import pytest
import torch
from backbones import tiny
from distributed.training_run import NUM_STEPS, train

from zigma_pl.backbones import DiT, ParallelMamba, UViT, VisionMamba, ZigMa
from zigma_pl.core.batch import Batch
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.training.module import GenerativeModule


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trace of a run without accumulation."""
    return train(tmp_path_factory.mktemp("whole"))[1].trace()


@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_micro_batches_are_one_batch_also_after_a_resume(whole, tmp_path, num_micro_batches):
    split = {"batch_size": 8 // num_micro_batches, "accumulate_grad_batches": num_micro_batches}
    train(tmp_path / "first", max_steps=3, **split)
    _, resumed = train(tmp_path / "second", ckpt_path=tmp_path / "first" / "last.ckpt", **split)
    assert len(resumed.trace()) == NUM_STEPS - 3
    torch.testing.assert_close(torch.tensor(resumed.trace()), torch.tensor(whole[3:]), rtol=0, atol=1e-6)


def test_loss_is_logged_in_the_steps_that_are_written_only(tmp_path, whole):
    _, remember = train(tmp_path, log_every_n_steps=4)
    logged = [row.get("train/loss") for row in remember.logged]
    assert logged[:3] == [None] * 3
    assert logged[3:] == [whole[3][0]] * 3


CASES = [(kind, name, None) for kind in (ZigMa, VisionMamba, ParallelMamba, DiT, UViT) for name in tiny.CONDITIONS]
CASES += [(kind, "none", 3) for kind in (ZigMa, VisionMamba, DiT, UViT)]


@pytest.mark.parametrize(("kind", "condition", "latent_frames"), CASES)
@pytest.mark.parametrize("condition_dropout", [0.0, 1.0])
def test_every_parameter_has_a_gradient_in_every_step(kind, condition, latent_frames, condition_dropout):
    """DDP need not look for those without (`find_unused_parameters`)."""
    options, conditions = tiny.CONDITIONS[condition]
    frames = {} if latent_frames is None else {"latent_frames": latent_frames}
    module = GenerativeModule(
        tiny.build(kind, **options, **frames), Objective(), condition_dropout=condition_dropout
    ).train()
    latents, _ = tiny.draw(latent_frames=latent_frames)
    module.training_loss(Batch(latents, torch.arange(3), conditions)).backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]


def test_every_parameter_of_factorized_video_has_a_gradient():
    scan = ScanConfig(video="factorized", plan=("space", "space", "time"))
    module = GenerativeModule(tiny.build(ZigMa, latent_frames=3, scan=scan), Objective()).train()
    latents, _ = tiny.draw(latent_frames=3)
    module.training_loss(Batch(latents, torch.arange(3))).backward()
    assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]


def test_a_step_of_digits_has_the_ids_that_its_place_says(tmp_path):
    """Positions of the training stream, whatever the batches: what resuming counts on."""
    seen = []

    class Watch(Digits):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.extend(batch.sample_ids.tolist())
            return super().on_after_batch_transfer(batch, dataloader_idx)

    train(tmp_path, data=Watch(batch_size=2), accumulate_grad_batches=4, max_steps=3)
    assert seen[: 3 * 8] == list(range(3 * 8))
