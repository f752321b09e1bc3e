"""The LightningModule: a backbone, its training objective, and the sampler that generates from it.

Axes: B batch, C channels, H W latent grid.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from zigma_pl.core.batch import Batch, Conditions
from zigma_pl.core.errors import UserError
from zigma_pl.core.randomness import rand_per_sample, randn_per_sample, sample_generators
from zigma_pl.core.ranges import LARGEST_SEED, check_numbers, check_whole_numbers
from zigma_pl.core.torch_private import keep_from_ddp
from zigma_pl.core.transfer import to_device
from zigma_pl.data.specification import check_data_fit_backbone, warn_of_ignored_conditions
from zigma_pl.evaluation.loss_by_time import LossByTime, MeanByTime, bin_name
from zigma_pl.interpolant.loss_terms import LossInputs, LossTerm
from zigma_pl.interpolant.objective import Evaluation, Objective
from zigma_pl.interpolant.samplers import Guidance, ODESampler, Sampler, guided_network
from zigma_pl.interpolant.velocity_loss import equivalent_times, has_linear_times, linear_times, velocity_loss
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.taps import tapped
from zigma_pl.runtime.compiling import compile_regions
from zigma_pl.runtime.graphed_sampling import GraphedBackbone
from zigma_pl.runtime.graphed_training import GraphedTraining
from zigma_pl.runtime.sharding import made_whole, shard
from zigma_pl.training.checkpoints.content import TRAINED_ON
from zigma_pl.training.lightning_private import is_made_from_options, trainer_of
from zigma_pl.training.optimizers import Constant, LearningRateSchedule, parameter_groups
from zigma_pl.training.trainer_options import schedule_validation

log = logging.getLogger(__name__)

# Constructor arguments that are objects if the module is built in Python, and are not saved as hyperparameters then.
_OBJECTS = ["backbone", "objective", "sampler", "guidance", "optimizer", "lr_schedule", "loss_terms"]
OWN_TERM = "interpolant"  # name of the objective's term in logs
EVALUATION_SEED = 0  # independent of the run's seed, so that losses of different runs use the same noise


class Samples(NamedTuple):
    """Generated samples: float32 latents, their ids (B,), and the number of network calls per sample.

    Latents are (B, C, H, W), for clips (B, F, C, H, W).
    """

    latents: Tensor
    sample_ids: Tensor
    num_network_calls: int


class GenerativeModule(L.LightningModule):
    """The model: a backbone, trained on the stochastic-interpolant objective, and the sampler that generates from it.

    All random numbers of a sample (noise, time, dropped conditions) are a function of (seed, sample id), so results do
    not depend on the batch size or the number of processes.

    Args:
        backbone: the network.
        objective: interpolant path, prediction type, loss weighting and time sampling.
        sampler: integrates from noise at t = 1 to data at t = 0.
        guidance: classifier-free guidance for sampling.
        optimizer: a torch optimiser by class path. It gets parameter groups with a "role" each (`zigma_pl.optimizers`).
            Weight decay is applied to linear maps only.
        lr_schedule: schedule of the learning rate.
        loss_terms: terms added to the objective's loss in training, by name.
        condition_dropout: fraction of training samples whose conditions are all replaced by their null entries. Each
            conditioner can have its own dropout rate in addition.
        compile_backbone: compile the backbone's blocks and other parts with torch.compile, for training and sampling.
        graph_sampling: on a CUDA device, replay the backbone as a CUDA graph when sampling.
        graph_training: on a CUDA device, replay forward and backward pass of the backbone as CUDA graphs in training,
            from the second step on, so that the GPU does not wait for the CPU. None replays networks that can be
            recorded, and runs others step by step; True raises an error for the latter. Not used with sharded
            parameters.
        seed: seed of all random numbers; the command line sets it to seed_everything.

    Attributes:
        trained_on: plain values that describe the training data: `class_names` in the order of class ids, some
            `captions`, and `data`, the class of the data set and its frozen encoders. Set from the data module when
            training starts.
        predict_times: `t_start` and `t_end` of the samples of `predict_step`.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective | None = None,
        sampler: Sampler | None = None,
        guidance: Guidance = Guidance(),  # noqa: B008  a frozen dataclass
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=1e-4, weight_decay=0.0),
        lr_schedule: LearningRateSchedule | None = None,
        loss_terms: dict[str, LossTerm] | None = None,
        condition_dropout: float = 0.1,
        compile_backbone: bool = False,
        graph_sampling: bool = True,
        graph_training: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # On the command line these are plain options, which `load_from_checkpoint` needs. In Python they are objects.
        self.save_hyperparameters(ignore=[] if is_made_from_options() else _OBJECTS)
        check_numbers("model", least=0, most=1, condition_dropout=condition_dropout)
        check_whole_numbers("model", least=0, most=LARGEST_SEED, seed=seed)
        self.backbone = backbone
        self.objective = objective or Objective()
        self.sampler = sampler or ODESampler()
        self.guidance = guidance
        # Wrapped in a function, which the EMA's deep copy shares: the command line's callable refers to the trainer.
        self.optimizer: OptimizerCallable = _shared(optimizer)
        self.lr_schedule = lr_schedule or Constant()
        for term in (loss_terms or {}).values():
            term.attach(backbone)
        self.loss_terms = nn.ModuleDict(loss_terms or {})
        self.condition_dropout = condition_dropout
        self.compile_backbone = compile_backbone
        self.graph_sampling = graph_sampling
        self._graphed_backbone = GraphedBackbone(backbone, compile_backbone)
        self._graphed_weak: GraphedBackbone | None = None
        self.graph_training = graph_training
        self._graphed_training = GraphedTraining(backbone, required=bool(graph_training))
        self.seed = seed
        self.trained_on: dict[str, Any] = {}
        self.predict_times = (1.0, 0.0)
        self.evaluation_loss, self.velocity_loss = MeanByTime(), MeanByTime()
        self.test_loss: LossByTime | None = None
        self.test_velocity_loss: LossByTime | None = None
        self._is_first_batch = True  # since training started or resumed
        self._losses: list[Tensor] = []  # losses of the micro-batches of this optimiser step
        self._terms: list[dict[str, Tensor]] = []  # their terms, if there is more than one
        self._gradient_norm: Tensor | None = None  # gradient norm of this optimiser step, once computed
        self._has_old_gradients = False  # those of the last optimiser step

    # --- set-up -------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Check that the data fit the backbone, and compile the backbone if enabled."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            check_data_fit_backbone(datamodule, self.backbone)
        if stage == "fit" and datamodule is not None and hasattr(datamodule, "kept_with_model"):
            self.trained_on = {**self.trained_on, **datamodule.kept_with_model()}
        if stage == "fit":
            self._prepare_loss_terms(datamodule)
        if self.compile_backbone:
            compile_regions(self.backbone)
        # Buffers are constants. DDP would broadcast them in every call, which is useless, and deadlocks in evaluation
        # if one process has more batches than another.
        keep_from_ddp(self, (name for name, _ in self.named_buffers()))

    def _prepare_loss_terms(self, datamodule: Any) -> None:
        terms: dict[str, Any] = dict(self.loss_terms.items())
        for name, term in terms.items():
            if term.needs_images and not getattr(datamodule, "has_images", True):
                raise UserError(
                    f"model.loss_terms.{name} needs images, but data.cache {datamodule.cache} has only latents: leave "
                    "out data.cache, so that images are encoded during training"
                )
            term.prepare()

    def configure_model(self) -> None:
        """Shard the backbone over the processes of the strategy's device mesh, if it has one."""
        if self.device_mesh is not None:
            if any(True for _ in self.loss_terms.parameters()):
                raise UserError(
                    "model.loss_terms: terms with parameters cannot be combined with sharded parameters: use "
                    "configs/strategy/ddp.yaml"
                )
            shard(self.backbone, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build the optimiser with parameter groups by role, and the learning rate schedule in optimiser steps."""
        try:
            optimizer = self.optimizer(parameter_groups([self.backbone, self.loss_terms]))
        except ValueError as error:  # torch's optimisers check their own options
            raise UserError(f"model.optimizer: {error}: correct its options") from error
        # Fused kernels can skip a step by a flag on the device (`callbacks/non_finite.py`). Not used with float16's
        # loss scaling, where they would unscale gradients themselves, after clipping.
        if trainer_of(self) is None or self.trainer.precision != "16-mixed":
            for group in optimizer.param_groups:
                if "fused" in group and group["fused"] is None:
                    group["fused"] = True
        num_steps = -1 if trainer_of(self) is None else self.trainer.max_steps
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.lr_schedule.factor(step, num_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # --- training and validation --------------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch; a non-finite loss makes all gradients NaN.

        A non-finite loss can have finite gradients. With NaN gradients, every process detects it after the reduction.
        """
        loss = self.training_loss(batch)
        self._losses.append(loss.detach())
        return loss * (1 + 0 * loss.detach())  # loss * 1, or loss * NaN

    def training_loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch; time, noise and dropped conditions depend on (seed, sample id)."""
        generators = sample_generators(self.seed, "train", batch.sample_ids)
        t = self.objective.sample_time(generators, device=self.device)
        terms = self._active_terms()
        layers = sorted({layer for term in terms.values() for layer in term.layers})
        backbone = self._trained_backbone
        taps = backbone.tapped(layers) if isinstance(backbone, GraphedTraining) else tapped(backbone, layers)
        with taps as features:
            evaluation = self._evaluate(batch, t, generators)
        inputs = LossInputs(batch, t, evaluation, self.objective, features)
        total = evaluation.loss.mean()
        values = {OWN_TERM: total}
        for name, term in terms.items():
            values[name] = term(inputs).mean()
            total = total + term.weight * values[name]
        if terms.keys() != self.loss_terms.keys() and trainer_of(self) is not None and self.trainer.world_size > 1:
            # DistributedDataParallel waits for a gradient of every parameter; these are removed before the step.
            total = total + sum(parameter.flatten()[:0].sum() for parameter in self._inactive_parameters())
        if terms:
            self._terms.append({name: value.detach() for name, value in values.items()})
        return total

    def _active_terms(self) -> dict[str, LossTerm]:
        step = 0 if trainer_of(self) is None else self.trainer.global_step
        terms: dict[str, Any] = dict(self.loss_terms.items())
        return {name: term for name, term in terms.items() if term.is_active(step)}

    def _inactive_parameters(self) -> list[nn.Parameter]:
        active = self._active_terms()
        inactive = [term for name, term in self.loss_terms.items() if name not in active]
        return [parameter for term in inactive for parameter in term.parameters()]

    def loss_per_sample(self, batch: Batch, t: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return the objective's loss of each sample, (B,), at times t, (B,)."""
        return self._evaluate(batch, t, generators).loss

    @property
    def _trained_backbone(self) -> Backbone | GraphedTraining:
        if self.graph_training is False or self.device_mesh is not None or self._is_first_batch:
            return self.backbone
        return self._graphed_training

    def _evaluate(self, batch: Batch, t: Tensor, generators: list[torch.Generator]) -> Evaluation:
        assert batch.latents is not None
        missing = [name for name in self.backbone.conditioners if name not in batch.conditions]
        if missing:
            given = ", ".join(batch.conditions) or "none"
            raise UserError(
                f"the backbone is conditioned on {missing[0]!r}, but the data module provides: {given}: add it in the "
                "data module's encode_conditions, or build the backbone without it"
            )
        x_noise = randn_per_sample(generators, tuple(batch.latents.shape[1:]), device=self.device)
        dropped = None
        if self.training and self.backbone.droppable_conditions:
            dropped = self._dropped(generators)  # also with rate 0, so that null entries get a zero gradient, not None

        backbone = self._trained_backbone

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return backbone(x_t, t, self._conditions(batch), dropped)

        return self.objective.evaluate(network, batch.latents, x_noise, t)

    def _dropped(self, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Return for each condition the samples in which it is dropped, (B,) bool by name: jointly or individually."""
        everything = rand_per_sample(generators, device=self.device) < self.condition_dropout
        dropped = {}
        for name, rate in self.backbone.dropout_rates.items():
            dropped[name] = everything
            if rate:
                dropped[name] = everything | (rand_per_sample(generators, device=self.device) < rate)
        return dropped

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a held-out batch to the fixed losses, whose noise and times are functions of the sample ids.

        The validation loss is the objective's. The velocity loss is comparable between objectives; it has times of its
        own, which need a second network call unless they are those of the validation loss.
        """
        ids = batch.sample_ids
        t, linear_t = self.objective.validation_times(ids), linear_times(ids)
        evaluation = comparable = self._evaluate_held_out(batch, t)
        comparable_t = equivalent_times(self.objective, linear_t)
        if not has_linear_times(self.objective):
            comparable = self._evaluate_held_out(batch, comparable_t)
        velocity_losses = velocity_loss(self.objective, comparable, to_device(comparable_t, self.device))
        if not batch.is_filler:
            self.evaluation_loss.update(evaluation.loss, t)
            self.velocity_loss.update(velocity_losses, linear_t)

    def _evaluate_held_out(self, batch: Batch, t: Tensor) -> Evaluation:
        # Also called for filler batches, since sharded weights are gathered from all processes.
        generators = sample_generators(EVALUATION_SEED, "validation", batch.sample_ids)
        return self._evaluate(batch, to_device(t, self.device), generators)

    def on_validation_epoch_end(self) -> None:
        """Log the losses, overall and by time."""
        self._log_evaluation_losses("validation", prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Like `validation_step`, on the test split."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the losses, overall and by time, and store them as `test_loss` and `test_velocity_loss`."""
        self.test_loss, self.test_velocity_loss = self._log_evaluation_losses("test")

    def _log_evaluation_losses(self, stage: str, prog_bar: bool = False) -> tuple[LossByTime, LossByTime]:
        loss, of_velocity = self.evaluation_loss.compute(), self.velocity_loss.compute()
        self.evaluation_loss.reset()
        self.velocity_loss.reset()
        # Already equal on all processes; `sync_dist` only avoids Lightning's warning.
        self.log(f"{stage}/loss", loss.value, prog_bar=prog_bar, sync_dist=True)
        self.log(f"{stage}/velocity_loss", of_velocity.value, sync_dist=True)
        for index, value in enumerate(loss.by_time):
            if value is not None:
                self.log(f"{stage}/loss_by_time/{bin_name(index)}", value, sync_dist=True)
        return loss, of_velocity

    def forget_recordings(self) -> None:
        """Record training steps again; needed after a change that recordings do not include."""
        self._graphed_training.forget()

    def on_train_start(self) -> None:
        """Reset the state of a step that was interrupted."""
        self._losses, self._terms, self._gradient_norm = [], [], None
        self._is_first_batch, self._has_old_gradients = True, False

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Free the gradients of the last step; in the first step, warn about conditions that the backbone ignores.

        Lightning frees them after the forward pass. A replayed forward pass would copy them first, as if gradients of
        micro-batches were accumulated.
        """
        if self._has_old_gradients:
            self.zero_grad()
            self._has_old_gradients = False
        if self._is_first_batch:
            warn_of_ignored_conditions(batch.conditions, list(self.backbone.conditioners))

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Schedule the next validation."""
        self._is_first_batch = False
        schedule_validation(self.trainer)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """In logging steps, log the mean loss, the gradient norm before clipping, and the learning rate.

        The mean is over all processes and accumulated micro-batches. Parameters of inactive loss terms get no gradient,
        so the optimiser does not change them.
        """
        for parameter in self._inactive_parameters():
            parameter.grad = None
        if self.logs_this_step():
            loss = torch.stack(self._losses).mean()
            # Moved to the CPU here: Lightning reads values of the progress bar in each step, which would synchronise.
            self.log("train/loss", self.trainer.strategy.reduce(loss, reduce_op="mean").cpu(), prog_bar=True)
            for name in self._terms[0] if self._terms else ():
                value = torch.stack([terms[name] for terms in self._terms]).mean()
                self.log(f"train/terms/{name}", self.trainer.strategy.reduce(value, reduce_op="mean"))
            self.log("train/gradient_norm", self.gradient_norm())
            self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        self._losses, self._terms = [], []
        self._has_old_gradients = True

    def logs_this_step(self) -> bool:
        """Whether values logged in the current optimiser step will be written."""
        every_n_steps: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every_n_steps > 0 and (self.trainer.global_step + 1) % every_n_steps == 0

    def gradient_norm(self) -> Tensor:
        """Return the norm of the gradient before clipping, on the device; computed once per step.

        Must be called between the end of the backward pass and clipping. For sharded gradients, the norm of the full
        gradient is returned.
        """
        if self._gradient_norm is None:
            norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
            self._gradient_norm = made_whole(norm)
        return self._gradient_norm

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by value, or by the known norm; Lightning's clipping supports neither fused nor sharded AdamW."""
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm())
        self._gradient_norm = None

    # --- sampling -----------------------------------------------------------------------------------------------------

    @property
    def weak_backbone(self) -> Backbone | None:
        """The weaker model that guidance leads away from; None for classifier-free guidance. See `guide_with`."""
        return None if self._graphed_weak is None else self._graphed_weak.backbone

    def guide_with(self, weak: "GenerativeModule | None") -> None:
        """Guide sampling away from a weaker model, instead of dropping conditions (autoguidance, arXiv:2406.02507).

        The weak model is not trained, and is part of neither checkpoints nor exports.

        Args:
            weak: a model of the same path, prediction, latents and conditions, such as a smaller one or one that was
                trained for fewer steps; None for classifier-free guidance.

        Raises: UserError if the two models differ in one of these.
        """
        if weak is None:
            self._graphed_weak = None
            return
        for what, own, other in (
            ("path", self.objective.schedule, weak.objective.schedule),
            ("prediction", self.objective.prediction, weak.objective.prediction),
            ("shape of latents", tuple(self.backbone.latent_shape), tuple(weak.backbone.latent_shape)),
            ("conditions", sorted(self.backbone.conditioners), sorted(weak.backbone.conditioners)),
        ):
            if own != other:
                raise UserError(
                    f"the weak model has another {what} ({other}) than this model ({own}): use one with the same {what}"
                )
        self._graphed_weak = GraphedBackbone(weak.backbone.eval())

    @torch.no_grad()
    def sample(
        self, batch: Batch, guidance: Guidance | None = None, *, t_start: float = 1.0, t_end: float = 0.0
    ) -> Samples:
        """Generate one latent for each sample id of `batch` under its conditions.

        Args:
            batch: sample ids and conditions; `batch.latents` are used only if `t_start` < 1.
            guidance: None for that of the model.
            t_start: start time, in (0, 1]; below 1, sampling starts from `batch.latents` with noise added
                (image-to-image).
            t_end: end time, in [0, t_start); above 0, the samples still contain noise.
        """
        generators = sample_generators(self.seed, "sample", batch.sample_ids)
        x_noise = randn_per_sample(generators, self.backbone.latent_shape, device=self.device)
        graphed, graphed_weak = self._graphed_backbone, self._graphed_weak
        weak: GraphedBackbone | Backbone | None = graphed_weak
        weak_weights: AbstractContextManager[None] = nullcontext()
        if graphed_weak is not None:
            graphed_weak.backbone.to(self.device)  # not a submodule, so it is not moved with this model
            weak = graphed_weak if self.graph_sampling else graphed_weak.backbone
            weak_weights = graphed_weak.fixed_weights()
        backbone: GraphedBackbone | Backbone = graphed if self.graph_sampling else self.backbone
        network = guided_network(backbone, self._conditions(batch), guidance or self.guidance, weak=weak)
        with graphed.fixed_weights(), weak_weights:
            result = self.sampler.sample(
                network,
                x_noise,
                objective=self.objective,
                generators=generators,
                x_data=batch.latents if t_start < 1 else None,
                t_start=t_start,
                t_end=t_end,
            )
        return Samples(result.x_data, batch.sample_ids, result.num_network_calls)

    def _conditions(self, batch: Batch) -> Conditions:
        """Return those conditions of a batch that the backbone uses; the data may have more."""
        return {name: batch.conditions[name] for name in self.backbone.conditioners if name in batch.conditions}

    def predict_step(self, batch: Batch, batch_idx: int) -> Samples:
        """Generate samples for a batch of ids and conditions; none for a filler batch."""
        if batch.is_filler:
            return Samples(torch.empty(0, *self.backbone.latent_shape), batch.sample_ids[:0], 0)
        t_start, t_end = self.predict_times
        return self.sample(batch, t_start=t_start, t_end=t_end)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the description of the training data."""
        checkpoint[TRAINED_ON] = self.trained_on

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raise a UserError if the checkpoint's parameters do not match this model's."""
        self.trained_on = dict(checkpoint.get(TRAINED_ON, {}))
        wrong = mismatch(self.state_dict(), checkpoint["state_dict"])
        if wrong is not None:
            raise UserError(
                f"the checkpoint does not match this model ({wrong}): use the --config files and options that it was "
                "trained with"
            )


def _shared(optimizer: OptimizerCallable) -> OptimizerCallable:
    """Return a function that calls `optimizer`; deep copies of objects that refer to it share what it captures."""

    def build(parameters: Any) -> torch.optim.Optimizer:
        return optimizer(parameters)

    return build


def mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    """Return a description of the weights that do not match a network's, None if all match."""

    def differ(a: Tensor, b: Tensor) -> bool:
        return a.shape != b.shape or a.is_floating_point() != b.is_floating_point()

    differing = {name for name in expected.keys() & found.keys() if differ(expected[name], found[name])}
    wrong = sorted(expected.keys() ^ found.keys() | differing)
    if not wrong:
        return None
    return f"{len(wrong)} parameters are missing, unexpected or differ in shape or type, such as {', '.join(wrong[:3])}"
