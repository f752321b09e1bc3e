"""Gaussian data N(mean, std^2): every quantity of the path is known in closed form."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor

from zigma_pl.interpolant import Objective


@dataclass
class GaussianModel:
    """An exact network for N(mean, std^2) data, counting its calls and recording its times."""

    objective: Objective
    mean: float = 0.7
    std: float = 0.5

    def __post_init__(self) -> None:
        self.times: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.times.append(t)
        c = self.objective.path.coefficients(t.reshape(-1, *(1,) * (x_t.ndim - 1)))
        score = -(x_t - c.alpha * self.mean) / (c.alpha**2 * self.std**2 + c.sigma**2)
        noise = -c.sigma * score
        if self.objective.prediction != "velocity":
            return score if self.objective.prediction == "score" else noise
        data = self.mean + c.alpha * self.std**2 * -score
        return c.d_alpha * data + c.d_sigma * noise


@pytest.fixture
def gaussian() -> Callable[..., GaussianModel]:
    def build(objective: Objective | None = None, **options: float) -> GaussianModel:
        return GaussianModel(objective or Objective(), **options)

    return build
