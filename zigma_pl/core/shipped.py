"""Where the shipped YAML files are: beside the package in a checkout, below share/ in an installed wheel."""

import os
import sys
import sysconfig
from pathlib import Path

from zigma_pl.core.errors import UserError


def shipped_file(name: str) -> Path:
    """Return the absolute path of a shipped file such as "configs/base.yaml".

    Raises: UserError when it is in neither place.
    """
    found = _find(name)
    if found is None:
        raise UserError(f"{name} is in none of {', '.join(map(str, folders()))}: install zigma_pl again")
    return found


def find_config(name: str | Path) -> Path:
    """Return where a config file is: as named from the working directory, else the shipped file of that name.

    A shipped file that is used is named on stderr. What is in neither place is returned as it is.
    """
    path = Path(name)
    if path.is_absolute() or path.exists() or ".." in path.parts:
        return path
    shipped = _find(name)
    if shipped is None:
        return path
    print(f"{name}: there is no such file here, using {shipped}", file=sys.stderr)
    return shipped


def folders() -> tuple[Path, ...]:
    """Return the folders that may hold the shipped files."""
    beside_package = Path(__file__).resolve().parents[2]  # a checkout, or what `pip install --target` fills
    prefixes = (beside_package, *map(Path, (sysconfig.get_path("data"), sysconfig.get_path("data", f"{os.name}_user"))))
    return beside_package, *(prefix / "share" / "zigma_pl" for prefix in prefixes)


def _find(name: str | Path) -> Path | None:
    return next((folder / name for folder in folders() if (folder / name).is_file()), None)
