"""Loss traces of every experiment at a tiny size, from stored weights.

An experiment is built from its YAML, the smoke overlay and the options below, and trained for a few steps on random
latents and conditions. `traces.json` holds its losses and gradient norms, and which file of `weights/` it starts from;
experiments whose networks have the same parameters share one. Tables 8 and 11 are left out: their experiments differ in
what the options below replace, the optimiser and the size. Weights that a new network has at zero, such as gates,
are random there, so that the loss depends on every part.

`python tests/golden/golden_traces.py` stores the traces of new experiments.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zigma_pl.core.batch import Batch, Condition
from zigma_pl.data.base import ImageDataModule
from zigma_pl.data.from_options import make_data_module
from zigma_pl.data.specification import Specification, fill_from
from zigma_pl.models.backbones.migration import migrated_weights
from zigma_pl.suite.runs.composed import compose
from zigma_pl.suite.runs.experiment_files import ExperimentFile, find_experiments, overlay_of
from zigma_pl.training.module import GenerativeModule

GOLDEN = Path(__file__).parent
REPOSITORY = GOLDEN.parents[1]
TRACES = GOLDEN / "traces.json"
NUM_STEPS = 3
BATCH_SIZE = 2
NUM_CAPTION_TOKENS = 6
MODEL = {
    "condition_dropout": 0.25,
    "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.01}},
    "lr_schedule": {"class_path": "zigma_pl.optimizers.Constant", "init_args": {"warmup_steps": 2}},
}
BACKBONE = {"width": 16, "depth": 8}
CROSS_ATTENTION = {"attention_heads": 2, "attention_head_dim": 8}

EXPERIMENTS = [e for e in find_experiments(REPOSITORY / "experiments") if e.prefix not in ("table8", "table11")]


def options_of(experiment: ExperimentFile, **backbone: Any) -> dict[str, Any]:
    """Return the options of an experiment, `model` and `data`, from its YAML and the options above.

    Args:
        experiment: the experiment.
        backbone: more options of the backbone.
    """
    overlay = overlay_of(experiment, "smoke", REPOSITORY / "configs" / "scale")
    assert overlay is not None
    config = compose([experiment.path, overlay])
    config["model"]["backbone"]["init_args"] |= BACKBONE | backbone
    config["data"].get("init_args", {}).pop("batch_size", None)  # batches have BATCH_SIZE
    return {"model": config["model"] | MODEL, "data": config["data"]}


def build(options: dict[str, Any], parser: jsonargparse.ArgumentParser) -> tuple[GenerativeModule, ImageDataModule]:
    """Return the module and the data module for options from `options_of`.

    Args:
        options: `model` and `data`.
        parser: from `make_parser`.
    """
    parsed = parser.parse_object(options)
    data, of_backbone = make_data_module(parsed.data), parsed.model.backbone.init_args
    fill_from(Specification.of(data)._asdict(), of_backbone)
    if data.caption_dim is not None:
        for name, value in CROSS_ATTENTION.items():
            of_backbone[name] = value
    return parser.instantiate(parsed).model, data


def make_parser() -> jsonargparse.ArgumentParser:
    """Return a parser of a module and its data, as the command line has it."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(GenerativeModule, "model")
    parser.add_subclass_arguments(ImageDataModule, "data")
    return parser


def batch(step: int, data: ImageDataModule) -> Batch:
    """Return random latents and conditions of the shapes that the data module gives."""
    generator = torch.Generator().manual_seed(step)
    latents = torch.randn(BATCH_SIZE, *data.latent_shape, generator=generator)
    sample_ids = torch.arange(BATCH_SIZE) + step * BATCH_SIZE
    if data.caption_dim is not None:
        features = torch.randn(BATCH_SIZE, NUM_CAPTION_TOKENS, data.caption_dim, generator=generator)
        lengths = torch.randint(1, NUM_CAPTION_TOKENS + 1, (BATCH_SIZE, 1), generator=generator)
        caption = Condition(features, torch.arange(NUM_CAPTION_TOKENS) < lengths)
        return Batch(latents, sample_ids, {"caption": caption})
    if data.num_classes is not None:
        classes = Condition(torch.randint(data.num_classes, (BATCH_SIZE,), generator=generator))
        return Batch(latents, sample_ids, {"class": classes})
    return Batch(latents, sample_ids)


def train(module: GenerativeModule, data: ImageDataModule) -> dict[str, list[float]]:
    """Train for a few steps; return the loss and the norm of the gradient of each."""
    module.train()
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    trace: dict[str, list[float]] = {"loss": [], "gradient_norm": []}
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = module.training_loss(batch(step, data))
        loss.backward()
        trace["loss"].append(loss.item())
        trace["gradient_norm"].append(nn.utils.clip_grad_norm_(module.parameters(), 1.0).item())
        optimizer.step()
        scheduler.step()
    return trace


def random_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a new network, in float16, with random numbers where all are zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.25, generator=generator)
    return {name: value.half().contiguous() for name, value in backbone.state_dict().items()}


def read_weights(name: str) -> dict[str, Tensor]:
    """Return stored weights as float32, under today's names."""
    weights = {name: value.float() for name, value in load_file(GOLDEN / "weights" / name).items()}
    return migrated_weights(weights)


def main() -> None:
    """Store weights and trace of every experiment that has none yet."""
    traces = json.loads(TRACES.read_text()) if TRACES.is_file() else {}
    parser = make_parser()
    for experiment in EXPERIMENTS:
        if experiment.name in traces:
            continue
        torch.manual_seed(0)
        module, data = build(options_of(experiment), parser)
        shapes = str({name: tuple(value.shape) for name, value in module.backbone.state_dict().items()})
        name = f"{type(module.backbone).__name__.lower()}_{hashlib.sha256(shapes.encode()).hexdigest()[:8]}.safetensors"
        if not (GOLDEN / "weights" / name).is_file():
            save_file(random_weights(module.backbone), GOLDEN / "weights" / name)
        module.backbone.load_state_dict(read_weights(name))
        traces[experiment.name] = {"weights": name, **train(module, data)}
    lines = [f"{json.dumps(name)}: {json.dumps(trace)}" for name, trace in traces.items()]
    TRACES.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
