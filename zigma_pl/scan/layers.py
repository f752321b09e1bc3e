"""The layers of a backbone as the prediction of docs/orders.md describes them: scans along paths, and attention."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zigma_pl.scan.schedule import Axis, ScanConfig

# Quantiles of the decay rates of models/portraits, per step: `prediction.decay_rates("models/portraits")`.
REFERENCE_RATES = (0.01138, 0.04064, 0.12477, 0.43564)
# The same quantiles of dt * A for Mamba-2 at initialisation: dt is log-uniform in [0.001, 0.1], A uniform in [1, 16].
MAMBA2_RATES = (0.01213, 0.03982, 0.12617, 0.45638)
NUM_TAPS = 3  # tokens before the current one that the convolution of Mamba reads


class Path(NamedTuple):
    """A scan of all tokens of an image or a clip.

    order: (L,), raster index of the token at each step.
    length: steps of one sequence; the scan starts again after each. A divisor of L.
    """

    order: np.ndarray
    length: int


class Scan(NamedTuple):
    """A layer that scans.

    paths: one path, or k of them for a layer with k parallel directions.
    rates: decay rates of its memory, per step.
    num_taps: tokens before the current one that its convolution reads.
    """

    paths: tuple[Path, ...] = ()
    rates: tuple[float, ...] = REFERENCE_RATES
    num_taps: int = NUM_TAPS


class Attention(NamedTuple):
    """A layer of self-attention among all tokens.

    num_heads: number of heads.
    head_dim: channels of a head.
    """

    num_heads: int
    head_dim: int = 64


Layer = Scan | Attention


def whole_path(order: np.ndarray) -> Path:
    """Return the path of a scan that visits all tokens as one sequence."""
    return Path(order, len(order))


def cycled_layers(paths: Sequence[Path], templates: Sequence[Layer]) -> list[Layer]:
    """Return the layers of which `templates` lists the kinds; each scan uses the path after that of the scan before."""
    layers: list[Layer] = []
    num_scans = 0
    for template in templates:
        if isinstance(template, Scan):
            layers.append(template._replace(paths=(paths[num_scans % len(paths)],)))
            num_scans += 1
        else:
            layers.append(template)
    return layers


def layers_of_scan(
    scan: ScanConfig,
    templates: Sequence[Layer],
    height: int,
    width: int,
    num_frames: int | None = None,
    num_directions: int = 1,
) -> list[Layer]:
    """Return the layers of a backbone, of which `templates` lists the kinds, with the paths of its scan.

    Args:
        scan: the scan of the backbone.
        templates: the layers, whose paths are replaced.
        height, width: size of the token grid.
        num_frames: F, None for images.
        num_directions: number of orders that each scan uses.

    Raises:
        UserError: the scheme is not defined on this grid.
    """
    num_orders = [num_directions if isinstance(template, Scan) else 0 for template in templates]
    orders, assigned = scan.layer_orders(num_orders, height, width, num_frames)
    cells = np.arange((num_frames or 1) * height * width).reshape(num_frames or 1, -1)
    layers: list[Layer] = []
    for template, layer in zip(templates, assigned, strict=True):
        if isinstance(template, Scan):
            assert layer.order is not None
            paths = tuple(_path(order, layer.axis, cells) for order in np.atleast_2d(orders[layer.order]))
            template = template._replace(paths=paths)
        layers.append(template)
    return layers


def distinct_paths(layers: Sequence[Layer]) -> list[Path]:
    """Return the different paths of the layers, in the sequence in which they are first used."""
    found = {
        (path.length, path.order.tobytes()): path for layer in layers if isinstance(layer, Scan) for path in layer.paths
    }
    return list(found.values())


def content_of(layers: Sequence[Layer]) -> tuple[object, ...]:
    """Return a value that is equal for equal layers."""
    return tuple(
        (layer.rates, layer.num_taps, *((path.length, path.order.tobytes()) for path in layer.paths))
        if isinstance(layer, Scan)
        else layer
        for layer in layers
    )


def _path(order: np.ndarray, axis: Axis | None, cells: np.ndarray) -> Path:
    """Return the path of a scan along an axis; `cells` are the raster indices, (F, height * width)."""
    if axis is None:
        return whole_path(order)
    sequences = cells[:, order] if axis == "space" else cells[order].T
    return Path(sequences.reshape(-1), sequences.shape[1])
