"""How to sample: the options of a model that `generate` and `python -m zigma_pl sample` can change."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from zigma_pl.core.class_paths import options_of
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_numbers, check_whole_numbers
from zigma_pl.interpolant.samplers import Guidance, Sampler
from zigma_pl.training.module import GenerativeModule
from zigma_pl.training.trainer_options import AUTOCAST, check_trainer_options, default_precision


@dataclass(frozen=True)
class SamplingOptions:
    """Options of sampling; None keeps the model's.

    Args:
        seed: seed of the noise.
        sampler: the sampler.
        num_steps: number of steps of the sampler.
        guidance: all of the guidance, or only its scale.
        t_start: start time, in (0, 1]; below 1, sampling starts from an image.
        t_end: end time, in [0, t_start).

    Raises: UserError for a number out of range.
    """

    seed: int = 0
    sampler: Sampler | None = None
    num_steps: int | None = None
    guidance: Guidance | float | None = None
    t_start: float = 1.0
    t_end: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges; sampler and guidance check their own."""
        check_whole_numbers("generate", least=0, most=LARGEST_SEED, seed=self.seed)
        check_numbers("generate", above=0, most=1, t_start=self.t_start)
        check_numbers("generate", least=0, below=self.t_start, t_end=self.t_end)

    def set_on(self, model: GenerativeModule) -> None:
        """Set the options of a model.

        Raises: UserError for `num_steps` with a sampler that chooses its own steps.
        """
        model.seed = self.seed
        model.sampler = with_steps(self.sampler or model.sampler, self.num_steps)
        if isinstance(self.guidance, Guidance):
            model.guidance = self.guidance
        elif self.guidance is not None:
            model.guidance = replace(model.guidance, scale=self.guidance)
        model.predict_times = (self.t_start, self.t_end)

    def check_image(self, has_image: bool) -> None:
        """Raise UserError unless there is an image exactly if sampling starts from one."""
        if has_image and self.t_start == 1:
            raise UserError(
                "image has no effect at start time 1, which is noise: pass t_start (--t_start) below 1, such as 0.6"
            )
        if not has_image and self.t_start < 1:
            raise UserError(f"t_start: {self.t_start} needs an image to start from: pass image (--image)")


@contextmanager
def sampling_options(model: GenerativeModule, options: SamplingOptions) -> Iterator[None]:
    """Put a model in evaluation mode and set its sampling options, until the end of the block."""
    before = {name: getattr(model, name) for name in ("seed", "sampler", "guidance", "predict_times")}
    was_training = model.training
    try:
        options.set_on(model.eval())
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)
        model.train(was_training)


def autocast(device: torch.device, precision: str | None) -> AbstractContextManager[Any]:
    """Return the context in which a model on this device samples.

    Args:
        device: the device.
        precision: 32-true, bf16-mixed or 16-mixed, as for Lightning's Trainer; None for bf16-mixed on a GPU with
            bfloat16, and for the context of the caller elsewhere.

    Raises: UserError for another precision.
    """
    check_trainer_options({"precision": precision})
    dtype = AUTOCAST.get(precision or default_precision({"accelerator": device.type}) or "")
    if dtype is None and precision is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def with_steps(sampler: Sampler, num_steps: int | None) -> Sampler:
    """Return the sampler with another number of steps, unchanged for None.

    Raises: UserError for a number out of range, or a sampler that chooses its own steps.
    """
    if num_steps is None:
        return sampler
    options = options_of(sampler)
    if "num_steps" not in options or options.get("method") == "dopri5":
        name = options.get("method", type(sampler).__name__)
        raise UserError(f"num_steps: the sampler, {name}, chooses its own steps: omit the option")
    return type(sampler)(**{**options, "num_steps": num_steps})
