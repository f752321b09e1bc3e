"""Loading weights from local files, completely and without executing code from them."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch

from zigma_pl.core.archives import inflated
from zigma_pl.core.errors import UserError
from zigma_pl.core.files import open_regular
from zigma_pl.encoders.weights import loading


def load_pretrained(network_class: Any, option: str, path: Path) -> Any:
    """Return a float32 network from the folder of the weight file `path`.

    Raises:
        UserError: it cannot be loaded, or weights are missing, which transformers would initialise randomly.
    """
    with loading(option, path.parent, "use a folder with config.json and model.safetensors of that network"):
        network, report = network_class.from_pretrained(path.parent, local_files_only=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{path} is not a {network_class.__name__}, as {missing[0]} and {len(missing) - 1} more weights are "
            "missing: replace the file"
        )
    return network.float()


def load_state(option: str, path: Path, weights_name: str) -> dict[str, Any]:
    """Return the tensors of a file written by `torch.save`.

    Raises:
        UserError: it cannot be loaded, contains more than tensors, or would need more memory than its size.
    """
    with loading(option, path, f"see python -m zigma_pl weights check {weights_name}"):
        _check_size(path)
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, EOFError) as error:
            raise ValueError("it contains more than tensors") from error
    return state


def _check_size(path: Path) -> None:
    with open_regular(path) as file:
        if not is_zipfile(file):  # the legacy format of torch.save
            return
        try:
            with ZipFile(file) as archive:
                too_large = inflated(archive, path.stat().st_size)
        except BadZipFile as error:
            raise ValueError("it is damaged") from error
    if too_large is not None:
        raise ValueError(f"it {too_large}")
