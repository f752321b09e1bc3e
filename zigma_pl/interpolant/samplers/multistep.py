"""Multistep solvers of the probability-flow ODE: DPM-Solver++ (arXiv:2211.01095) and UniPC (arXiv:2302.04867).

In lambda = log(alpha / sigma), which rises from noise to data, the ODE has the exact solution

    x(lambda + h) / sigma(lambda + h) = x(lambda) / sigma(lambda) + integral over [lambda, lambda + h] of exp(l) D(l) dl

with D the expected data. The solvers integrate the polynomial through the values of D at the last calls instead.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.interpolant.samplers.base import Predictor, Sampler
from zigma_pl.interpolant.samplers.time_grids import check_steps, lambda_grid, log_ratio, time_grid
from zigma_pl.interpolant.schedules import Schedule

MultistepMethod = Literal["dpmsolver++", "unipc"]
Spacing = Literal["time", "lambda"]
MAX_ORDER = 3


class Node(NamedTuple):
    """A time of the grid: alpha, sigma and lambda, which is infinite at t = 0 and minus infinity at pure noise."""

    alpha: float
    sigma: float
    log_ratio: float

    @classmethod
    def at(cls, t: float, path: Schedule) -> "Node":
        """Return the node of a time."""
        alpha, sigma = path.weights(t)
        return cls(alpha, sigma, log_ratio(alpha, sigma))


class Call(NamedTuple):
    """A network call: its node, and the expected data, (B, ...)."""

    node: Node
    data: Tensor


class MultistepSampler(Sampler):
    """Deterministic sampling of high order with one network call per step: each step reuses the last calls.

    Network calls: exactly `num_steps`. It works with every prediction, since it only uses the expected data.

    The first steps have order 1, 2, ..., because they have fewer earlier calls. The last steps fall back to order ...,
    2, 1: at t = 0 lambda is infinite, and the last step returns the expected data. With `t_end` > 0 they keep the full
    order. On paths that reach pure noise, lambda is minus infinity at t = 1. The first step uses this limit, and later
    steps leave the call at t = 1 out of their polynomials.

    Args:
        method: "dpmsolver++" extrapolates from the last calls. "unipc" also corrects each step with the call at its
            end, which is the first call of the next step; this raises the order by 1.
        order: number of calls in the polynomial of a step, 1 to 3. "dpmsolver++" of order 1 is DDIM.
        num_steps: number of steps, including the last.
        spacing: "time" for steps that are even in t, or shifted by `time_shift`; "lambda" for steps that are even in
            lambda.
        time_shift: with "time" spacing, 1 for even steps, > 1 for more of them near noise (arXiv:2403.03206); None for
            the objective's, with which it was trained. "lambda" spacing does not use it.
        lambda_range: with "lambda" spacing, lambda at which the even steps start, and lambda of the last call; limited
            to what `t_start` and the objective's `time_range` allow. At lambda = 3 the noise is 1/20 of the data.

    Raises: UserError for an unknown option or a number out of range.
    """

    def __init__(
        self,
        method: MultistepMethod = "unipc",
        order: int = 3,
        num_steps: int = 10,
        spacing: Spacing = "time",
        time_shift: float | None = None,
        lambda_range: tuple[float, float] = (-3.0, 3.0),
    ) -> None:
        check_steps("MultistepSampler", num_steps, time_shift)
        check_whole_numbers("MultistepSampler", most=MAX_ORDER, order=order)
        for name, value, choices in (("method", method, MultistepMethod), ("spacing", spacing, Spacing)):
            if value not in get_args(choices):
                known = ", ".join(get_args(choices))
                raise UserError(f"MultistepSampler.{name}: {value!r} is unknown; choose one of {known}")
        if len(lambda_range) != 2 or not -math.inf < lambda_range[0] < lambda_range[1] < math.inf:
            raise UserError(f"MultistepSampler.lambda_range: need low < high, both finite, got {tuple(lambda_range)}")
        self.method: MultistepMethod = method
        self.order = order
        self.num_steps = num_steps
        self.spacing: Spacing = spacing
        self.time_shift = time_shift
        self.lambda_range = lambda_range

    def integrate(self, predictor: Predictor, x_t: Tensor, generators: list[torch.Generator] | None) -> Tensor:
        """Integrate the ODE; no noise is sampled."""
        times = self._times(predictor)
        nodes = [Node.at(t, predictor.objective.path) for t in times]
        calls: list[Call] = []  # those that the step uses, the newest first
        x_before = x_t
        for index, (node, target) in enumerate(pairwise(nodes)):
            data = predictor(x_t, times[index]).data
            if self.method == "unipc" and calls:
                x_t = correct(x_before, calls, Call(node, data))
            highest_order = min(self.order, self.num_steps - index) if predictor.t_end == 0 else self.order
            finite = [call for call in calls if math.isfinite(call.node.log_ratio)]
            calls = [Call(node, data), *finite][:highest_order]
            x_before, x_t = x_t, extrapolate(x_t, calls, target)
        return x_t

    def _times(self, predictor: Predictor) -> list[float]:
        ends = {"start": predictor.t_start, "end": predictor.t_end}
        if self.spacing == "lambda":
            path, last = predictor.objective.path, predictor.t_last
            return lambda_grid(self.num_steps, path, **ends, last=last, lambda_range=self.lambda_range)
        shift = predictor.time_shift(self.time_shift)
        times = time_grid(self.num_steps, **ends, shift=shift)
        if times[-2] >= predictor.t_last:
            return times
        return time_grid(self.num_steps, **ends, last=predictor.t_last, shift=shift)


def extrapolate(x: Tensor, calls: Sequence[Call], target: Node) -> Tensor:
    """Take a predictor step.

    Args:
        x: (B, ...) the state at the newest call.
        calls: as many as the order of the step, the newest first.
        target: end of the step.
    """
    return _step(x, calls, target, [])


def correct(x: Tensor, calls: Sequence[Call], target: Call) -> Tensor:
    """Repeat a predictor step with the call at its end; see `extrapolate`."""
    return _step(x, calls, target.node, [(1.0, target.data)])


def _step(x: Tensor, calls: Sequence[Call], target: Node, at_end: list[tuple[float, Tensor]]) -> Tensor:
    """Integrate the polynomial through `calls` and the data at the target, if given."""
    node, data = calls[0]
    h = target.log_ratio - node.log_ratio
    # In s = (lambda - lambda of the node) / h, D(s) = data + c_1 s + c_2 s^2 + ... The slopes (D(s_j) - data) / s_j are
    # c_1 + c_2 s_j + ..., so weights with sum_j weight_j s_j^(i - 1) = integral i integrate the polynomial exactly.
    others = [((call.node.log_ratio - node.log_ratio) / h, call.data) for call in calls[1:]] + at_end
    integrals = _integrals(h, len(others) + 1)
    weights = _slope_weights([s for s, _ in others], integrals)
    x = target.sigma / node.sigma * x + target.alpha * integrals[0] * data
    for weight, (s, other) in zip(weights, others, strict=True):
        x = x + target.alpha * weight / s * (other - data)
    return x


def _integrals(h: float, count: int) -> list[float]:
    """Return the integrals of h exp(h (s - 1)) s^i over [0, 1], i < count; h may be infinite."""
    integrals = [-math.expm1(-h)]
    for i in range(1, count):
        integrals.append(1 - i / h * integrals[-1])  # integration by parts
    return integrals


def _slope_weights(positions: Sequence[float], integrals: Sequence[float]) -> list[float]:
    if len(positions) < 2:  # half the first integral has the same order; both papers prefer it
        return [integrals[0] / 2] * len(positions)
    powers = torch.linalg.vander(torch.tensor(positions, dtype=torch.float64)).T
    return torch.linalg.solve(powers, torch.tensor(integrals[1:], dtype=torch.float64)).tolist()
