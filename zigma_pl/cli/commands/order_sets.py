"""The sets of orders that `python -m zigma_pl orders` compares, as layers of a backbone."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from zigma_pl.core.class_paths import build_described
from zigma_pl.core.errors import UserError
from zigma_pl.core.shipped import shipped_file
from zigma_pl.scan.layers import Attention, Layer, Scan, layers_of_scan
from zigma_pl.scan.paths import SchemeName
from zigma_pl.scan.schedule import ScanConfig
from zigma_pl.scan.schemes import OrdersFile, Scheme
from zigma_pl.scan.shapes import SHAPES


def chosen_sets(options: argparse.Namespace, rates: Sequence[float]) -> dict[str, list[Layer]]:
    """Return the layers of each set of orders that the options name, by label.

    A scheme is combined with every number of orders; an experiment has its own layers.

    Raises:
        UserError: a scheme does not exist, or a file cannot be read.
    """
    templates = layer_templates(options, rates)
    sets: dict[str, list[Layer]] = {}
    for text in options.scans or _schemes_for(options.height, options.width):
        if text.endswith((".yaml", ".yml")):
            sets[Path(text).stem] = _layers_of_experiment(Path(text), options, rates)
            continue
        scheme = parse_scheme(text, options.allow_import)
        for num_orders in options.num_orders if options.indices is None else [len(options.indices)]:
            indices = None if options.indices is None else tuple(options.indices)
            scan = ScanConfig(scheme, num_orders, options.seed, indices=indices, both_ways=options.both_ways)
            ending = f"-{scan.num_orders}" if indices is None else f" {list(indices)}"
            label = text + ending + (", both ways" if scan.both_ways else "")
            if options.plan is not None:
                scan = replace(scan, video="factorized", plan=tuple(options.plan))
                label += " " + "".join(axis[0] for axis in options.plan)
            sets[label] = layers_of_scan(scan, templates, options.height, options.width, options.frames)
    return sets


def layer_templates(options: argparse.Namespace, rates: Sequence[float]) -> list[Layer]:
    """Return the layers of the options --depth and --attention_every, without paths."""
    attention = Attention(options.num_heads)
    is_attention = [
        options.attention_every is not None and index % options.attention_every == 0
        for index in range(1, options.depth + 1)
    ]
    return [attention if each else Scan(rates=tuple(rates)) for each in is_attention]


def parse_scheme(text: str, allow_imports: Sequence[str]) -> SchemeName | Scheme:
    """Return a scheme from its name, the path of a file of orders or the class path of a `Scheme` without options.

    Raises:
        UserError: the scheme is unknown, the file cannot be read or the class is not allowed.
    """
    for name in get_args(SchemeName):
        if text == name:
            return name
    if text.endswith((".npy", ".json")):
        return OrdersFile(text)
    if "." not in text:
        names = ", ".join(get_args(SchemeName))
        raise UserError(f"unknown scheme {text!r}: choose {names}, a .npy, .json or .yaml file, or a class path")
    return build_described({"class_path": text}, Scheme, allow_imports)


def _layers_of_experiment(file: Path, options: argparse.Namespace, rates: Sequence[float]) -> list[Layer]:
    """Return the layers of the backbone in the config of an experiment.

    Raises:
        UserError: the file cannot be read or has no backbone with scan orders.
    """
    from zigma_pl.evaluation.order_models import layers_of_backbone
    from zigma_pl.suite.runs.composed import compose, option
    from zigma_pl.suite.runs.experiment_files import ExperimentFile, overlay_of

    files = [file]
    if options.scale is not None:
        overlay = overlay_of(ExperimentFile(file), options.scale, shipped_file("configs/scale/smoke.yaml").parent)
        if overlay is None:
            raise UserError(f"orders --scale {options.scale}: no config of this scale belongs to {file}")
        files.append(overlay)
    backbone = option(compose(files), "model.backbone", {})
    try:
        sizes = (options.depth, options.height, options.width, options.frames)
        return layers_of_backbone(
            *(backbone["class_path"], backbone.get("init_args", {}), *sizes),
            rates=rates,
            allow_imports=options.allow_import,
        )
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: has no model.backbone: pass the config of an experiment") from error
    except UserError as error:
        raise UserError(f"{file}: {error}") from error


def _schemes_for(height: int, width: int) -> list[str]:
    """Return the names of the schemes that exist for a grid."""
    return [name for name in get_args(SchemeName) if name not in SHAPES or SHAPES[name].exists_for(height, width)]
