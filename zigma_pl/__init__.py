"""Zigzag-scanned state-space diffusion models on PyTorch Lightning (ZigMa, arXiv:2403.13802)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zigma_pl.core.version import __version__ as __version__
from zigma_pl.core.without_text_metrics import skip_text_metrics

if TYPE_CHECKING:
    from zigma_pl.core.errors import UserError
    from zigma_pl.interop.folder import from_pretrained, load_backbone, save_pretrained
    from zigma_pl.interop.generation import PretrainedModel
    from zigma_pl.models.backbones.zigma import ZigMa
    from zigma_pl.models.zigzag_mamba import ZigzagMamba
    from zigma_pl.ops.selective_scan import selective_scan
    from zigma_pl.training.module import GenerativeModule

__all__ = [
    "GenerativeModule",
    "PretrainedModel",
    "UserError",
    "ZigMa",
    "ZigzagMamba",
    "from_pretrained",
    "load_backbone",
    "save_pretrained",
    "selective_scan",
]

skip_text_metrics()

# Public names are imported on first use, so that `python -m zigma_pl --help` does not import torch.
_HOMES = {
    "GenerativeModule": "zigma_pl.training.module",
    "PretrainedModel": "zigma_pl.interop.generation",
    "UserError": "zigma_pl.core.errors",
    "ZigMa": "zigma_pl.models.backbones.zigma",
    "ZigzagMamba": "zigma_pl.models.zigzag_mamba",
    "from_pretrained": "zigma_pl.interop.folder",
    "load_backbone": "zigma_pl.interop.folder",
    "save_pretrained": "zigma_pl.interop.folder",
    "selective_scan": "zigma_pl.ops.selective_scan",
}
_MODULES = (
    "backbones",
    "conditioners",
    "data",
    "encoders",
    "interpolant",
    "losses",
    "metrics",
    "mixers",
    "optimizers",
    "samplers",
    "scan",
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"zigma_pl.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'zigma_pl' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__, *_MODULES])
