"""`python -m zigma_pl bench SUBJECT`: check and time this package and its peers, or count operations."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_numbers

if TYPE_CHECKING:
    import torch

    from zigma_pl.benchmarks.report import BenchmarkResult

MODEL_SUBJECTS = {
    "forward": "frames per second and memory of one network call, by grid size",
    "train": "images per second and memory of training steps: forward, backward, AdamW",
    "order": "frames per second and memory by the number of scan orders, zigzag against parallel Mamba",
    "efficiency": "operations, memory and speed (training and forward pass) of the five backbones, parameters matched",
    "flops": "operations of a forward pass by kind; nothing is timed, and any machine will do",
}
PAIRED = ("train", "efficiency")  # one batch size per grid
MATCHED = ("efficiency", "flops")  # all backbones have about as many parameters as ZigMa
DTYPES = ("float32", "bfloat16", "float16")
DEFAULT_DTYPE = {"cuda": "bfloat16", "cpu": "float32"}
DEFAULT_REPEATS = {"cuda": 15, "cpu": 7}
DEFAULT_SCAN_REPEATS = {"cuda": 50, "cpu": 7}
# Values of the options that `flops` does not have, since it times nothing.
NOT_TIMED = {"device": "cpu", "dtype": None, "repeats": None, "threads": None, "batches": None, "compile": "blocks"}
TINY_WIDTH, TINY_DEPTH = 64, 6
TINY_DEPTH_OF = {"efficiency": 12}  # enough layers to match the numbers of parameters


def main(argv: list[str]) -> int:
    """Run a benchmark; returns the exit status, 1 if a contestant computes wrong numbers.

    Raises: UserError for options that contradict each other or do not suit this machine.
    """
    options = _parse(argv)
    import torch  # after parsing, so that --help answers at once

    from zigma_pl.benchmarks.checks import WrongNumbersError

    for path in (options.json, options.plot):
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: folder {path.parent} does not exist: create it first")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    kept: list[BenchmarkResult] = []
    try:
        result = (_run_scan if options.subject == "scan" else _run_models)(options, partial(_keep, kept, options.json))
    except WrongNumbersError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        for result in kept:
            _publish(result, options, complete=False)
        raise
    _publish(result, options, complete=True)
    return 0


def _keep(kept: "list[BenchmarkResult]", path: Path | None, result: "BenchmarkResult") -> None:
    """Keep the result so far, also on disk, in case the run is interrupted."""
    kept[:] = [result]
    if path is not None:
        result.write_json(path, complete=False)


def _publish(result: "BenchmarkResult", options: argparse.Namespace, complete: bool) -> None:
    print(result.table() + ("" if complete else "\n(interrupted: the other contestants were not timed)"))
    if options.json is not None:
        result.write_json(options.json, complete)
    if options.plot is not None:
        result.write_plot(options.plot)


def _run_scan(options: argparse.Namespace, save: "Callable[[BenchmarkResult], None]") -> "BenchmarkResult":
    from zigma_pl.benchmarks import scan
    from zigma_pl.benchmarks.scan_contestants import default_names, make_contestant
    from zigma_pl.core.machine import choose_device, describe_machine

    device = choose_device(options.device)
    dtype = _dtype(options, device)
    names = options.contestants or default_names(device)
    check_numbers("bench scan", above=0, bandwidth=options.bandwidth)
    bandwidth = None if options.bandwidth is None else 1e9 * options.bandwidth
    return scan.run(
        scan.ScanOptions(device, dtype, options.repeats or DEFAULT_SCAN_REPEATS[device.type], bandwidth),
        {name: make_contestant(name, device) for name in names},
        options.shapes or scan.DEFAULT_SHAPES[device.type],
        describe_machine(device, options.commit),
        save,
    )


def _run_models(options: argparse.Namespace, save: "Callable[[BenchmarkResult], None]") -> "BenchmarkResult":
    from zigma_pl.benchmarks.model_table import with_captions
    from zigma_pl.benchmarks.models import ModelOptions, contestants_named
    from zigma_pl.core.machine import choose_device, describe_machine

    subject = import_module(f"zigma_pl.benchmarks.{options.subject}")
    device = choose_device(options.device)
    names = options.contestants or subject.DEFAULT_CONTESTANTS[device.type]
    model_options = ModelOptions(
        device,
        _dtype(options, device),
        options.repeats or DEFAULT_REPEATS[device.type],
        *_model_size(options, device),
        compile_scope=options.compile,
        num_frames=options.frames,
    )
    contestants = contestants_named(subject.CONTESTANTS, names, device)
    return subject.run(
        model_options,
        with_captions(contestants) if options.captions else contestants,
        _settings(options, subject.DEFAULT_SETTINGS[device.type]),
        describe_machine(device, options.commit),
        save,
    )


def _dtype(options: argparse.Namespace, device: "torch.device") -> "torch.dtype":
    import torch

    return getattr(torch, options.dtype or DEFAULT_DTYPE[device.type])


def _model_size(options: argparse.Namespace, device: "torch.device") -> tuple[str | None, int | None, int | None]:
    """Return size, width and depth: as given, else the paper's, or on a CPU tiny ones unless operations are counted."""
    if options.size is None and device.type == "cpu" and options.subject != "flops":
        return None, options.width or TINY_WIDTH, options.depth or TINY_DEPTH_OF.get(options.subject, TINY_DEPTH)
    preset = None if options.size is None and options.width and options.depth else options.size or "B"
    return preset, options.width, options.depth


def _settings(options: argparse.Namespace, defaults: list[Any]) -> list[Any]:
    """Return the combinations of grids and batch sizes to run: pairs in PAIRED subjects, else the product of both.

    Raises: UserError if paired grids and batch sizes differ in number.
    """
    from zigma_pl.benchmarks.model_table import Setting

    if options.grids is None and options.batches is None:
        return defaults
    if options.subject in PAIRED:
        grids = options.grids or [setting.grid for setting in defaults]
        batches = options.batches or [setting.batch_size for setting in defaults]
        if len(grids) != len(batches):
            raise UserError(
                f"--grids has {len(grids)} entries, --batches {len(batches)}: give one batch size for each grid"
            )
        return [Setting(grid, batch_size) for grid, batch_size in zip(grids, batches, strict=True)]
    grids = options.grids or list(dict.fromkeys(setting.grid for setting in defaults))
    batches = options.batches or list(dict.fromkeys(setting.batch_size for setting in defaults))
    return [Setting(grid, batch_size) for batch_size in batches for grid in grids]


# ---------------------------------------------------------------------------------------------------------- options
def _parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m zigma_pl bench",
        description="Measure speed and memory on this machine. Each contestant is first compared with a float64 "
        "reference; if one is wrong, the command reports it and times nothing.",
    )
    names = ",".join(("scan", *MODEL_SUBJECTS))
    subjects = parser.add_subparsers(dest="subject", required=True, metavar=f"{{{names}}}")
    scan = subjects.add_parser(
        "scan", help="the selective scan and SSD against mamba-ssm's kernels or mambapy, and the hardware's limit"
    )
    scan.add_argument("--shapes", nargs="+", type=_shape, metavar="B,L,E,N", help="batch, tokens, channels, states")
    scan.add_argument(
        "--bandwidth", type=float, metavar="GB/S", help="bandwidth of the memory (default: measured with a copy)"
    )
    _add_common_options(
        scan, "backends of this package, mamba_ssm, mamba_ssm+gathers or mambapy; for SSD with the prefix ssd-"
    )
    for name, summary in MODEL_SUBJECTS.items():
        subject = subjects.add_parser(name, help=summary)
        _add_size_options(subject, name)
        subject.set_defaults(captions=False, frames=None)
        if name == "flops":
            _add_output_options(subject, _contestants_in_words(name))
            subject.set_defaults(**NOT_TIMED)
        else:
            _add_model_options(subject, name)
            if name == "train":
                _add_input_options(subject)
            _add_common_options(subject, _contestants_in_words(name))
    return parser.parse_args(argv)


def _contestants_in_words(subject: str) -> str:
    if subject == "order":
        return "zigzag or parallel, optionally with the suffix -graph"
    families = (
        "zigzag8, zigzag8-fast, sweep, sweep-fast, random8-fast, factorized-fast, vision_mamba, parallel8, attention, "
        "hybrid, hybrid-sweep, hybrid-random8, mamba2, mamba2-fast, mamba2-sweep, mamba2-sweep-fast, "
        "mamba2-factorized-fast, mamba2-random8-fast, hybrid2, linear, conv-sweep, conv-zigzag, conv-hilbert, "
        "conv-random, dit or uvit"
    )
    if subject == "flops":
        return families
    return f"{families}, optionally with the suffix -compiled, -graph or -compiled-graph"


def _add_size_options(parser: argparse.ArgumentParser, subject: str) -> None:
    default = "B" if subject == "flops" else "B on a GPU, tiny on a CPU"
    parser.add_argument("--size", choices=("S", "B", "L", "XL"), help=f"preset (default: {default})")
    parser.add_argument("--width", type=_positive, help="width of the tokens, instead of the preset's")
    matched = "layers of ZigMa; the other backbones get as many as match its parameters"
    depth = matched if subject in MATCHED else "Mamba layers; transformers get half as many"
    parser.add_argument("--depth", type=_positive, help=depth)
    parser.add_argument("--grids", nargs="+", type=_positive, metavar="TOKENS", help="sides of the square token grids")


def _add_model_options(parser: argparse.ArgumentParser, subject: str) -> None:
    together = "one for each grid" if subject in PAIRED else "each combined with every grid"
    parser.add_argument("--batches", nargs="+", type=_positive, metavar="SIZE", help=f"batch sizes, {together}")
    scope = "compile each block (seconds) or the whole model (minutes) with torch.compile (default: %(default)s)"
    parser.add_argument("--compile", choices=("blocks", "model"), default="blocks", help=scope)


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    captions = "also time each contestant with captions of 77 tokens with 768 features"
    parser.add_argument("--captions", action="store_true", help=captions)
    frames = "train on clips with this number of frames, each of which has the tokens of --grids"
    parser.add_argument("--frames", type=_positive, help=frames)


def _add_common_options(parser: argparse.ArgumentParser, contestants: str) -> None:
    _add_output_options(parser, contestants)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: cuda if available")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--repeats", type=_positive, help="timing samples of each contestant")
    parser.add_argument("--threads", type=_positive, help="threads of PyTorch on the CPU (default: PyTorch's choice)")


def _add_output_options(parser: argparse.ArgumentParser, contestants: str) -> None:
    parser.add_argument("--contestants", nargs="+", metavar="NAME", help=contestants)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results, with quartiles")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="also plot them (.png, .pdf or .svg)")
    parser.add_argument("--commit", help="commit to record if this is not a git checkout")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(_positive(part) for part in text.split(","))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"{text!r}: give four sizes B,L,E,N such as 16,256,256,16")
    return sizes


def _picture(text: str) -> Path:
    if not text.lower().endswith((".png", ".pdf", ".svg")):
        raise argparse.ArgumentTypeError(f"{text!r}: the name must end in .png, .pdf or .svg")
    return Path(text)
