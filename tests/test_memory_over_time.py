"""A long run does not grow: memory over 2,000 steps with logging, checkpoints, validation and previews."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zigma_pl.training.callbacks.progress_file import read_progress

STEPS = 2000
# From the first 1,000 steps to the last, of about 500: 8 KiB a step. Halves are compared by their highest window, since
# the allocator now and then gives some 13 MiB back to the system and takes them again.
MOST_GROWTH_MIB = 8.0
OPTIONS = [
    "--model.backbone.init_args.width=16",
    "--model.backbone.init_args.depth=2",
    "--model.sampler.init_args.num_steps=2",
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=100",
    "--trainer.log_every_n_steps=10",
    "--trainer.gradient_clip_val=1",
    "--checkpoint.every_n_train_steps=50",
    "--data.init_args.batch_size=8",
    "--data.init_args.num_workers=1",
    "--trainer.callbacks+=zigma_pl.training.callbacks.progress_file.ProgressFile",
    "--trainer.callbacks.path=progress.json",
    "--trainer.callbacks.seconds_between=0.05",
]


def resident_mib(pid):
    """The memory of a process that is in RAM now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat(repository, in_tmp):
    command = [sys.executable, "-m", "zigma_pl", "fit", "--config", str(repository / "experiments" / "digits.yaml")]
    run = subprocess.Popen([*command, *OPTIONS], stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    memory = []  # (step, MiB)
    try:
        while run.poll() is None:
            time.sleep(0.05)
            progress = read_progress(in_tmp / "progress.json")
            if progress is not None and run.poll() is None:
                memory.append((progress.done, resident_mib(run.pid)))
    finally:
        run.kill()
    assert run.returncode == 0
    windows = [[mib for step, mib in memory if first <= step < first + 200] for first in range(0, STEPS, 200)]
    medians = [statistics.median(window) for window in windows]
    print(" ".join(f"{mib:.1f}" for mib in medians), "MiB, medians of 200 steps each")
    half = len(medians) // 2
    assert max(medians[half:]) - max(medians[:half]) < MOST_GROWTH_MIB
