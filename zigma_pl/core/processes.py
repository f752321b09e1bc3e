"""The distributed processes of a run: world size, rank, barrier, gathering of objects."""

from typing import Any

from torch import distributed


def gather_objects(mine: Any) -> list[Any]:
    """Return the objects of all processes in order of rank; a list of one without distributed processes."""
    if not _are_several():
        return [mine]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return parts


def wait_for_all() -> None:
    """Wait until every process has called this function."""
    gather_objects(None)


def rank() -> int:
    """Return the rank of this process, from 0."""
    return distributed.get_rank() if _are_several() else 0


def world_size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _are_several() else 1


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
