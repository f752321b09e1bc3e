"""Learning rate schedules."""

import math
from abc import ABC, abstractmethod

from zigma_pl.core.ranges import check_numbers, check_whole_numbers


class LearningRateSchedule(ABC):
    """A factor in [0, 1] on the learning rate of every parameter group, as a function of the optimiser step.

    To write your own schedule, subclass this and implement `after_warmup`.

    Args:
        warmup_steps: number of steps of linear warm-up.
    """

    def __init__(self, warmup_steps: int = 0) -> None:
        check_whole_numbers("lr_schedule", least=0, warmup_steps=warmup_steps)
        self.warmup_steps = warmup_steps

    def factor(self, step: int, num_steps: int) -> float:
        """Return the factor of a step.

        Args:
            step: optimiser steps done so far.
            num_steps: optimiser steps of the whole run, trainer.max_steps.
        """
        return min(1.0, (step + 1) / (self.warmup_steps + 1)) * self.after_warmup(step, num_steps)

    @abstractmethod
    def after_warmup(self, step: int, num_steps: int) -> float:
        """Return the factor without warm-up; see `factor`."""


class Constant(LearningRateSchedule):
    """Linear warm-up, then a constant learning rate."""

    def after_warmup(self, step: int, num_steps: int) -> float:
        """Return 1."""
        return 1.0


class Cosine(LearningRateSchedule):
    """Linear warm-up, then cosine decay to `final_factor` at the end of the run (arXiv:1608.03983).

    Args:
        warmup_steps: number of steps of linear warm-up.
        final_factor: factor at the last step, in [0, 1].
    """

    def __init__(self, warmup_steps: int = 0, final_factor: float = 0.0) -> None:
        super().__init__(warmup_steps)
        self.final_factor = _checked_factor(final_factor)

    def after_warmup(self, step: int, num_steps: int) -> float:
        """Return the factor of the cosine decay."""
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))
        return self.final_factor + (1 - self.final_factor) * cosine


class WarmupStableDecay(LearningRateSchedule):
    """Linear warm-up, a constant learning rate, and linear decay in the last steps (arXiv:2404.06395).

    Args:
        warmup_steps: number of steps of linear warm-up.
        decay_steps: number of steps of linear decay, at the end of the run.
        final_factor: factor at the last step, in [0, 1].
    """

    def __init__(self, warmup_steps: int = 0, decay_steps: int = 0, final_factor: float = 0.0) -> None:
        super().__init__(warmup_steps)
        check_whole_numbers("lr_schedule", least=0, decay_steps=decay_steps)
        self.decay_steps = decay_steps
        self.final_factor = _checked_factor(final_factor)

    def after_warmup(self, step: int, num_steps: int) -> float:
        """Return 1, then the linear decay."""
        into_decay = step - (num_steps - self.decay_steps)
        if into_decay <= 0:
            return 1.0
        return 1.0 - (1.0 - self.final_factor) * min(1.0, into_decay / self.decay_steps)


def _checked_factor(factor: float) -> float:
    check_numbers("lr_schedule", least=0, most=1, final_factor=factor)
    return factor
