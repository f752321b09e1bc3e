"""`python -m zigma_pl sample`: generate images from an exported model, for prompts or classes."""

import argparse
import logging
from typing import TYPE_CHECKING

from zigma_pl.cli.commands.sample_options import parse
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import LARGEST_SEED, check_whole_numbers

if TYPE_CHECKING:
    from zigma_pl.data.requested import RequestedData
    from zigma_pl.training.module import GenerativeModule

MAX_SAMPLES = 1_000_000  # of each prompt or class
MAX_IN_GRID = 400  # images
MAX_COLUMNS = 8


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options, of_sampler = parse(argv)
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
    from zigma_pl.interop.generation import ENCODER_OPTIONS, encoders_of, model_and_data, requests_of
    from zigma_pl.interop.text import condition_from_text

    model = from_pretrained(options.model, allow_imports=options.allow_import)
    if options.weak_model is not None:
        model.guide_with(from_pretrained(options.weak_model, allow_imports=options.allow_import))
    set_sampling(model, options, of_sampler)
    requests = requests_of(model, options.prompt, options.classes, options.num_samples)
    given = {name: getattr(options, name, None) for name in ENCODER_OPTIONS}
    encoders = encoders_of(model, given, allow_hub=options.allow_hub, allow_imports=options.allow_import)
    conditions = dict(condition_from_text(text, model.backbone) for text in options.conditions)
    given = {**encoders, "conditions": conditions, "image": options.image}
    height_and_width = None if size is None else (size[0], size[-1])
    write_samples(*model_and_data(model, requests, given, options.batch_size, height_and_width), options)
    return 0


def set_sampling(model: "GenerativeModule", options: argparse.Namespace, of_sampler: dict[str, str]) -> None:
    """Set seed, sampler, times and guidance of the model.

    Raises: UserError for an unknown or invalid option.
    """
    from zigma_pl.interop.sampling import SamplingOptions
    from zigma_pl.interop.text import guidance_from_options, sampler_from_text

    if options.num_steps is not None and "num_steps" in of_sampler:
        raise UserError("--num_steps and --sampler.num_steps are the same option: omit one of them")
    sampler = sampler_from_text(model.sampler, options.sampler, of_sampler, options.allow_import)
    given = (options.guidance, options.guidance_interval, options.guidance_drop)
    guidance = guidance_from_options(model.guidance, *given)
    sampling = SamplingOptions(options.seed, sampler, options.num_steps, guidance, options.t_start, options.t_end)
    sampling.check_image(options.image is not None)
    sampling.set_on(model)


def write_samples(model: "GenerativeModule", data: "RequestedData", options: argparse.Namespace) -> None:
    """Generate and write the images, with a progress bar, and print the path of the grid."""
    import lightning as L
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from zigma_pl.cli.parsing import quieten
    from zigma_pl.core.machine import choose_device
    from zigma_pl.training.callbacks.sample_writer import SampleWriter
    from zigma_pl.training.callbacks.sampling_bar import SamplingBar
    from zigma_pl.training.trainer_options import default_precision

    quieten()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no messages about unused devices
    num_samples, per_request = data.num_predict_samples, options.num_samples
    writer = SampleWriter(
        options.out or f"samples/{options.model.resolve().name}",
        num_grid=min(num_samples, MAX_IN_GRID),
        # One row for each prompt or class, if there are several.
        num_columns=per_request if num_samples > per_request else min(per_request, MAX_COLUMNS),
    )
    accelerator = choose_device(options.device).type
    trainer = L.Trainer(
        accelerator=accelerator,
        precision=options.precision or default_precision({"accelerator": accelerator}),
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[SamplingBar(num_samples), writer],
        plugins=[LightningEnvironment()],  # one process, also if a scheduler has started several
    )
    trainer.predict(model, datamodule=data, return_predictions=False)
