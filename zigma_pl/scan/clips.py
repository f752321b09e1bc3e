"""Visit orders over all tokens of a clip: the orders of its frames, joined through time.

The zigzags joined so are the 3D zigzag of ZigMa (arXiv:2403.13802).

Token p of frame f, p a raster index of the frame's grid, has index f * L + p, L = height * width.
"""

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.scan.paths import SchemeName, visit_order


def clip_order(
    name: SchemeName, num_frames: int, height: int, width: int, *, index: int = 0, seed: int = 0
) -> np.ndarray:
    """Return one visit order of all tokens of a clip, (num_frames * height * width,) int32.

    The paper leaves open in which direction its paths take the frames. Here the orders whose index has an even number
    of ones in binary (0, 3, 5, 6) go from the first frame to the last, the others (1, 2, 4, 7) from the last to the
    first: so the eight zigzags begin in the eight corners of the clip, and 2, 4 or 8 of them reach every token from
    both sides in time.

    Args:
        name: zigzag or hilbert: one path, each step of which leads to a neighbour in space or, between frames, in time;
            every second frame is walked backwards and so begins where the one before it ended. sweep: each frame is
            begun at the same corner. random: a random permutation of all tokens of the clip.
        num_frames: F, at least 1; one frame has the orders of a picture.
        height, width: size of a frame's token grid.
        index, seed: as of `zigma_pl.scan.paths.visit_order`.

    Raises:
        UserError: a size, index or seed out of range.
    """
    if num_frames < 1:
        raise UserError(f"a clip needs at least 1 frame, not {num_frames}")
    if name == "random":
        return visit_order(name, num_frames * height, width, index=index, seed=seed)
    steps = np.tile(visit_order(name, height, width, index=index, seed=seed), (num_frames, 1))
    if name != "sweep":
        steps[1::2] = steps[1::2, ::-1]
    frames = np.arange(num_frames, dtype=np.int32)
    if index.bit_count() % 2:
        frames = frames[::-1]
    return (frames[:, None] * steps.shape[1] + steps).astype(np.int32).reshape(-1)
