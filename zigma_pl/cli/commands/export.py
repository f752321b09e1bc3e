"""`python -m zigma_pl export`: turn a training checkpoint into model.safetensors + config.json."""

import argparse
from pathlib import Path
from typing import Any

from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.parser import Parser

# What sampling from the model may need to know of the data: how latents become pictures, what a condition is.
DATA_OPTIONS = (
    "autoencoder",
    "autoencoder_subfolder",
    "image_size_px",
    "text_encoder",
    "text_encoder_path",
    "max_caption_tokens",
)


def build_parser() -> argparse.ArgumentParser:
    """Describe the options."""
    parser = Parser(
        prog="python -m zigma_pl export",
        description="Write the model of a training checkpoint to a folder: model.safetensors and config.json (backbone,"
        " objective, sampler, guidance, step). Needs no data set and no configuration.",
    )
    parser.add_argument("--ckpt_path", required=True, type=Path, help="the .ckpt file")
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument(
        "--weights",
        choices=("average", "raw"),
        default="average",
        help="the moving average of the weights, or those that training goes on from (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="in which matrices are stored; float16 makes half of the file (default: %(default)s)",
    )
    add_allow_import(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    import torch

    from zigma_pl.interop.folder import save_pretrained
    from zigma_pl.interop.training_checkpoint import model_of
    from zigma_pl.training.checkpoints.io import read_checkpoint

    checkpoint = read_checkpoint(options.ckpt_path)
    model = model_of(checkpoint, options.weights, options.ckpt_path, options.allow_import)
    step = int(checkpoint["global_step"])
    about: dict[str, Any] = {"training": {"step": step, "weights": options.weights}}
    if "data" not in model.trained_on and (data := data_options(options.ckpt_path)):
        about["data"] = data  # of a checkpoint from before they kept it
    matrix_dtype = getattr(torch, options.dtype)
    folder = save_pretrained(model, options.out, about, matrix_dtype=matrix_dtype)
    print(f"{type(model.backbone).__name__}, {model.backbone.num_parameters() / 1e6:.1f} M parameters, step {step}")
    print(f"wrote {folder}/model.safetensors and {folder}/config.json, the {options.weights} weights")
    print(f'load it with: zigma_pl.from_pretrained("{folder}")')
    return 0


def data_options(ckpt_path: Path) -> dict[str, Any]:
    """Return the run's data module and encoders, from the config.yaml that it left beside its checkpoints, if any."""
    import yaml

    from zigma_pl.core.errors import UserError
    from zigma_pl.training.checkpoints.newest import log_folder_of

    log_folder = log_folder_of(ckpt_path)
    if log_folder is None or not (log_folder / "config.yaml").is_file():
        return {}
    path = log_folder / "config.yaml"
    try:
        data = yaml.safe_load(path.read_text())["data"]
        given = {name: data["init_args"].get(name) for name in DATA_OPTIONS}
        return {"class_path": data["class_path"], **{name: value for name, value in given.items() if value}}
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not what `fit` wrote ({' '.join(str(error).split())[:200]}): move it away to export without"
        ) from error
