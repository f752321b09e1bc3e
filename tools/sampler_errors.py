"""Errors of the samplers by network calls, against an accurate solution of the same ODE from the same noise.

Of a mixture of Gaussians, whose expected data is known in closed form, on each path:

    python tools/sampler_errors.py

Of a model, for a class or a prompt:

    python tools/sampler_errors.py --model models/portraits --prompt "a person with red hair" --num_samples 4

Prints Markdown tables: the root mean square error of the latents, divided by the standard deviation of the samples.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import zigma_pl
from zigma_pl.core.machine import choose_device
from zigma_pl.interop.generation import encoders_of, model_and_data, requests_of
from zigma_pl.interpolant import Objective
from zigma_pl.samplers import MultistepSampler, ODESampler, Sampler

NUM_COMPONENTS, NUM_DIMENSIONS, STD = 8, 4, 0.15
SAMPLERS: dict[str, Callable[[int], Sampler]] = {
    "Euler": lambda calls: ODESampler("euler", calls),
    "Heun": lambda calls: ODESampler("heun", calls // 2),
    **{
        f"{title} {order}, {spacing}": lambda calls, method=method, order=order, spacing=spacing: MultistepSampler(
            method, order, calls, spacing
        )
        for spacing in ("time", "lambda")
        for title, method in (("DPM-Solver++", "dpmsolver++"), ("UniPC", "unipc"))
        for order in (2, 3)
    },
}


class Mixture:
    """The exact velocity network for a mixture of Gaussians of one standard deviation."""

    def __init__(self, objective: Objective) -> None:
        self.path = objective.path
        generator = torch.Generator().manual_seed(0)
        self.means = 0.8 * torch.randn(NUM_COMPONENTS, NUM_DIMENSIONS, generator=generator, dtype=torch.float64)

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return the expected velocity at x_t, (B, D), and times (B,)."""
        path = self.path.coefficients(t.reshape(-1, 1, 1))
        variance = path.alpha**2 * STD**2 + path.sigma**2
        distance = x_t[:, None] - path.alpha * self.means  # (B, components, D)
        posterior = torch.softmax(-distance.square().sum(2, keepdim=True) / (2 * variance), 1)
        data = self.means + path.alpha * STD**2 / variance * distance
        noise = path.sigma / variance * distance
        return (posterior * (path.d_alpha * data + path.d_sigma * noise)).sum(1)


def of_the_mixture(schedule: str) -> Callable[[Sampler], Tensor]:
    """Return sampling of a thousand points of the mixture on a path."""
    objective = Objective(schedule)
    network = Mixture(objective)
    x_noise = torch.randn(1000, NUM_DIMENSIONS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return lambda sampler: sampler.sample(network, x_noise, objective=objective).x_data


def of_a_model(options: argparse.Namespace) -> Callable[[Sampler], Tensor]:
    """Return sampling of latents of a model."""
    device = choose_device("auto")
    model = zigma_pl.from_pretrained(options.model).to(device)
    requests = requests_of(model, options.prompt, options.classes, options.num_samples)
    encoders = encoders_of(model, {}, allow_hub=False)
    model, data = model_and_data(model, requests, encoders, len(requests))
    raw = next(iter(data.predict_dataloader()))
    batch = data.encode(data.transfer_batch_to_device(raw, device, 0), device)
    guidance = None if options.guidance is None else zigma_pl.samplers.Guidance(options.guidance)

    def sample(sampler: Sampler) -> Tensor:
        model.sampler = sampler
        return model.sample(batch, guidance).latents

    return sample


def print_errors(title: str, sample: Callable[[Sampler], Tensor], reference: Sampler, calls: list[int]) -> None:
    """Print the table of a kind of samples."""
    exact = sample(reference)
    print(f"\n| {title} | {' | '.join(f'{count} calls' for count in calls)} |\n|---|{'---|' * len(calls)}", flush=True)
    for name, build in SAMPLERS.items():
        errors = [(sample(build(count)) - exact).square().mean().sqrt() / exact.std() for count in calls]
        print(f"| {name} | {' | '.join(f'{error:.4f}' for error in errors)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of an exported model; without it, the mixture is sampled")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--class", dest="classes", action="append", default=[])
    parser.add_argument("--num_samples", type=int, default=4, help="of each prompt or class")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the model's)")
    parser.add_argument("--calls", type=int, nargs="+", default=[8, 16, 32], help="network calls, even numbers")
    options = parser.parse_args()
    if options.model is not None:
        print_errors(options.model, of_a_model(options), ODESampler("heun", 60), options.calls)
        return
    for schedule in ("linear", "gvp", "vp"):
        print_errors(schedule, of_the_mixture(schedule), ODESampler("dopri5", rtol=1e-9, atol=1e-9), options.calls)


if __name__ == "__main__":
    main()
