"""Measure training of experiments/table1_zigzag8.yaml as shipped: python tools/device/shipped.py RESULTS.json

Each contestant runs `python -m zigma_pl fit` on synthetic faces of the experiment's size. The autoencoder and the text
encoder have the architectures of Stable Diffusion's VAE and CLIP ViT-L/14, with random weights. All contestants but
"live" read a folder that `python -m zigma_pl prepare` has written. The results are

- images_per_second: median of the last values of train/images_per_second in the run's log,
- host_ms: time per step until the host has queued its work, starting with an idle device,
- replayed: whether the passes were replayed as CUDA graphs, and stores_more: whether more activations were stored,
- the log's train/data_wait, train/encoding and train/peak_memory_gib.

Needs diffusers and transformers beside the packages for training. To try the script without a GPU, use --device cpu,
which trains tiny models.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

from zigma_pl.core.machine import describe_machine
from zigma_pl.training.callbacks.activation_memory import ActivationMemory

EXPERIMENT = "experiments/table1_zigzag8.yaml"
LOGGED = ("train/images_per_second", "train/data_wait", "train/encoding", "train/peak_memory_gib")
NUM_REPORTS = 2  # of the log, whose medians are taken; the first includes the start
MAMBA2 = '{"class_path": "zigma_pl.mixers.Mamba2"}'
CONTESTANTS: dict[str, list[str]] = {
    "mamba1": [],
    "mamba2": [f"--model.backbone.init_args.mixers={MAMBA2}"],
    "dit": ["--model.compile_backbone=true"],
    "live": ["--data.init_args.cache=null"],
}
BACKBONES = {"dit": {"class_path": "zigma_pl.backbones.DiT", "init_args": {"size": "B"}}}  # instead of the experiment's
HOST_WINDOWS, HOST_STEPS = 4, 5  # windows at the end of the run, after the last report, and timed steps of each


@dataclass(frozen=True)
class Scale:
    """Sizes of data, encoders and runs.

    num_steps: steps that are logged; more follow, in which the host is timed.
    report_every: steps between reports.
    autoencoder, text_encoder: options of diffusers.AutoencoderKL and transformers.CLIPTextConfig.
    overrides: options of fit that the experiment leaves open or, on a CPU, that make it tiny.
    """

    image_size_px: int
    num_images: int
    num_steps: int
    report_every: int
    autoencoder: dict[str, Any]
    text_encoder: dict[str, int]
    overrides: tuple[str, ...] = ()


SCALES = {
    "cuda": Scale(
        256, 80, 150, 50,
        {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "cpu": Scale(
        16, 20, 6, 2,
        {"block_out_channels": (8, 8), "norm_num_groups": 4, "mid_block_add_attention": False},
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        (
            *("--model.backbone.init_args.width=32", "--model.backbone.init_args.depth=2"),
            *("--data.init_args.batch_size=4", "--data.init_args.num_workers=0"),
            *("--model.compile_backbone=false", "--trainer.accelerator=cpu"),
        ),
    ),
}  # fmt: skip


class HostTime(L.Callback):
    """Time the host in the steps after `after`, and write what the run chose to `path`, as JSON."""

    def __init__(self, path: str, after: int) -> None:
        self.path, self.after = path, after
        self.seconds: list[float] = []
        self.began = 0.0
        self.replayed = False

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Wait for the device at the start of a window, and take the time at its end."""
        step = (batch_idx - self.after) % (2 * HOST_STEPS) if batch_idx >= self.after else None
        if step == 0:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize()
            self.began = time.perf_counter()
        elif step == HOST_STEPS:
            self.seconds.append((time.perf_counter() - self.began) / HOST_STEPS)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record whether the step was replayed."""
        self.replayed = pl_module._graphed_training._recording is not None

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Write the results."""
        stores_more = [each.stores_more for each in trainer.callbacks if isinstance(each, ActivationMemory)]
        result = {
            "host_ms": 1e3 * statistics.median(self.seconds),
            "replayed": self.replayed,
            "stores_more": stores_more[0] if stores_more else None,
            "precision": str(trainer.precision),
            "num_parameters": pl_module.backbone.num_parameters(),
        }
        Path(self.path).write_text(json.dumps(result))


def save_encoders(folder: Path, scale: Scale) -> None:
    """Write an autoencoder and a text encoder with random weights; the words of its tokenizer are single letters."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    num_blocks = len(scale.autoencoder["block_out_channels"])
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        latent_channels=4,
        **scale.autoencoder,
    ).save_pretrained(folder / "autoencoder")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    last = len(words) - 1
    tokens = {"vocab_size": len(words), "bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last}
    text = folder / "text_encoder"
    CLIPTextModel(CLIPTextConfig(**tokens, **scale.text_encoder)).save_pretrained(text)
    (text / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (text / "merges.txt").write_text("#version: 0.2\n")


def data_options(folder: Path, scale: Scale) -> dict[str, str]:
    """Return the options of the data, which `prepare` and `fit` share."""
    return {
        "root": str(folder / "faces"),
        "synthetic": "true",
        "num_synthetic_items": str(scale.num_images),
        "image_size_px": str(scale.image_size_px),
        "autoencoder": str(folder / "autoencoder"),
        "text_encoder_path": str(folder / "text_encoder"),
        "text_encoder": "clip",
    }


def run(*arguments: str) -> None:
    """Run a command of this package, which can import this file."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-m", "zigma_pl", *arguments], check=True, env=os.environ | {"PYTHONPATH": path})


def config_of(name: str, folder: Path) -> Path:
    """Return the configuration file of a contestant: the experiment's, or a copy with another backbone."""
    if name not in BACKBONES:
        return Path(EXPERIMENT)
    config = yaml.safe_load(Path(EXPERIMENT).read_text())
    config["model"]["backbone"] = BACKBONES[name]
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def measure(name: str, folder: Path, scale: Scale) -> dict[str, Any]:
    """Train a contestant, and return the results."""
    logs, chosen = folder / name, folder / f"{name}.json"
    data = data_options(folder, scale) | {"cache": str(folder / "prepared")}
    run(
        "fit",
        *("--config", str(config_of(name, folder))),
        *(f"--data.init_args.{option}={value}" for option, value in data.items()),
        *CONTESTANTS[name],
        *scale.overrides,
        f"--trainer.max_steps={scale.num_steps + 2 * HOST_STEPS * HOST_WINDOWS}",
        f"--trainer.log_every_n_steps={scale.report_every}",
        *("--trainer.devices=1", "--trainer.enable_progress_bar=false"),
        *("--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={logs}"),
        *("--trainer.callbacks+=shipped.HostTime", f"--trainer.callbacks.path={chosen}"),
        f"--trainer.callbacks.after={scale.num_steps}",
    )
    (log,) = logs.rglob("metrics.csv")
    found = logged(log, scale.num_steps) | json.loads(chosen.read_text())
    shutil.rmtree(logs)  # its checkpoint takes gigabytes
    return found


def logged(log: Path, num_steps: int) -> dict[str, float]:
    """Return the medians of the last reports until step `num_steps` in a CSV log."""
    with log.open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) < num_steps]
    reports = {name: [float(row[name]) for row in rows if row.get(name)][-NUM_REPORTS:] for name in LOGGED}
    return {name.removeprefix("train/"): statistics.median(values) for name, values in reports.items() if values}


def main() -> None:
    """Prepare the data, train each contestant, print a line for each and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--device", choices=list(SCALES), default="cuda")
    parser.add_argument("--commit", help="commit to record if this is not a git checkout")
    options = parser.parse_args()
    scale = SCALES[options.device]
    results = {"machine": describe_machine(torch.device(options.device), options.commit), "contestants": {}}
    with tempfile.TemporaryDirectory() as folder:
        save_encoders(Path(folder), scale)
        given = [f"--{name}={value}" for name, value in data_options(Path(folder), scale).items()]
        run("prepare", "mm_celeba_hq", *given, f"--out={folder}/prepared", "--splits", "train", "validation")
        for name in options.contestants:
            results["contestants"][name] = found = measure(name, Path(folder), scale)
            print(name, json.dumps(found), flush=True)
            options.results.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
