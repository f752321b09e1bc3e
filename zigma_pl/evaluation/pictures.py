"""The images of a record: a grid of the first samples, and an animated grid for clips."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from zigma_pl.core.clips import clip_suffix, save_clip, stills, tile_clips, to_clip
from zigma_pl.core.grid import save_png, tile, to_pil
from zigma_pl.evaluation.store import SampleStore

NUM_STILL_CLIPS = 8  # clips in the still image, one per row


def write_pictures(
    store: SampleStore, folder: Path, labels: Sequence[str], num_columns: int, frames_per_second: int
) -> dict[str, Any]:
    """Write grid.png of the first samples, as many as there are labels, for clips also an animated grid.

    Returns: their paths, and the labels of the first row if there are any.
    """
    num_pictures = len(labels)
    chunks = [store.read_first(index, num_pictures).pictures for index in store.chunk_indices(num_pictures)]
    pictures = torch.cat(chunks).movedim(-3, -1)
    grid = folder / "grid.png"
    captions = {"captions": list(labels[:num_columns])} if any(labels) else {}
    if pictures.ndim == 4:
        save_png(tile([to_pil(picture) for picture in pictures], num_columns, labels), grid)
        return {"grid": str(grid), "clips": [], **captions}
    clips = [to_clip(clip) for clip in pictures]
    save_png(stills(clips[:NUM_STILL_CLIPS], labels[:NUM_STILL_CLIPS]), grid)
    moving = folder / f"clips{clip_suffix()}"
    save_clip(tile_clips(clips, num_columns, labels), moving, frames_per_second)
    return {"grid": str(grid), "clips": [str(moving)], **captions}
