"""Loading weights from local files, completely and without executing code from them."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from zigma_pl.core.errors import UserError
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
        UserError: it cannot be loaded, or contains more than tensors.
    """
    with loading(option, path, f"see python -m zigma_pl weights check {weights_name}"):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, EOFError) as error:
            raise ValueError("it contains more than tensors") from error
    return state
