"""Plain values of all processes in one place."""

from typing import Any

from torch import distributed


def gather_objects(mine: Any) -> list[Any]:
    """Return what each process gave, in order of rank; of one process, a list of one."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [mine]
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, mine)
    return parts
