"""The processes of a run: how many there are, which this one is, and plain values of all of them in one place."""

from typing import Any

from torch import distributed


def gather_objects(mine: Any) -> list[Any]:
    """Return what each process gave, in order of rank; of one process, a list of one."""
    if not _are_several():
        return [mine]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return parts


def wait_for_all() -> None:
    """Return when every process has come here."""
    gather_objects(None)


def rank() -> int:
    """Return which process this is, from 0."""
    return distributed.get_rank() if _are_several() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return distributed.get_world_size() if _are_several() else 1


def _are_several() -> bool:
    return distributed.is_available() and distributed.is_initialized()
