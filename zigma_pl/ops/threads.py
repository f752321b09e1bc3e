"""How many of PyTorch's threads the CPU forms of the ops use."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Below this, one thread. With two, the many short steps gain a third on an idle machine and lose a factor of ten on a
# busy one, because each of them ends with both threads waiting for the later one.
MIN_THREADS = 4


@contextmanager
def threads_that_pay() -> Iterator[None]:
    """Runs the body on one thread where PyTorch has fewer than MIN_THREADS; restores the number afterwards."""
    num_threads = torch.get_num_threads()
    if not 1 < num_threads < MIN_THREADS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
