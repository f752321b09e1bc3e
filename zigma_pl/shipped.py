"""Where the shipped YAML files are: beside the package in a checkout, below share/ in an installed wheel."""

import sysconfig
from pathlib import Path

from zigma_pl.errors import UserError


def shipped_file(name: str) -> Path:
    """Return the absolute path of a shipped file such as "configs/base.yaml".

    Raises: UserError when it is in neither place.
    """
    checkout = Path(__file__).resolve().parents[1]
    installed = Path(sysconfig.get_path("data")) / "share" / "zigma_pl"
    for folder in (checkout, installed):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{name} is neither in {checkout} nor in {installed}: install zigma_pl again")
