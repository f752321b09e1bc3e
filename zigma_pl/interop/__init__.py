"""Reading and writing models: folders with safetensors and config.json, and released ZigMa checkpoints."""

from zigma_pl.interop.folder import from_pretrained, load_backbone, save_pretrained
from zigma_pl.interop.official import load_zigma_checkpoint

__all__ = ["from_pretrained", "load_backbone", "load_zigma_checkpoint", "save_pretrained"]
