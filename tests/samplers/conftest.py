"""Gaussian data N(mean, std^2), for which all quantities are known in closed form; CUDA graphs emulated on the CPU."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from zigma_pl.interpolant import Objective
from zigma_pl.runtime import graphed_sampling as graphed


@dataclass
class GaussianModel:
    """The exact network for N(mean, std^2) data, which counts its calls and records its times."""

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
        data = self.mean + c.alpha * self.std**2 * -score
        outputs = {"score": score, "noise": noise, "data": data, "velocity": c.d_alpha * data + c.d_sigma * noise}
        return outputs[self.objective.prediction]

    def state(self, t: float, x_noise: Tensor) -> Tensor:
        """Return the point at time t of the ODE's exact solution that is `x_noise` at pure noise."""
        alpha, sigma = self.objective.path.weights(t)
        return alpha * self.mean + math.hypot(alpha * self.std, sigma) * x_noise


@pytest.fixture
def gaussian() -> Callable[..., GaussianModel]:
    def build(objective: Objective | None = None, **options: float) -> GaussianModel:
        return GaussianModel(objective or Objective(), **options)

    return build


@pytest.fixture
def repeated(monkeypatch):
    """Emulate CUDA graphs on the CPU by repeated calls, and return the captures."""
    calls = []

    def record(call):
        calls.append(call)
        output = call()[0].clone()
        return [((lambda: output.copy_(call()[0])), (output,))]

    monkeypatch.setattr(graphed, "warm_up", lambda call: None)
    monkeypatch.setattr(graphed, "record", record)
    monkeypatch.setattr(graphed.GraphedBackbone, "device_type", "cpu")
    return calls


@pytest.fixture
def recorded(monkeypatch):
    """Emulate CUDA graphs on the CPU by the same operations on the same memory, and return all recordings."""
    recordings = []

    def record(call):
        recordings.append(make_fx(call)())
        (output,) = recordings[-1]()
        return [((lambda replay=recordings[-1]: output.copy_(replay()[0])), (output,))]

    monkeypatch.setattr(graphed, "warm_up", lambda call: None)
    monkeypatch.setattr(graphed, "record", record)
    monkeypatch.setattr(graphed.GraphedBackbone, "device_type", "cpu")
    return recordings
