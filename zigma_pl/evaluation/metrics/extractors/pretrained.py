"""Weights from local files: complete or not at all, and without running code that a file brings."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from zigma_pl.core.errors import UserError
from zigma_pl.encoders.weights import loading


def load_pretrained(network_class: Any, option: str, path: Path) -> Any:
    """Return a network in float32 from the folder of the weights file `path`.

    Raises:
        UserError: it cannot be loaded, or lacks weights, which transformers would draw at random with but a warning.
    """
    with loading(option, path.parent, "give a folder with config.json and model.safetensors of that network"):
        network, report = network_class.from_pretrained(path.parent, local_files_only=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{path} holds no {network_class.__name__}: it lacks {missing[0]} and {len(missing) - 1} more")
    return network.float()


def load_state(option: str, path: Path, weights_name: str) -> dict[str, Any]:
    """Return the tensors of a file that `torch.save` wrote.

    Raises:
        UserError: it cannot be loaded, or holds more than tensors.
    """
    with loading(option, path, f"see python -m zigma_pl weights check {weights_name}"):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (UnpicklingError, EOFError) as error:
            raise ValueError("it is no file of tensors alone") from error
    return state
