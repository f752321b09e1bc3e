"""The commands and the code that docs/extending.md prints."""

import re
import shlex
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = REPOSITORY / "examples"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", (REPOSITORY / "docs" / "extending.md").read_text(), re.M | re.S)
SESSIONS = [
    [shlex.split(line.removeprefix("python -m zigma_pl ")) for line in text.splitlines()]
    for language, text in BLOCKS
    if not language
]
TINY = [
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=2",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--checkpoint.every_n_train_steps=2",
    "--preview.num_samples=2",
    "--model.backbone.init_args.depth=4",
    "--data.init_args.batch_size=4",
    "--scorer.num_samples=16",
    "--scorer.kid_subset_size=8",
    "--scorer.kid_num_subsets=2",
    "--scorer.reference_folder=reference",
]
