"""`python -m zigma_pl sample`: draw pictures from an exported model, under prompts or classes."""

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
MAX_IN_GRID = 400
MAX_COLUMNS = 8


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl sample",
        description="Draw pictures from a model that `export` or `import-zigma` wrote: a file for each, samples.json "
        "and a grid. Needs no data set and no configuration. A picture depends on the seed, on its number and on its "
        "prompt or class; the batch size changes no more than the rounding.",
    )
    parser.add_argument("--model", required=True, type=Path, metavar="FOLDER", help="folder of the exported model")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="what to draw; may be repeated")
    add = parser.add_argument
    add("--class", dest="classes", action="append", default=[], metavar="NAME", help="class by name; may be repeated")
    add("--class-id", dest="classes", action="append", type=int, metavar="ID", help="class by number; may be repeated")
    parser.add_argument("--num", type=int, default=8, help="pictures of each prompt or class (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other pictures (default: %(default)s)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="how strongly to follow (default: the model's)")
    parser.add_argument("--num-steps", type=int, metavar="N", help="steps of the sampler (default: the model's)")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PX",
        help="side of the pictures, or height and width (default: the model's)",
    )
    add_allow_import(parser)
    parser.add_argument("--batch-size", type=int, default=4, help="pictures drawn at a time (default: %(default)s)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="default: cuda if there")
    parser.add_argument("--out", metavar="FOLDER", help="folder to write (default: samples/NAME OF THE MODEL'S FOLDER)")
    encoders = parser.add_argument_group("frozen encoders, where config.json does not tell, or they lie elsewhere")
    encoders.add_argument("--autoencoder", help="folder or hub name of an AutoencoderKL, or identity for pixels")
    encoders.add_argument("--autoencoder-subfolder", help="folder inside it that holds the autoencoder, such as vae")
    encoders.add_argument(
        "--allow-hub",
        action="store_true",
        help="download the autoencoder that config.json names on the Hugging Face hub, where it is no local folder",
    )
    encoders.add_argument("--text-encoder", choices=("hashing", "clip", "minilm"), help="encoder of the prompts")
    encoders.add_argument("--text-encoder-path", metavar="FOLDER", help="folder of the text encoder's weights")
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    check_whole_numbers("sample", most=MAX_SAMPLES, num=options.num, batch_size=options.batch_size)
    check_whole_numbers("sample", least=0, most=LARGEST_SEED, seed=options.seed)
    if not options.model.is_dir():
        raise UserError(
            f"--model: there is no folder '{options.model}'; make it from a checkpoint of `fit` with "
            f"python -m zigma_pl export --ckpt_path CKPT --out {options.model}"
        )
    if options.size is not None and len(options.size) > 2:
        raise UserError(f"--size: give one side, or height and width, not {len(options.size)} numbers")
    from zigma_pl.interop.folder import from_pretrained
    from zigma_pl.interop.generation import ENCODER_OPTIONS, encoders_of, model_and_data, requests_of, set_sampling

    model = from_pretrained(options.model, allow_imports=options.allow_import)
    set_sampling(model, seed=options.seed, steps=options.num_steps, guidance=options.guidance)
    requests = requests_of(model, options.prompt, options.classes, options.num)
    given = {name: getattr(options, name, None) for name in ENCODER_OPTIONS}
    encoders = encoders_of(model, given, allow_hub=options.allow_hub, allow_imports=options.allow_import)
    size = None if options.size is None else (options.size[0], options.size[-1])
    draw(*model_and_data(model, requests, encoders, options.batch_size, size), options)
    return 0


def draw(model: "GenerativeModule", data: "RequestedData", options: argparse.Namespace) -> None:
    """Draw what is asked for, with a progress bar, and print where the grid is."""
    import lightning as L
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from zigma_pl.cli.lightning_cli import quieten
    from zigma_pl.core.machine import choose_device
    from zigma_pl.training.callbacks.sample_writer import SampleWriter
    from zigma_pl.training.callbacks.sampling_bar import SamplingBar

    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # nothing about devices that are not used
    num_samples = data.num_predict_samples
    writer = SampleWriter(
        options.out or f"samples/{options.model.resolve().name}",
        num_grid=min(num_samples, MAX_IN_GRID),
        # Of several prompts or classes, each gets a row.
        num_columns=options.num if num_samples > options.num else min(options.num, MAX_COLUMNS),
    )
    trainer = L.Trainer(
        accelerator=choose_device(options.device).type,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SamplingBar(num_samples), writer],
        plugins=[LightningEnvironment()],  # one process, also where a scheduler has started several
    )
    trainer.predict(model, datamodule=data, return_predictions=False)
