"""Dump a training step to files (its batches, the weights, and statistics of each layer's output), and replay it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from zigma_pl.core.batch import Batch, Condition
from zigma_pl.models.layers.replaceable import Watcher
from zigma_pl.training.checkpoints.run_folder import run_folder
from zigma_pl.training.module import GenerativeModule
from zigma_pl.training.trainer_options import AUTOCAST

WEIGHTS_NAME = "weights.ckpt"

README = """\
A training step whose loss or gradient was not finite.
weights.ckpt   the weights of this step (it was skipped, so they did not change), and the model's options
rank_N.pt      the batches of process N
rank_N.json    step, seed, sample ids, losses; minimum, maximum and fraction of non-finite values of each layer's
               output, in the order of the calls; parameters with non-finite gradients

To run the step of process 0 again:

python -c "from zigma_pl.training.callbacks.step_dump import replay; print(replay('.')['first_non_finite_output'])"
"""


def dump_step(trainer: L.Trainer, module: GenerativeModule, batches: Sequence[Batch]) -> tuple[Path, str]:
    """Write the last, skipped step, which used these batches, into a subfolder of the log folder.

    Must be called by all processes. Each runs its own batches again, which overwrites the gradients of the module.

    Returns: the folder, and a text that names the first layer with non-finite output.
    """
    folder = run_folder(trainer) / f"non_finite_step_{trainer.global_step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    rank = trainer.global_rank
    trainer.save_checkpoint(folder / WEIGHTS_NAME, weights_only=True)
    if trainer.is_global_zero:
        (folder / "README.txt").write_text(README)
    run: dict[str, Any] = {"seed": module.seed, "precision": str(trainer.precision)}
    torch.save({"batches": [_plain(batch) for batch in batches], **run}, folder / f"rank_{rank}.pt")
    report = {"step": trainer.global_step, "rank": rank, **run, **examine(module, batches, run["precision"])}
    (folder / f"rank_{rank}.json").write_text(json.dumps(report, indent=1) + "\n")
    trainer.strategy.barrier("step dumped")
    return folder, _suspect(folder)


def _suspect(folder: Path) -> str:
    for path in sorted(folder.glob("rank_*.json")):
        report = json.loads(path.read_text())
        if report["first_non_finite_output"]:
            return f" (process {report['rank']}, first in {report['first_non_finite_output']})"
    return " (in no layer's output)"


def examine(module: GenerativeModule, batches: Sequence[Batch], precision: str) -> dict[str, Any]:
    """Run the forward and backward passes of the batches, and return statistics of each layer's output.

    Args:
        module: module in training mode. Its gradients are overwritten, under DDP with those of this process only.
        batches: micro-batches of one optimiser step, on the module's device.
        precision: the trainer's precision.

    Returns: plain values. `outputs` starts with the data; each entry has the layer's name, the smallest and largest
        finite value, and the fraction of non-finite values.
    """
    outputs: list[dict[str, Any]] = []
    losses = []
    module.zero_grad()
    with watched_outputs(module.backbone, outputs):
        for batch in batches:
            outputs += [_describe(f"data.{name}", tensor) for name, tensor in _real_tensors(batch).items()]
            dtype = AUTOCAST.get(precision)
            with torch.autocast(module.device.type, dtype) if dtype is not None else nullcontext():
                loss = module.training_loss(batch)
            losses.append(loss.item())
            loss.backward()
    return {
        "sample_ids": [batch.sample_ids.tolist() for batch in batches],
        "losses": losses,
        "first_non_finite_output": next((row["layer"] for row in outputs if row["share_not_finite"]), None),
        "non_finite_gradients": [
            name
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ],
        "outputs": outputs,
    }


@contextmanager
def watched_outputs(network: nn.Module, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Add a row to `rows` for each tensor that a submodule of the network returns while the context is active.

    The kernels are the same as in training, so layers that a kernel computes together with others have no row.
    """

    def note(name: str, output: Any) -> None:
        tensors = output if isinstance(output, tuple | list) else [output]
        rows.extend(_describe(name, tensor) for tensor in tensors if isinstance(tensor, Tensor))

    with ExitStack() as hooks:
        for name, part in network.named_modules():
            hooks.callback(part.register_forward_hook(Watcher(partial(note, name or "backbone"))).remove)
        # Compiled regions do not call the hooks of their submodules.
        hooks.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _real_tensors(batch: Batch) -> dict[str, Tensor]:
    tensors: dict[str, Any] = {name: condition.values for name, condition in batch.conditions.items()}
    tensors["latents"] = batch.latents
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and tensor.is_floating_point()}


def _plain(batch: Batch) -> dict[str, Any]:
    """Return a batch as a dictionary that `torch.load(weights_only=True)` can read."""
    conditions = {name: condition._asdict() for name, condition in batch.conditions.items()}
    return {**batch._asdict(), "conditions": conditions}


def _batch(fields: dict[str, Any], device: torch.device | str) -> Batch:
    """Rebuild a batch from the dictionary of `_plain`, on the device."""

    def moved(tensors: dict[str, Tensor | None]) -> dict[str, Any]:
        return {name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()}

    conditions = {name: Condition(**moved(tensors)) for name, tensors in fields["conditions"].items()}
    tensors = moved({name: fields[name] for name in ("latents", "images")})
    return Batch(sample_ids=fields["sample_ids"], conditions=conditions, **tensors)


def _describe(layer: str, tensor: Tensor) -> dict[str, Any]:
    values = tensor.detach().float()
    finite = values[torch.isfinite(values)]
    least, largest = (finite.min().item(), finite.max().item()) if finite.numel() else (None, None)
    return {
        "layer": layer,
        "min": least,
        "max": largest,
        "share_not_finite": 1 - finite.numel() / max(values.numel(), 1),
    }


def replay(
    folder: str | Path, rank: int = 0, module: GenerativeModule | None = None, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Run a dumped step again; returns the result of `examine`.

    Args:
        folder: folder of the dump.
        rank: process whose batches are used.
        module: module to load the weights into; None builds it from the dump, which works for command-line runs.
        device: device to run on. A value that overflows in float16 on a GPU may not overflow on a CPU.
    """
    folder = Path(folder)
    step = torch.load(folder / f"rank_{rank}.pt", map_location="cpu", weights_only=True)
    if module is None:
        module = GenerativeModule.load_from_checkpoint(folder / WEIGHTS_NAME, map_location="cpu", weights_only=True)
    else:
        checkpoint = torch.load(folder / WEIGHTS_NAME, map_location="cpu", weights_only=True)
        module.load_state_dict(checkpoint["state_dict"])
    module.seed = step["seed"]
    module.train().to(device)
    return examine(module, [_batch(fields, device) for fields in step["batches"]], step["precision"])
