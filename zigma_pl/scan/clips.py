"""Visit orders over all tokens of a clip: the orders of its frames, connected in time.

Connected zigzags are the 3D zigzag of ZigMa (arXiv:2403.13802).

The token of frame f with raster index p in the frame's grid has index f * L + p, L = height * width.
"""

import numpy as np

from zigma_pl.core.errors import UserError
from zigma_pl.scan.paths import SchemeName, visit_order


def clip_order(
    name: SchemeName, num_frames: int, height: int, width: int, *, index: int = 0, seed: int = 0
) -> np.ndarray:
    """Return one visit order of all tokens of a clip, (num_frames * height * width,) int32.

    The paper does not specify the temporal direction of its paths. Here the orders whose index has an even number of
    ones in binary (0, 3, 5, 6) run from the first frame to the last, the others (1, 2, 4, 7) from the last to the
    first. The eight zigzags thus start in the eight corners of the clip, and with 2, 4 or 8 of them every token is
    reached from both directions in time.

    Args:
        name: zigzag or hilbert: a path whose steps lead to a neighbour in space or, between frames, in time; every
            second frame is traversed backwards and so starts where the previous frame ended. sweep: every frame starts
            at the same corner. random: a random permutation of all tokens of the clip. The others reverse every
            second frame, as zigzag does.
        num_frames: F, at least 1; with one frame the orders are those of an image.
        height, width: size of a frame's token grid.
        index, seed: see `zigma_pl.scan.paths.visit_order`.

    Raises:
        UserError: a size, index or seed is out of range.
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


def time_first_order(
    name: SchemeName, num_frames: int, height: int, width: int, *, index: int = 0, seed: int = 0
) -> np.ndarray:
    """Return a visit order of all tokens of a clip that visits all frames at a position before the next position.

    The positions are those of an order of an image. The frames at a position run in the direction opposite to those at
    the position before, or all in one direction for sweep; the first direction is that of `clip_order`.

    Args:
        name: scheme of the order of the positions.
        num_frames: F, at least 1; with one frame the orders are those of an image.
        height, width: size of a frame's token grid.
        index, seed: see `zigma_pl.scan.paths.visit_order`.

    Returns: (num_frames * height * width,) int32.

    Raises:
        UserError: a size, index or seed is out of range.
    """
    if num_frames < 1:
        raise UserError(f"a clip needs at least 1 frame, not {num_frames}")
    positions = visit_order(name, height, width, index=index, seed=seed)
    frames = np.tile(np.arange(num_frames, dtype=np.int32), (len(positions), 1))
    if name != "sweep":
        frames[1::2] = frames[1::2, ::-1]
    if index.bit_count() % 2:
        frames = frames[:, ::-1]
    return (frames * len(positions) + positions[:, None]).astype(np.int32).reshape(-1)
