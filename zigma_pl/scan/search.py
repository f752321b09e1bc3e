"""Search for a set of orders with the smallest predicted loss."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from zigma_pl.scan.clips import clip_order, time_first_order
from zigma_pl.scan.paths import NUM_SYMMETRIES, visit_order
from zigma_pl.scan.shapes import SHAPES

NamedOrder = tuple[str, int]  # scheme, index
TIME_FIRST = "time_first "  # begins the names of schemes that visit all frames at a position before the next one


def order_pool(height: int, width: int, num_frames: int | None = None) -> dict[NamedOrder, np.ndarray]:
    """Return all orders of all schemes that exist for a grid; for clips, frame after frame and time first."""
    pool: dict[NamedOrder, np.ndarray] = {}
    for name in ("hilbert", *SHAPES):
        if name != "hilbert" and not SHAPES[name].exists_for(height, width):
            continue
        for index in range(NUM_SYMMETRIES):
            if num_frames is None:
                pool[name, index] = visit_order(name, height, width, index=index)  # type: ignore[arg-type]
            else:
                pool[name, index] = clip_order(name, num_frames, height, width, index=index)  # type: ignore[arg-type]
    if num_frames is not None:
        pool |= {
            (TIME_FIRST + name, index): time_first_order(name, num_frames, height, width, index=index)  # type: ignore[arg-type]
            for name, index in list(pool)
        }
    return pool


def search(
    start: Sequence[NamedOrder],
    pool: Mapping[NamedOrder, np.ndarray],
    score: Callable[[list[np.ndarray]], float],
    num_trials: int,
    seed: int = 0,
) -> Iterator[tuple[float, list[NamedOrder]]]:
    """Yield the first set of orders, and each set with a smaller score that is found, with its score.

    A trial replaces one order of the best set by another one of the pool, and swaps two of its orders in every fourth
    trial.

    Args:
        start: the first set.
        pool: the orders by name, each (L,).
        score: function of the orders that is minimised.
        num_trials: number of sets that are tried after the first.
        seed: seed of the trials.
    """
    names = list(pool)
    generator = np.random.default_rng(seed)
    best = list(start)
    smallest = score([pool[key] for key in best])
    yield smallest, best
    for trial in range(1, num_trials + 1):
        changed = list(best)
        first, second = generator.integers(len(best), size=2)
        if trial % 4 == 0:
            changed[first], changed[second] = changed[second], changed[first]
        else:
            changed[first] = names[generator.integers(len(names))]
        if changed == best:
            continue
        found = score([pool[key] for key in changed])
        if found < smallest:
            smallest, best = found, changed
            yield smallest, best
