"""Optimisers: parameter groups by role, a combined optimiser, and learning rate schedules."""

from zigma_pl.training.optimizers.by_role import ByRole
from zigma_pl.training.optimizers.learning_rate import Constant, Cosine, LearningRateSchedule, WarmupStableDecay
from zigma_pl.training.optimizers.muon import Muon
from zigma_pl.training.optimizers.roles import Role, parameter_groups, parameter_roles

__all__ = [
    "ByRole",
    "Constant",
    "Cosine",
    "LearningRateSchedule",
    "Muon",
    "Role",
    "WarmupStableDecay",
    "parameter_groups",
    "parameter_roles",
]
