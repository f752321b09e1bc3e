"""Search for a set of orders with the smallest predicted loss."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from zigma_pl.scan.paths import NUM_SYMMETRIES, visit_order
from zigma_pl.scan.shapes import SHAPES

NamedOrder = tuple[str, int]  # scheme, index


def search(
    start: Sequence[NamedOrder],
    height: int,
    width: int,
    score: Callable[[list[np.ndarray]], float],
    num_trials: int,
    seed: int = 0,
) -> Iterator[tuple[float, list[NamedOrder]]]:
    """Yield the first set of orders, and each set with a smaller score that is found, with its score.

    A trial replaces one order of the best set by another one of any scheme that exists for the grid, and swaps two of
    its orders in every fourth trial.

    Args:
        start: the first set.
        height, width: size of the token grid.
        score: function of the orders, each (height * width,), that is minimised.
        num_trials: number of sets that are tried after the first.
        seed: seed of the trials.
    """
    pool = [
        (name, index)
        for name in ("hilbert", *SHAPES)
        for index in range(NUM_SYMMETRIES)
        if name == "hilbert" or SHAPES[name].exists_for(height, width)
    ]
    orders = {key: visit_order(key[0], height, width, index=key[1]) for key in pool}  # type: ignore[arg-type]
    generator = np.random.default_rng(seed)
    best = list(start)
    smallest = score([orders[key] for key in best])
    yield smallest, best
    for trial in range(1, num_trials + 1):
        changed = list(best)
        first, second = generator.integers(len(best), size=2)
        if trial % 4 == 0:
            changed[first], changed[second] = changed[second], changed[first]
        else:
            changed[first] = pool[generator.integers(len(pool))]
        if changed == best:
            continue
        found = score([orders[key] for key in changed])
        if found < smallest:
            smallest, best = found, changed
            yield smallest, best
