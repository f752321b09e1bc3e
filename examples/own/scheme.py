"""Spirals between the corners and the middle of the grid."""

import numpy as np

from zigma_pl.scan import Scheme


class Spiral(Scheme):
    """Orders 0 to 3 start at one corner each and run inwards; orders 4 to 7 are their reverses."""

    num_orders = 8

    def order(self, index: int, height: int, width: int, num_frames: int | None = None) -> np.ndarray:
        """Return the raster index of the token visited at each step; clips are visited frame by frame."""
        grid = np.rot90(np.arange(height * width).reshape(height, width), index % 4)
        sides = []
        while grid.size:
            sides.append(grid[0])
            grid = np.rot90(grid[1:])
        order = np.concatenate(sides)[:: -1 if index >= 4 else 1]
        return np.concatenate([order + frame * height * width for frame in range(num_frames or 1)])
