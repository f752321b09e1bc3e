"""What every fuzz test promises: the same examples in every run, 5 s for each, and 1 GB of memory above the start."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings

SECONDS = 5
NUM_BYTES = 2**30


def bounded(max_examples: int) -> settings:
    """Return the settings of a fuzz test; use them with the fixture `one_gigabyte_more`."""
    return settings(
        derandomize=True,
        max_examples=max_examples,
        deadline=1000 * SECONDS,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def memory_limit(num_bytes: int = NUM_BYTES) -> Iterator[None]:
    """Limit the address space of the process to so much above what it has; beyond that a MemoryError is raised."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
