"""Score samplers, numbers of network calls and guidance on one trained checkpoint, with the same noise and conditions.

    python tools/sampler_search.py logs/pilot/NAME/config_HASH --out search.json [--what ode shift sde guidance]

Reads the newest checkpoint and config.yaml of the log folder of a run. It writes the results so far after each setting,
so that the search can be stopped, or limited with --max_seconds, and prints a Markdown table of scores by network
calls. "ode" compares Euler, Heun, DPM-Solver++ and UniPC, "shift" time grids for 25 Euler steps, "sde" Euler-Maruyama
with Euler, and "guidance" scales with and without an interval, with the sampler of the checkpoint. With guidance, each
step counts as two calls.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import yaml
from jsonargparse import ArgumentParser

from zigma_pl.core.files import whole_file
from zigma_pl.core.machine import choose_device
from zigma_pl.data.base import ImageDataModule
from zigma_pl.evaluation.sampling import Precision
from zigma_pl.evaluation.scoring import Scoring, ScoringOptions
from zigma_pl.interop.training_checkpoint import model_of
from zigma_pl.samplers import Guidance, MultistepSampler, ODESampler, Sampler, SDESampler
from zigma_pl.training.checkpoints.io import read_checkpoint
from zigma_pl.training.checkpoints.newest import CHECKPOINT_FOLDER, newest_checkpoint

REFERENCE_CALLS, FEW_CALLS = 50, 8


@dataclass(frozen=True)
class Setting:
    """A row of the table: a sampler and guidance, with the number of steps."""

    name: str
    sampler: Sampler | None
    guidance: Guidance = field(default_factory=Guidance)


def of_ode() -> Iterator[Setting]:
    """Yield deterministic samplers, the reference and those of few calls first."""
    yield Setting("Euler", ODESampler("euler", REFERENCE_CALLS))
    multistep = {
        "UniPC 2": ("unipc", 2),
        "UniPC 3": ("unipc", 3),
        "DPM-Solver++ 2": ("dpmsolver++", 2),
        "DPM-Solver++ 3": ("dpmsolver++", 3),
    }
    for calls in (FEW_CALLS, 12, 25, 6, 10, 15):
        for name, (method, order) in multistep.items():
            yield Setting(name, MultistepSampler(method, order, calls))  # type: ignore[arg-type]
        yield Setting("Euler", ODESampler("euler", calls))
        if calls % 2 == 0:
            yield Setting("Heun", ODESampler("heun", calls // 2))
    for shift in (0.5, 2.0):
        yield Setting(f"UniPC 2, shift {shift}", MultistepSampler("unipc", 2, FEW_CALLS, time_shift=shift))
    yield Setting("UniPC 2, lambda", MultistepSampler("unipc", 2, FEW_CALLS, "lambda"))


def of_shift() -> Iterator[Setting]:
    """Yield 25 Euler steps with time grids that are closer to noise (shift > 1) or to the data."""
    for shift in (1.0, 2.0, 0.5, 1.5, 3.0, 0.7):
        yield Setting(f"Euler, shift {shift}", ODESampler("euler", 25, time_shift=shift))


def of_sde() -> Iterator[Setting]:
    """Yield Euler with few and many calls beside Euler-Maruyama."""
    for calls in (25, 10, 50, 100):
        yield Setting("ODE, Euler", ODESampler("euler", calls))
        yield Setting("SDE, Euler-Maruyama", SDESampler("euler_maruyama", calls))


def of_guidance() -> Iterator[Setting]:
    """Yield scales of guidance at all times and within intervals; without one, the sampler of the checkpoint."""
    for scale in (1.5, 1.25, 2.0):
        for interval in ((0.0, 1.0), (0.1, 0.8)):
            low, high = interval
            name = f"guidance {scale}" if interval == (0.0, 1.0) else f"guidance {scale} for t in {low} to {high}"
            yield Setting(name, None, Guidance(scale, interval))


SEARCHES = {"ode": of_ode, "shift": of_shift, "sde": of_sde, "guidance": of_guidance}


def data_of(log_folder: Path) -> ImageDataModule:
    """Build the data module of a run from its config."""
    config = yaml.safe_load((log_folder / "config.yaml").read_text())
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageDataModule, "data")
    data: ImageDataModule = parser.instantiate(parser.parse_object({"data": config["data"]})).data
    data.setup("test")
    return data


@dataclass(frozen=True)
class Row:
    """The score of a setting.

    calls: network calls for each sample; with guidance, the conditional and the unconditional ones.
    """

    name: str
    calls: int
    score: float
    seconds: float


def table(rows: list[Row], score: str) -> str:
    """Return a Markdown table: a row for each sampler, a column for each number of network calls."""
    calls = sorted({row.calls for row in rows})
    cells = {(row.name, row.calls): f"{row.score:.1f}" for row in rows}
    lines = [[score, *(f"{number} calls" for number in calls)], ["---"] * (len(calls) + 1)]
    for name in dict.fromkeys(row.name for row in rows):
        lines.append([name, *(cells.get((name, number), "") for number in calls)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summary(rows: list[Row]) -> str:
    """Return how the best sampler with few calls compares with Euler and many calls, "" without both."""
    reference = [row.score for row in rows if row.name == "Euler" and row.calls == REFERENCE_CALLS]
    few = [(row.score, row.name) for row in rows if row.calls == FEW_CALLS]
    if not reference or not few:
        return ""
    score, name = min(few)
    return f"{name} with {FEW_CALLS} calls: {score / reference[0]:.3f} of Euler with {REFERENCE_CALLS}"


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log_folder", type=Path, help="folder with config.yaml and checkpoints/")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the results")
    parser.add_argument("--what", nargs="+", choices=list(SEARCHES), default=["ode"])
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--batch_size", type=int, default=500)
    parser.add_argument("--score", default="fid_lite")
    parser.add_argument("--max_seconds", type=float, default=float("inf"), help="start no setting after this time")
    parser.add_argument("--num_settings", type=int, help="only the first settings, for a trial")
    return parser.parse_args()


def main() -> None:
    """Search, and print the table."""
    options = read_options()
    began = time.monotonic()
    path = newest_checkpoint(options.log_folder / CHECKPOINT_FOLDER).path
    if path is None:
        raise SystemExit(f"{options.log_folder}: has no checkpoint")
    device = choose_device("auto")
    model = model_of(read_checkpoint(path), "average", path).to(device)
    scored_with = ScoringOptions(options.num_samples, [options.score], batch_size=options.batch_size)
    scoring = Scoring(data_of(options.log_folder), scored_with)
    precision = Precision()
    if device.type == "cuda":
        precision = Precision("bf16-mixed", partial(torch.autocast, "cuda", torch.bfloat16))
    own_sampler, rows = model.sampler, list[Row]()
    for setting in [each for name in options.what for each in SEARCHES[name]()][: options.num_settings]:
        if time.monotonic() - began > options.max_seconds:
            break
        model.sampler, model.guidance = setting.sampler or own_sampler, setting.guidance
        start = time.monotonic()
        name = f"search_{options.log_folder.parent.name}"
        scored = scoring.score(model, {"checkpoint": str(path)}, name, precision)
        calls = scored.protocol["num_network_calls"] * (1 if setting.guidance.scale == 1 else 2)
        rows.append(Row(setting.name, calls, scored.scores[options.score].value, round(time.monotonic() - start, 1)))
        print(rows[-1], flush=True)
        content = {"checkpoint": str(path), "num_samples": options.num_samples, "score": options.score}
        with whole_file(options.out) as temporary:
            temporary.write_text(json.dumps({**content, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    print(table(rows, options.score))
    print(summary(rows))


if __name__ == "__main__":
    main()
