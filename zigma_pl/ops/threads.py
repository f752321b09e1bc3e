"""Number of threads of the CPU implementations of ops."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# With fewer threads, one is used. Two threads make the many short steps a third faster on an idle machine but ten times
# slower on a busy one, because the threads wait for each other after each step.
MIN_THREADS = 4


@contextmanager
def threads_that_pay() -> Iterator[None]:
    """Use one thread within the block if PyTorch has fewer than MIN_THREADS, and restore the number afterwards."""
    num_threads = torch.get_num_threads()
    if not 1 < num_threads < MIN_THREADS:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
