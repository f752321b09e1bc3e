"""`python -m zigma_pl sample`: draw pictures from an exported model, under prompts or classes."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zigma_pl.commands.parser import Parser
from zigma_pl.errors import UserError
from zigma_pl.ranges import LARGEST_SEED, check_whole_numbers

if TYPE_CHECKING:
    from zigma_pl.backbones import Backbone
    from zigma_pl.data.requested import RequestedData
    from zigma_pl.data.samples import Sample
    from zigma_pl.module import GenerativeModule
    from zigma_pl.samplers import Sampler

ENCODER_OPTIONS = ("autoencoder", "autoencoder_subfolder", "text_encoder", "text_encoder_path", "max_caption_tokens")
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
    parser.add_argument(
        "--class-id", action="append", default=[], type=int, metavar="ID", help="class to draw; may be repeated"
    )
    parser.add_argument("--num", type=int, default=8, help="pictures of each prompt or class (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other seeds, other pictures (default: %(default)s)")
    parser.add_argument("--guidance", type=float, metavar="SCALE", help="how strongly to follow (default: the model's)")
    parser.add_argument("--num-steps", type=int, metavar="N", help="steps of the sampler (default: the model's)")
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
    from zigma_pl.data.requested import RequestedData
    from zigma_pl.interop.folder import from_pretrained

    model = from_pretrained(options.model)
    model.seed = options.seed
    model.sampler = sampler_with_steps(model.sampler, options.num_steps)
    if options.guidance is not None:
        model.guidance = replace(model.guidance, scale=options.guidance)
    requests = requests_of(model.backbone, options)
    encoders = encoders_of(model.backbone, options)
    draw(model, RequestedData(model.backbone, requests, options.batch_size, **encoders), options)
    return 0


def sampler_with_steps(sampler: "Sampler", num_steps: int | None) -> "Sampler":
    """Return the sampler with another number of steps, or as it is for None.

    Raises: UserError for a number out of range, or a sampler that chooses its steps itself.
    """
    if num_steps is None:
        return sampler
    given = vars(sampler)
    if given["method"] == "dopri5":
        raise UserError("--num-steps: the model's sampler, dopri5, chooses its steps itself; leave the option out")
    return type(sampler)(**{**given, "num_steps": num_steps})


def requests_of(backbone: "Backbone", options: argparse.Namespace) -> list["Sample"]:
    """Return what to draw: `--num` samples of each prompt or class, one prompt after the other.

    Raises: UserError when they are not what the model is conditioned on, or a class is out of range.
    """
    from zigma_pl.data.samples import Sample

    last_class = (backbone.num_classes or 0) - 1
    takes = (backbone.caption_dim is not None, backbone.num_classes is not None)
    if takes != (bool(options.prompt), bool(options.class_id)):
        remedy = {
            (True, False): "is told what to draw in words: give --prompt, and no --class-id",
            (False, True): f"draws classes: give --class-id, 0 to {last_class}, and no --prompt",
            (True, True): "takes words and classes: give --prompt and --class-id",
            (False, False): "has no condition: leave --prompt and --class-id out",
        }[takes]
        raise UserError(f"the model in {options.model} {remedy}")
    for class_id in options.class_id:
        if not 0 <= class_id <= last_class:
            raise UserError(f"--class-id {class_id}: the classes of the model in {options.model} are 0 to {last_class}")
    captions: list[dict[str, Any]] = [{"caption": prompt} for prompt in options.prompt] or [{}]
    classes: list[dict[str, Any]] = [{"class_id": class_id} for class_id in options.class_id] or [{}]
    asked = [caption | class_id for caption in captions for class_id in classes]
    return [
        Sample(number * options.num + place, **request)
        for number, request in enumerate(asked)
        for place in range(options.num)
    ]


def encoders_of(backbone: "Backbone", options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the encoders: those given, before those that config.json keeps of the training run.

    Paths in config.json are relative to the working directory, as they were in the training run.

    Raises: UserError when neither tells one that is needed, or config.json alone names one on the hub and `--allow-hub`
        is not given.
    """
    from zigma_pl.interop.folder import CONFIG_NAME, read_config

    path = options.model / CONFIG_NAME
    data = read_config(options.model).data
    found = {} if data is None else data.model_dump(include=set(ENCODER_OPTIONS), exclude_none=True)
    if data is not None and data.class_path:  # a data set that does not have the option is of pixels
        found.setdefault("autoencoder", "identity")
    for name, belonging in (("autoencoder", "autoencoder_subfolder"), ("text_encoder", "text_encoder_path")):
        if getattr(options, name) is not None:
            found.pop(belonging, None)  # it was the other one's
    named = found.get("autoencoder", "identity")
    if options.autoencoder is None and named != "identity" and not options.allow_hub and not Path(named).is_dir():
        raise UserError(
            f"{path} names the autoencoder '{named}', which is no folder here: give its folder by --autoencoder, or "
            "--allow-hub to download it from the Hugging Face hub"
        )
    found |= {name: value for name, value in vars(options).items() if name in ENCODER_OPTIONS and value is not None}
    if "autoencoder" not in found:
        raise UserError(f"{path} does not tell how latents become pictures: give --autoencoder")
    if backbone.caption_dim is not None and "text_encoder" not in found:
        raise UserError(f"{path} does not tell which text encoder the model was trained with: give --text-encoder")
    return found


def draw(model: "GenerativeModule", data: "RequestedData", options: argparse.Namespace) -> None:
    """Draw what is asked for, with a progress bar, and print where the grid is."""
    import lightning as L
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from zigma_pl.benchmarks.machine import choose_device
    from zigma_pl.callbacks.sample_writer import SampleWriter
    from zigma_pl.callbacks.sampling_bar import SamplingBar
    from zigma_pl.cli import quieten

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
