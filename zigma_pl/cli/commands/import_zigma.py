"""`python -m zigma_pl import-zigma`: write an official ZigMa checkpoint as model.safetensors + config.json."""

import argparse

from zigma_pl.cli.commands.parser import Parser
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers

DEFAULT_SCAN_TYPE = "zigzagN8"


def build_parser() -> argparse.ArgumentParser:
    """Describe the options; everything else follows from the shapes of the tensors."""
    parser = Parser(
        prog="python -m zigma_pl import-zigma",
        description="Convert an official ZigMa checkpoint to a folder with model.safetensors and config.json. Its "
        "time and sign convention is folded into the weights.",
    )
    parser.add_argument("file", help="the checkpoint: .safetensors, or .pt/.pth/.ckpt (read with weights_only=True)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--scan_type",
        help=f"the official scan_type of the model, which the file does not contain (default: {DEFAULT_SCAN_TYPE}, as "
        "in the released configs)",
    )
    parser.add_argument("--img_dim", type=int, help="side of the latent grid; needed only without position embedding")
    parser.add_argument(
        "--weights", default="ema", metavar="NAME", help="which state dict of a .pt file to use (default: ema)"
    )
    return parser


def main(argv: list[str]) -> int:
    """Run the command; returns the exit status."""
    options = build_parser().parse_args(argv)
    from zigma_pl.interop.folder import save_pretrained
    from zigma_pl.interop.official import infer_config, load_zigma_checkpoint, read_state_dict
    from zigma_pl.interpolant import Objective
    from zigma_pl.models.backbones.base import LARGEST
    from zigma_pl.training.module import GenerativeModule

    check_whole_numbers("import-zigma", most=LARGEST["latent_height"], img_dim=options.img_dim)
    state_dict = read_state_dict(options.file, options.weights)
    config = infer_config(state_dict)
    if options.scan_type is not None:
        config["scan_type"] = options.scan_type
    elif "scan_type" not in config:
        config["scan_type"] = DEFAULT_SCAN_TYPE
        print(
            f"assuming scan_type {DEFAULT_SCAN_TYPE}, which the file does not contain: pass --scan_type for another one"
        )
    if options.img_dim is not None:
        config["img_dim"] = options.img_dim
    if "img_dim" not in config:
        raise UserError(f"{options.file} has no position embedding that would give the grid size: pass --img_dim")
    backbone = load_zigma_checkpoint(state_dict, config)
    # The released models were trained on the linear path to predict the velocity, which is also the default here.
    folder = save_pretrained(GenerativeModule(backbone, Objective()), options.out)
    print(f"{backbone.num_parameters() / 1e6:.1f} M parameters, {config}")
    print(f"wrote {folder}/model.safetensors and {folder}/config.json")
    print(f'load it with: zigma_pl.from_pretrained("{folder}")')
    return 0
