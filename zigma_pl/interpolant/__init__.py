"""The stochastic interpolant: noise schedules, conversions between quantities, training objective and loss terms."""

from zigma_pl.interpolant.conversions import Quantity, convert, interpolate
from zigma_pl.interpolant.loss_terms import LossInputs, LossTerm
from zigma_pl.interpolant.objective import Objective, resolution_shift
from zigma_pl.interpolant.schedules import (
    GVPSchedule,
    LinearSchedule,
    PathCoefficients,
    Schedule,
    ScheduleName,
    VPSchedule,
    make_schedule,
)
from zigma_pl.interpolant.velocity_loss import velocity_loss

__all__ = [
    "GVPSchedule",
    "LinearSchedule",
    "LossInputs",
    "LossTerm",
    "Objective",
    "PathCoefficients",
    "Quantity",
    "Schedule",
    "ScheduleName",
    "VPSchedule",
    "convert",
    "interpolate",
    "make_schedule",
    "resolution_shift",
    "velocity_loss",
]
