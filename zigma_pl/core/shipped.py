"""Location of the YAML files that come with the package: next to it in a checkout, below share/ after installation."""

import os
import sys
import sysconfig
from pathlib import Path

from zigma_pl.core.errors import UserError


def shipped_file(name: str) -> Path:
    """Return the absolute path of a shipped file such as "configs/base.yaml".

    Raises: UserError if it is not found.
    """
    found = _find(name)
    if found is None:
        raise UserError(f"{name} was not found in {', '.join(map(str, folders()))}: reinstall zigma_pl")
    return found


def find_config(name: str | Path) -> Path:
    """Return the path of a config file: relative to the working directory, otherwise the shipped file of that name.

    The path of a shipped file is printed to stderr. A path that does not exist is returned unchanged.
    """
    path = Path(name)
    if path.is_absolute() or path.exists() or ".." in path.parts:
        return path
    shipped = _find(name)
    if shipped is None:
        return path
    print(f"{name} is not in the working directory: using {shipped}", file=sys.stderr)
    return shipped


def folders() -> tuple[Path, ...]:
    """Return the folders that may hold the shipped files."""
    beside_package = Path(__file__).resolve().parents[2]  # a checkout, or the folder of `pip install --target`
    prefixes = (beside_package, *map(Path, (sysconfig.get_path("data"), sysconfig.get_path("data", f"{os.name}_user"))))
    return beside_package, *(prefix / "share" / "zigma_pl" for prefix in prefixes)


def _find(name: str | Path) -> Path | None:
    return next((folder / name for folder in folders() if (folder / name).is_file()), None)
