"""`python -m zigma_pl sample`: generate images from an exported model, for prompts or classes."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers

if TYPE_CHECKING:
    from zigma_pl.data.requested import RequestedData
    from zigma_pl.training.module import GenerativeModule

MAX_SAMPLES = 1_000_000  # of each prompt or class
MAX_IN_GRID = 400  # images
MAX_COLUMNS = 8


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl sample",
        description="Generate images from a model that `export` or `import-zigma` wrote, and write a file for each, "
        "samples.json and a grid. The data set and the config are not needed. An image depends on the seed, its index "
        "and its prompt or class; the batch size affects only rounding.",
    )
    parser.add_argument("--model", required=True, type=Path, metavar="FOLDER", help="folder of the exported model")
    add = parser.add_argument
    add("--prompt", action="append", default=[], metavar="TEXT", help="caption to generate; may be repeated")
    add(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="CLASS",
        help="name of a class, or its index; may be repeated",
    )
    add("--num_samples", type=int, default=8, help="images of each prompt or class (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    add("--guidance", type=float, metavar="SCALE", help="guidance scale (default: the model's)")
    add(
        "--weak_model",
        type=Path,
        metavar="FOLDER",
        help="folder of a weaker exported model; guidance leads away from it instead of dropping conditions",
    )
    add("--num_steps", type=int, help="steps of the sampler (default: the model's)")
    add(
        "--image_size_px",
        type=int,
        nargs="+",
        metavar="PX",
        help="side of the images, or height and width (default: the model's)",
    )
    add_allow_import(parser)
    add("--batch_size", type=int, default=4, help="images generated at a time (default: %(default)s)")
    add("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: cuda if available")
    add("--out", metavar="FOLDER", help="folder to write (default: samples/ and the name of the model's folder)")
    encoders = parser.add_argument_group("frozen encoders, if config.json does not name them or they have moved")
    encoders.add_argument("--autoencoder", help="folder or hub name of an AutoencoderKL, or identity for pixels")
    encoders.add_argument("--autoencoder_subfolder", help="subfolder with the autoencoder, such as vae")
    encoders.add_argument(
        "--allow_hub",
        action="store_true",
        help="download the autoencoder that config.json names from the Hugging Face hub if it is not a local folder",
    )
    encoders.add_argument("--text_encoder", choices=("hashing", "clip", "minilm"), help="encoder of the prompts")
    encoders.add_argument("--text_encoder_path", metavar="FOLDER", help="folder of the text encoder's weights")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    check_whole_numbers("sample", most=MAX_SAMPLES, num_samples=options.num_samples, batch_size=options.batch_size)
    check_whole_numbers("sample", least=0, most=LARGEST_SEED, seed=options.seed)
    if not options.model.is_dir():
        raise UserError(
            f"--model: folder '{options.model}' does not exist: create it from a checkpoint with "
            f"python -m zigma_pl export --ckpt_path CKPT --out {options.model}"
        )
    size = options.image_size_px
    if size is not None and len(size) > 2:
        raise UserError(f"--image_size_px: give one side, or height and width, not {len(size)} numbers")
    from zigma_pl.interop.folder import from_pretrained
    from zigma_pl.interop.generation import ENCODER_OPTIONS, encoders_of, model_and_data, requests_of, set_sampling

    model = from_pretrained(options.model, allow_imports=options.allow_import)
    if options.weak_model is not None:
        model.guide_with(from_pretrained(options.weak_model, allow_imports=options.allow_import))
    set_sampling(model, seed=options.seed, num_steps=options.num_steps, guidance=options.guidance)
    requests = requests_of(model, options.prompt, options.classes, options.num_samples)
    given = {name: getattr(options, name, None) for name in ENCODER_OPTIONS}
    encoders = encoders_of(model, given, allow_hub=options.allow_hub, allow_imports=options.allow_import)
    height_and_width = None if size is None else (size[0], size[-1])
    write_samples(*model_and_data(model, requests, encoders, options.batch_size, height_and_width), options)
    return 0


def write_samples(model: "GenerativeModule", data: "RequestedData", options: argparse.Namespace) -> None:
    """Generate and write the images, with a progress bar, and print the path of the grid."""
    import lightning as L
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from zigma_pl.cli.parsing import quieten
    from zigma_pl.core.machine import choose_device
    from zigma_pl.training.callbacks.sample_writer import SampleWriter
    from zigma_pl.training.callbacks.sampling_bar import SamplingBar

    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no messages about unused devices
    num_samples, per_request = data.num_predict_samples, options.num_samples
    writer = SampleWriter(
        options.out or f"samples/{options.model.resolve().name}",
        num_grid=min(num_samples, MAX_IN_GRID),
        # One row for each prompt or class, if there are several.
        num_columns=per_request if num_samples > per_request else min(per_request, MAX_COLUMNS),
    )
    trainer = L.Trainer(
        accelerator=choose_device(options.device).type,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SamplingBar(num_samples), writer],
        plugins=[LightningEnvironment()],  # one process, also if a scheduler has started several
    )
    trainer.predict(model, datamodule=data, return_predictions=False)
