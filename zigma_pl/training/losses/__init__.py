"""Loss terms, and the frozen networks that they use as teachers."""

from zigma_pl.interpolant.loss_terms import LossInputs, LossTerm
from zigma_pl.training.losses.repa import REPA
from zigma_pl.training.losses.teachers import CLIPTeacher, Dinov2Teacher, LiteTeacher, Teacher

__all__ = ["REPA", "CLIPTeacher", "Dinov2Teacher", "LiteTeacher", "LossInputs", "LossTerm", "Teacher"]
