"""The options of `python -m zigma_pl sample`; torch is not imported, so that `--help` is fast."""

import argparse
import re
import textwrap
from pathlib import Path

from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.parser import Parser

DESCRIPTION = (
    "Generate images from a model that `export` or `import-zigma` wrote, and write a file for each, samples.json and "
    "a grid. The data set and the config are not needed. An image depends on the seed, its index and its prompt or "
    "class; the batch size affects only rounding. docs/sampling.md describes samplers and guidance."
)
# Options of each sampler, and the values of those that take a name.
SAMPLERS = {
    "ODESampler": {
        "method": "euler, heun, dopri5",
        "num_steps": "",
        "time_shift": "",
        "atol": "",
        "rtol": "",
        "error_control": "per_sample, batch",
    },
    "MultistepSampler": {
        "method": "dpmsolver++, unipc",
        "order": "",
        "num_steps": "",
        "spacing": "time, lambda",
        "time_shift": "",
        "lambda_range": "",
    },
    "SDESampler": {
        "method": "euler_maruyama, heun",
        "num_steps": "",
        "diffusion": "sigma, linear, constant, decreasing, increasing_decreasing, sbdm",
        "diffusion_scale": "",
        "last_step": "mean, tweedie, euler",
        "last_step_size": "",
        "time_shift": "",
    },
}
ANY_OPTION = "OPTION"  # in `--help`
_WIDTH = 79


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl sample",
        usage="python -m zigma_pl sample --model FOLDER [options]",
        description=textwrap.fill(DESCRIPTION, _WIDTH),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="FOLDER", help="folder of the exported model")
    add("--prompt", action="append", default=[], metavar="TEXT", help="caption to generate; may be repeated")
    add(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="CLASS",
        help="name of a class, or its index; may be repeated",
    )
    add(
        "--condition",
        dest="conditions",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="further condition of all images: a number, a list as in JSON, or a .npy file; may be repeated",
    )
    add("--num_samples", type=int, default=8, help="images of each prompt or class (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    add(
        "--image_size_px",
        type=int,
        nargs="+",
        metavar="PX",
        help="side of the images, or height and width (default: the model's)",
    )
    add("--out", metavar="FOLDER", help="folder to write (default: samples/ and the name of the model's folder)")
    add("--batch_size", type=int, default=4, help="images generated at a time (default: %(default)s)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: cuda if available")
    add(
        "--precision",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        help="default: bf16-mixed on a GPU with bfloat16, 32-true elsewhere",
    )
    add_allow_import(parser)
    _add_sampler(parser)
    _add_guidance(parser)
    _add_encoders(parser)
    return parser


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the options, and those of the sampler (`--sampler.NAME VALUE`) by name."""
    parser = build_parser()
    given = [match[1] for argument in argv if (match := re.match(r"--sampler\.(\w+)(=|$)", argument))]
    for name in dict.fromkeys(given):
        if name != ANY_OPTION:
            parser.add_argument(f"--sampler.{name}", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    return options, {name: getattr(options, f"sampler.{name}") for name in given}


def _add_sampler(parser: argparse.ArgumentParser) -> None:
    own = [
        textwrap.fill(
            ", ".join(f"{name} ({values})" if values else name for name, values in options.items()),
            _WIDTH,
            initial_indent=f"  {sampler:<18}",
            subsequent_indent=" " * 20,
        )
        for sampler, options in SAMPLERS.items()
    ]
    add = parser.add_argument_group("sampler", "\n".join(["samplers and their options:", *own])).add_argument
    add(
        "--sampler",
        metavar="CLASS",
        help="class of the sampler, or the import path of your own; its other options have their defaults "
        "(default: the model's sampler with its options)",
    )
    add(
        f"--sampler.{ANY_OPTION}",
        metavar="VALUE",
        help="option of the sampler, such as --sampler.order 3; values as in JSON",
    )
    add("--num_steps", type=int, help="steps of the sampler, short for --sampler.num_steps")
    add("--image", type=Path, metavar="FILE", help="image to start from (image-to-image), with --t_start")
    add("--t_start", type=float, default=1.0, metavar="T", help="start time: 1 is noise, less keeps more of --image")
    add("--t_end", type=float, default=0.0, metavar="T", help="end time: 0 is data, later times leave noise")


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("guidance (default: the model's)").add_argument
    add("--guidance", type=float, metavar="SCALE", help="scale; 1 is none, more follows prompt or class more closely")
    add(
        "--guidance_interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="lowest and highest time with guidance, from 0 (data) to 1 (noise)",
    )
    add("--guidance_drop", nargs="+", metavar="NAME", help="conditions that guidance drops, such as caption")
    add(
        "--weak_model",
        type=Path,
        metavar="FOLDER",
        help="folder of a weaker exported model; guidance leads away from it instead of dropping conditions",
    )


def _add_encoders(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "frozen encoders, if config.json does not name them or they have moved"
    ).add_argument
    add("--autoencoder", help="folder or hub name of an AutoencoderKL, or identity for pixels")
    add("--autoencoder_subfolder", metavar="NAME", help="subfolder with the autoencoder, such as vae")
    add(
        "--allow_hub",
        action="store_true",
        help="download the autoencoder that config.json names from the Hugging Face hub if it is not a local folder",
    )
    add("--text_encoder", choices=("hashing", "clip", "minilm"), help="encoder of the prompts")
    add("--text_encoder_path", metavar="FOLDER", help="folder of the text encoder's weights")
