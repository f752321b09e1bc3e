"""Kind: numbers that are not finite, in a step, its gradients or the weights."""

import json

import pytest
import torch
from distributed.training_run import build, train
from torch.utils._python_dispatch import TorchDispatchMode

from zigma_pl.core.errors import UserError
from zigma_pl.training.callbacks.non_finite import NonFiniteGuard
from zigma_pl.training.callbacks.step_dump import README, replay
from zigma_pl.training.module import GenerativeModule


class BadSteps(GenerativeModule):
    """Its loss is infinite, with finite gradients, in some steps."""

    bad = ()

    def training_loss(self, batch):
        loss = super().training_loss(batch)
        return loss + torch.inf if self._trainer is not None and self.trainer.global_step in self.bad else loss


def spoiled(*steps):
    module = build(BadSteps)
    module.bad = steps
    return module


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2, "batch_size": 4}, {"precision": "bf16-mixed"}])
def test_bad_step_leaves_weights_and_moments_alone_and_is_counted(tmp_path, options):
    _, remember = train(tmp_path, spoiled(2), [NonFiniteGuard()], max_steps=3, save_every=1, **options)
    before, after = (torch.load(tmp_path / f"step={n}.ckpt", weights_only=True) for n in (2, 3))
    for name, weight in before["current_model_state"].items():
        assert torch.equal(after["current_model_state"][name], weight)
    states = zip(*(c["optimizer_states"][0]["state"].values() for c in (before, after)), strict=True)
    assert all(torch.equal(a[name], b[name]) for a, b in states for name in a)
    assert all(weight.isfinite().all() for weight in after["state_dict"].values())
    assert remember.logged[-1]["train/skipped_steps"] == 1
    assert before["optimizer_states"][0]["state"][0]["step"] == 2


def test_optimiser_that_is_not_fused_is_guarded_too(tmp_path):
    module = spoiled(2)
    made = module.configure_optimizers()
    made["optimizer"].param_groups[:] = [group | {"fused": False} for group in made["optimizer"].param_groups]
    module.configure_optimizers = lambda: made
    train(tmp_path, module, [NonFiniteGuard()], max_steps=3, save_every=1)
    before, after = (torch.load(tmp_path / f"step={n}.ckpt", weights_only=True) for n in (2, 3))
    for name, weight in before["current_model_state"].items():
        assert torch.equal(after["current_model_state"][name], weight)


def test_resumed_run_goes_on_counting(tmp_path):
    train(tmp_path / "first", spoiled(1, 2), [NonFiniteGuard()], max_steps=3)
    guard = NonFiniteGuard(max_in_a_row=3, check_every_n_steps=1)
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row, .* step 4"):
        train(tmp_path / "second", spoiled(3), [guard], ckpt_path=tmp_path / "first" / "last.ckpt")


def test_a_row_that_ends_does_not_stop_the_run(tmp_path):
    guard = NonFiniteGuard(max_in_a_row=3, check_every_n_steps=1)
    _, remember = train(tmp_path, spoiled(0, 1, 3, 4), [guard])
    assert [row["train/skipped_steps"] for row in remember.logged] == [1, 2, 2, 3, 4, 4]


def test_dump_reproduces_the_step(tmp_path):
    """Weights that overflow in one layer: named by the error, and again by the replay."""
    module = build()
    torch.nn.init.constant_(module.backbone.blocks[1].mixer.in_proj.weight, 3e38)
    options = {"accumulate_grad_batches": 2, "batch_size": 4}
    with pytest.raises(UserError, match=r"\(process 0, first in blocks\.1\.mixer\.in_proj\)") as stopped:
        train(tmp_path, module, [NonFiniteGuard(max_in_a_row=2, check_every_n_steps=2)], **options)
    folder = tmp_path / "non_finite_step_00000002"
    assert str(folder) in str(stopped.value)
    report = json.loads((folder / "rank_0.json").read_text())
    assert report["sample_ids"] == [[8, 9, 10, 11], [12, 13, 14, 15]]
    assert report["step"] == 2
    again = replay(folder, module=build())
    for name in ("sample_ids", "outputs", "non_finite_gradients", "first_non_finite_output"):
        assert again[name] == report[name]
    assert (folder / "README.txt").read_text() == README


class CountReads(TorchDispatchMode):
    """Counts what would wait for a GPU: numbers read from tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_nothing_is_read_from_the_device_between_two_looks(tmp_path):
    counts = []

    class Probe(NonFiniteGuard):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            with CountReads() as reads:
                super().on_before_optimizer_step(trainer, pl_module, optimizer)
                pl_module.on_before_optimizer_step(optimizer)
                pl_module._losses.append(torch.zeros(()))  # the trainer calls it once more
            counts.append(reads.count)

        def on_train_batch_end(self, *arguments):
            with CountReads() as reads:
                super().on_train_batch_end(*arguments)
            counts.append(reads.count)

    guard = Probe(check_every_n_steps=3)
    train(tmp_path, spoiled(1), [guard], log_every_n_steps=100)
    assert [count > 0 for count in counts] == [False, False, False, False, False, True] * 2
