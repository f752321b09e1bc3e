"""A small project as `ablations` leaves it: rows, records of two scales, log folders with curves, grids and clips."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from zigma_pl.core.clips import can_write_mp4, save_gif, save_mp4
from zigma_pl.core.grid import save_png, tile
from zigma_pl.evaluation.record import ResultRecord, ScoreValue, write_result

STEPS, BATCH_SIZE = 40, 16
BETTER = {"sweep": 1.0, "zigzag1": 0.9, "zigzag2": 0.8, "zigzag8": 0.6}

CAPTIONS = ["a <red> face", "a face & a hat", "a face", "two faces"]

REMARK = """A remark by <hand> & eye: **bold**.

| left | right |
| --- | --- |
| 0.1234 | `code` |
"""


def write_project(folder: Path, repository: Path) -> None:
    """Fill `folder`: table 1 with three of its four rows, zigzag-8 with two seeds, and clips for a row of table 4."""
    shutil.copytree(repository / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("README.md"))
    for row, seed in (("sweep", 0), ("zigzag1", 0), ("zigzag8", 0), ("zigzag8", 1)):
        write_run(folder, f"table1_{row}", seed, BETTER[row] * (1 + 0.05 * seed))
    write_run(folder, "table4_sst", 0, 1.0, clips=True)
    (folder / "results" / "bench").mkdir()
    (folder / "results" / "bench" / "scan.json").write_text('{"subject": "scan", "records": []}')
    (folder / "results" / "smoke" / "table1.md").write_text(REMARK)


def write_run(folder: Path, row: str, seed: int, loss: float, clips: bool = False) -> Path:
    """Write the log folder, the pictures and the record of one run; returns the record's path."""
    log = Path("logs") / "smoke" / row / f"version_{2 * seed + 1}"
    write_logs(folder, log, loss, seed)
    name = row if seed == 0 else f"{row}_seed{seed}"
    pictures = Path("results") / "smoke" / name
    write_grid(folder / pictures / "grid.png", seed)
    if clips:
        write_clip(folder / pictures / "clips.mp4")
    record = make_record(name, seed, loss, pictures, clips, log)
    return write_result(record, folder / "results" / "smoke")


def make_record(row: str, seed: int, loss: float, pictures: Path, clips: bool, log: Path) -> ResultRecord:
    by_time = [loss * (0.05 + 0.1 * math.exp(-t)) for t in range(10)]
    scores = {"validation_loss": ScoreValue(value=loss * 0.1, by_time=by_time)}
    scores |= {"fid_lite": ScoreValue(value=loss * 800, comparable=False)}
    scores |= {"kid_lite": ScoreValue(value=loss * 0.2, comparable=False, std=0.01)}
    scores |= {"recall_lite": ScoreValue(value=1 - loss, comparable=False)}
    protocol = {
        "data": {"dataset": "UCF101" if clips else "MMCelebAHQ", "standin": True},
        "sampler": {"class": "ODESampler", "method": "heun", "num_steps": 10},
        "num_network_calls": 20,
        "num_fake": 64,
        "num_real": 20,
        "image_size_px": 32,
        "seed": seed,
        "weights": "average",
    }
    training = {"steps": STEPS, "samples_seen": STEPS * BATCH_SIZE, "log_folder": str(log), "seconds": None}
    clip_paths = [str(pictures / "clips.mp4" if can_write_mp4() else pictures / "clips.gif")] if clips else []
    return ResultRecord(
        row=row, scale="smoke", scores=scores, protocol=protocol, training=training,
        machine={"device": "a processor", "versions": {"torch": "2.13.0"}, "commit": None, "date": "2026-01-02"},
        pictures={"grid": str(pictures / "grid.png"), "clips": clip_paths, "captions": CAPTIONS},
    )  # fmt: skip


def write_logs(folder: Path, log: Path, loss: float, seed: int) -> None:
    """Write a run that was interrupted half-way, and the one that went on from its checkpoint."""
    earlier = log.with_name(f"version_{2 * seed}")
    write_events(folder / earlier, loss, range(0, STEPS * 3 // 4))
    write_events(folder / log, loss, range(STEPS // 2, STEPS))
    checkpoint = earlier / "checkpoints" / "last.ckpt"
    (folder / log / "config.yaml").write_text(json.dumps({"ckpt_path": str(checkpoint)}))
    write_grid(folder / log / "previews" / "step_00000020.png", seed)
    write_grid(folder / log / "previews" / "step_00000040.png", seed)


def write_events(folder: Path, loss: float, steps: range) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        for step in steps:
            writer.add_scalar("train/loss", loss * (0.1 + math.exp(-step / 10)), step)
            if step % 10 == 9:
                writer.add_scalar("validation/loss", loss * (0.1 + math.exp(-step / 10)), step)


def write_grid(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    save_png(tile([Image.fromarray(sample) for sample in pixels], len(CAPTIONS), min_side_px=32), path)


def write_clip(path: Path) -> None:
    """Write a moving bar as MP4, where it can be written, and as GIF."""
    frames = []
    for place in range(8):
        pixels = np.zeros((48, 96, 3), dtype=np.uint8)
        pixels[:, place * 12 : place * 12 + 12] = (240, 160, 40)
        frames.append(Image.fromarray(pixels))
    save_gif(frames, path.with_suffix(".gif"), 4)
    if can_write_mp4():
        save_mp4(frames, path, 4)
