"""`python -m zigma_pl export`: write a training checkpoint as model.safetensors + config.json."""

import argparse
from pathlib import Path
from typing import Any

from zigma_pl.cli.commands.imports import add_allow_import
from zigma_pl.cli.commands.parser import Parser

# Options of the data module that sampling may need: how latents become images, and how captions are encoded.
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
        description="Write the model of a training checkpoint to a folder: model.safetensors and config.json "
        "(backbone, objective, sampler, guidance, step). The data set and the config are not needed.",
    )
    parser.add_argument("--ckpt_path", required=True, type=Path, metavar="CKPT", help="the checkpoint")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--weights",
        choices=("average", "raw"),
        default="average",
        help="the moving average of the weights, or the raw weights (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="dtype of the stored matrices; float16 halves the file (default: %(default)s)",
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
        about["data"] = data  # an old checkpoint, which does not hold it
    matrix_dtype = getattr(torch, options.dtype)
    folder = save_pretrained(model, options.out, about, matrix_dtype=matrix_dtype)
    print(f"{type(model.backbone).__name__}, {model.backbone.num_parameters() / 1e6:.1f} M parameters, step {step}")
    print(f"wrote {folder}/model.safetensors and {folder}/config.json, the {options.weights} weights")
    allowed = f", allow_imports={tuple(options.allow_import)}" if options.allow_import else ""
    print(f'load it with: zigma_pl.from_pretrained("{folder}"{allowed})')
    return 0


def data_options(ckpt_path: Path) -> dict[str, Any]:
    """Return data module and encoders of the run from the config.yaml in its log folder; {} without that file."""
    import yaml

    from zigma_pl.core.errors import UserError
    from zigma_pl.core.records import read_content
    from zigma_pl.training.checkpoints.content import count_values
    from zigma_pl.training.checkpoints.newest import log_folder_of

    log_folder = log_folder_of(ckpt_path)
    if log_folder is None or not (log_folder / "config.yaml").is_file():
        return {}
    path = log_folder / "config.yaml"
    try:
        data = yaml.safe_load(read_content(path, "remove it to export without it"))["data"]
        given = {name: data["init_args"].get(name) for name in DATA_OPTIONS}
        count_values(given)  # aliases can stand for more values than fit into memory
        return {"class_path": data["class_path"], **{name: value for name, value in given.items() if value}}
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not a config of `fit` ({' '.join(str(error).split())[:200]}): remove it to export without it"
        ) from error
