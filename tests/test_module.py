import copy
import threading
from functools import partial

import lightning as L
import pytest
import torch

from zigma_pl.backbones import ZigMa
from zigma_pl.core.batch import Batch, Condition
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import randn_per_sample, sample_generators
from zigma_pl.data import Digits
from zigma_pl.interpolant import Objective
from zigma_pl.mixers import Mamba
from zigma_pl.optimizers import Constant
from zigma_pl.samplers import Guidance, ODESampler, guided_network
from zigma_pl.training.callbacks.ema import EMA
from zigma_pl.training.module import GenerativeModule


def adamw(**options):
    return partial(torch.optim.AdamW, **{"lr": 1e-2, "weight_decay": 0.0} | options)


def build(**options):
    torch.manual_seed(0)
    backbone = ZigMa(1, 8, 8, patch_size=4, width=16, depth=2, mixers=Mamba(state_size=4), num_classes=10)
    defaults = {"sampler": ODESampler(num_steps=3), "optimizer": adamw()}
    return GenerativeModule(backbone, Objective(), **defaults | options)


def trainer_for(folder, max_steps, callbacks=(), **options):
    return L.Trainer(
        default_root_dir=folder,
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        **options,
    )


def checkpointing(folder):
    return L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=2, save_last=True, save_top_k=1)


@pytest.mark.parametrize("interrupted_at", [4, 5])
def test_resumed_training_equals_uninterrupted_bit_for_bit(tmp_path, interrupted_at):
    def run(folder, max_steps, ckpt_path=None):
        callbacks = [EMA(decay=0.5), checkpointing(folder)]
        trainer = trainer_for(folder, max_steps, callbacks, gradient_clip_val=1.0, logger=False)
        trainer.fit(build(lr_schedule=Constant(warmup_steps=3)), datamodule=Digits(batch_size=8), ckpt_path=ckpt_path)
        return torch.load(folder / "last.ckpt", weights_only=True)

    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "parts", interrupted_at)
    resumed = run(tmp_path / "parts", 8, tmp_path / "parts" / "last.ckpt")
    for key in ("state_dict", "current_model_state"):
        assert whole[key].keys() == resumed[key].keys()
        assert all(torch.equal(whole[key][name], resumed[key][name]) for name in whole[key])
    assert any(not torch.equal(whole["state_dict"][n], whole["current_model_state"][n]) for n in whole["state_dict"])
    moments = [[s["exp_avg"] for s in c["optimizer_states"][0]["state"].values()] for c in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_loss_does_not_depend_on_how_a_batch_is_split():
    module = build(condition_dropout=0.5).train()
    for parameter in module.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    batch = Batch(torch.randn(6, 1, 8, 8), torch.arange(6) + 100, {"class": Condition(torch.arange(6))})

    def losses(rows):
        part = Batch(batch.latents[rows], batch.sample_ids[rows], {"class": Condition(torch.arange(6)[rows])})
        generators = [torch.Generator().manual_seed(int(i)) for i in part.sample_ids]
        return module.loss_per_sample(part, torch.full((len(part.latents),), 0.5), generators)

    together = losses(slice(0, 6))
    apart = torch.cat([losses(slice(0, 2)), losses(slice(2, 6))])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)


def test_samples_do_not_depend_on_the_batch():
    module = build(guidance=Guidance(scale=2.0)).eval()
    for parameter in module.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    data = Digits()
    together = module.sample(data.conditions(range(6))).latents
    apart = torch.cat([module.sample(data.conditions(ids)).latents for ids in ([0, 1], [2, 3, 4, 5])])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], together[1])


def test_a_copy_of_the_module_does_not_copy_what_builds_the_optimizer():
    """From the command line that refers to the trainer, and to processes that it has started."""
    owner = threading.Lock()  # which cannot be copied
    module = build(optimizer=partial(lambda owner, parameters: torch.optim.SGD(parameters, lr=0.5), owner))
    assert copy.deepcopy(module).configure_optimizers()["optimizer"].defaults["lr"] == 0.5


def test_seed_changes_the_samples():
    first, second = (build(seed=seed).sample(Digits().conditions([0])).latents for seed in (0, 1))
    assert not torch.allclose(first, second)


def test_decay_spares_norms_biases_and_state_space_parameters():
    module = build(optimizer=adamw(weight_decay=0.1))
    names = {id(parameter): name for name, parameter in module.backbone.named_parameters()}
    decayed_names, undecayed_names = set(), set()
    for group in module.configure_optimizers()["optimizer"].param_groups:
        assert group["weight_decay"] in (0.0, 0.1)
        (decayed_names if group["weight_decay"] else undecayed_names).update(names[id(p)] for p in group["params"])
    assert len(decayed_names) + len(undecayed_names) == len(names)
    assert {"blocks.0.mixer.in_proj.weight", "blocks.1.mixer.dt_proj.weight"} <= decayed_names
    for end in ("A_log", "mixer.D", ".bias", "norm.weight", "conv_bias", "position_embedding.table"):
        assert any(name.endswith(end) for name in undecayed_names)
        assert not any(name.endswith(end) for name in decayed_names)


def test_learning_rate_warms_up_linearly():
    options = build(lr_schedule=Constant(warmup_steps=4)).configure_optimizers()
    rates = []
    for _ in range(6):
        rates.append(options["optimizer"].param_groups[0]["lr"])
        options["optimizer"].step()
        options["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01, 0.01])


class WatchUpdates(L.Callback):
    """Remembers the gradient norm that the optimiser saw, and the weights and their average at each step."""

    def __init__(self, ema=None):
        self.ema, self.norms, self.weights, self.averages, self.validated = ema, [], [], [], []

    def on_train_batch_end(self, trainer, pl_module, *_):
        gradients = [p.grad for p in pl_module.backbone.parameters() if p.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        self.weights.append(pl_module.backbone.final_layer.projection.weight.detach().clone())
        self.averages.append(self.ema._average_model.module.backbone.final_layer.projection.weight.detach().clone())

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.validated.append(pl_module.backbone.final_layer.projection.weight.detach().clone())


def test_gradients_are_clipped_before_the_step_and_the_average_follows_its_recurrence(tmp_path):
    ema = EMA(decay=0.75, starting_at_step=2)
    watch = WatchUpdates(ema)
    options = {"gradient_clip_val": 1e-3, "logger": False, "enable_checkpointing": False, "limit_val_batches": 1}
    trainer_for(tmp_path, 6, [ema, watch], **options).fit(build(), datamodule=Digits(batch_size=8))
    assert max(watch.norms) <= 1e-3 * 1.001
    # The average starts as the weights at its first update, the third step, and follows from there.
    expected = watch.weights[2]
    torch.testing.assert_close(watch.averages[2], expected)
    for step in (3, 4, 5):
        expected = 0.75 * expected + 0.25 * watch.weights[step]
        torch.testing.assert_close(watch.averages[step], expected)
    # Validation after step 2 sees the weights, as there is no average yet; after step 4 the average.
    torch.testing.assert_close(watch.validated[0], watch.weights[1])
    torch.testing.assert_close(watch.validated[1], watch.averages[3])


class GradientsKept(L.Callback):
    """Whether there are gradients when a forward pass begins."""

    def __init__(self):
        self.kept = []

    def on_train_start(self, trainer, pl_module):
        pl_module.backbone.register_forward_pre_hook(
            lambda backbone, _: self.kept.append(any(p.grad is not None for p in backbone.parameters()))
        )


@pytest.mark.parametrize(("micro_batches", "kept"), [(1, [False] * 3), (3, [False, True, True] * 3)])
def test_gradients_are_freed_before_the_next_step_and_kept_between_micro_batches(tmp_path, micro_batches, kept):
    watched = GradientsKept()
    options = {"accumulate_grad_batches": micro_batches, "limit_val_batches": 0, "logger": False}
    trainer = trainer_for(tmp_path, 3, [watched], enable_checkpointing=False, **options)
    trainer.fit(build(), datamodule=Digits(batch_size=8))
    assert watched.kept == kept


def test_a_rising_decay_forgets_the_first_weights(tmp_path):
    ema = EMA(decay=0.25, warmup=True)
    watch = WatchUpdates(ema)
    options = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    trainer_for(tmp_path, 4, [ema, watch], **options).fit(build(), datamodule=Digits(batch_size=8))
    expected = watch.weights[0]
    for step, decay in ((1, 2 / 11), (2, 0.25), (3, 0.25)):  # 3 / 12 = 1 / 4
        expected = decay * expected + (1 - decay) * watch.weights[step]
        torch.testing.assert_close(watch.averages[step], expected)


def test_checkpoint_is_plain_and_loads_without_the_command_line(tmp_path):
    trainer = trainer_for(tmp_path, 2, [EMA(), checkpointing(tmp_path)], logger=False)
    trainer.fit(build(), datamodule=Digits(batch_size=8))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "visit_order" in name or "_orig_mod" in name]
    other = build()
    other.load_state_dict(checkpoint["state_dict"])


def test_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    torch.save({"state_dict": {"backbone.extra": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"does not match this model \(\d+ parameters"):
        build().on_load_checkpoint(torch.load(tmp_path / "other.ckpt", weights_only=True))


def test_data_that_do_not_fit_are_explained_before_anything_runs(tmp_path):
    module = build()
    module.backbone.conditioners["class"].num_classes = 7
    with pytest.raises(UserError, match=r"num_classes=10, but .* num_classes=7"):
        trainer_for(tmp_path, 1, logger=False).fit(module, datamodule=Digits())
    module.backbone.latent_shape = (3, 8, 8)
    with pytest.raises(UserError, match="in_channels=1"):
        trainer_for(tmp_path, 1, logger=False).fit(module, datamodule=Digits())


def test_validation_loss_is_fixed(tmp_path):
    def validate(batch_size):
        trainer = trainer_for(tmp_path, 1, logger=False)
        return trainer.validate(build(), datamodule=Digits(batch_size=batch_size), verbose=False)[0]["validation/loss"]

    assert validate(50) == pytest.approx(validate(181), rel=1e-5)


def test_unconditional_backbone_trains_on_labelled_data(tmp_path):
    module = GenerativeModule(ZigMa(1, 8, 8, patch_size=4, width=16, depth=1, mixers=Mamba(state_size=4)), Objective())
    trainer_for(tmp_path, 1, logger=False, enable_checkpointing=False).fit(module, datamodule=Digits(batch_size=8))


# ----------------------------------------------------------------------------------------- autoguidance, image-to-image
def randomised(seed=0, **options):
    module = build(**options).eval()
    torch.manual_seed(seed)
    for parameter in module.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module


@pytest.mark.parametrize("graph_sampling", [True, False])
def test_a_weak_model_guides_sampling(graph_sampling):
    module, weak = randomised(guidance=Guidance(scale=2.0), graph_sampling=graph_sampling), randomised(seed=1)
    batch = Digits().conditions(range(3))
    names, dropping = set(module.state_dict()), module.sample(batch).latents
    module.guide_with(weak)
    guided = module.sample(batch).latents
    networks = [guided_network(each.backbone, batch.conditions) for each in (module, weak)]
    x_noise = randn_per_sample(sample_generators(0, "sample", range(3)), (1, 8, 8))
    expected = module.sampler.sample(
        lambda x_t, t: 2 * networks[0](x_t, t) - networks[1](x_t, t), x_noise, objective=Objective()
    )
    torch.testing.assert_close(guided, expected.x_data)
    assert not torch.allclose(guided, dropping)
    assert set(module.state_dict()) == names
    assert copy.deepcopy(module).weak_backbone is not weak.backbone
    module.guide_with(None)
    assert torch.equal(module.sample(batch).latents, dropping)


def test_a_weak_model_of_another_kind_is_refused():
    module = randomised()
    others = {
        "prediction": GenerativeModule(module.backbone, Objective(prediction="noise")),
        "path": GenerativeModule(module.backbone, Objective("gvp")),
        "conditions": GenerativeModule(ZigMa(1, 8, 8, patch_size=4, width=16, depth=1), Objective()),
        "latents": GenerativeModule(ZigMa(1, 4, 4, patch_size=4, width=16, depth=1, num_classes=10), Objective()),
    }
    for what, weak in others.items():
        with pytest.raises(UserError, match=what):
            module.guide_with(weak)


def test_sampling_starts_from_the_latents_of_the_batch():
    module, conditions = randomised(), Digits().conditions(range(3))
    latents = torch.randn(3, 1, 8, 8)
    batch = Batch(latents, conditions.sample_ids, conditions.conditions)
    almost = module.sample(batch, t_start=0.001).latents
    torch.testing.assert_close(almost, latents, atol=0.05, rtol=0)
    assert torch.equal(module.sample(batch).latents, module.sample(conditions).latents)
    with pytest.raises(UserError, match="x_data"):
        module.sample(conditions, t_start=0.5)
