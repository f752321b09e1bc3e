"""Frozen networks whose patch features of the clean images are targets of a loss term.

Axes: B batch, d features.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zigma_pl.core.class_paths import Configurable
from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.core.weight_files import find_weights
from zigma_pl.encoders.weights import loading
from zigma_pl.evaluation.metrics.extractors.clip import CLIP_MEAN, CLIP_STD
from zigma_pl.evaluation.metrics.extractors.dinov2 import positions_for
from zigma_pl.evaluation.metrics.extractors.lite import Lite
from zigma_pl.evaluation.metrics.extractors.pretrained import load_pretrained
from zigma_pl.evaluation.metrics.extractors.resize import IMAGENET_MEAN, IMAGENET_STD, normalise


class Teacher(Configurable, ABC):
    """A frozen network that returns a map of features for each image.

    Subclasses set `dim` and implement `load` and `features`. The constructor should only store options, because it also
    runs for `test`, `sample` and `export`, which do not need the network.

    The network is not a submodule of the model: it is not trained, averaged or saved in checkpoints, and stays in
    evaluation mode. It is loaded before training starts. It computes in float32, or in bfloat16 if `bfloat16` is set,
    for every precision of the trainer.

    Attributes:
        dim: number of features, d.
        bfloat16: run the network under bfloat16 autocast.
    """

    dim: int
    bfloat16: bool = False
    _device = torch.device("cpu")

    @cached_property
    def network(self) -> nn.Module:
        """The network returned by `load`, frozen, in evaluation mode and in float32."""
        with torch.random.fork_rng(devices=[]):  # constructors draw initial weights, which the loaded ones replace
            return self.load().eval().float().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return itself: copies of the model, such as its average, share the frozen network."""
        return self

    @abstractmethod
    def load(self) -> nn.Module:
        """Return the network with its weights, on the CPU.

        Raises:
            UserError: the weights are missing or invalid.
        """

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return features (B, d, rows, columns) of images (B, 3, height, width) uint8, on the network's device."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, d, rows, columns), float32 and without gradients, on the device of the images.

        Args:
            images: (B, 3 or 1, height, width) uint8; a single channel is repeated.

        Raises:
            UserError: the network returns features of another shape.
        """
        if self._device != images.device:  # checked here, since `to` visits every parameter
            self.network.to(images.device)
            self._device = images.device
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            features = self.features(images.expand(-1, 3, -1, -1)).float()
        if features.ndim != 4 or features.shape[:2] != (len(images), self.dim):
            name = type(self).__name__
            raise UserError(f"{name}.features must return (B, {self.dim}, rows, columns), got {tuple(features.shape)}")
        return features


class _VisionTransformer(Teacher):
    """A teacher that returns the patch tokens of a vision transformer for square images."""

    weights_name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(
        self, weights: str | None = None, dim: int = 1024, size_px: int = 224, *, bfloat16: bool = False
    ) -> None:
        check_whole_numbers(type(self).__name__, dim=dim, size_px=size_px)
        self.weights, self.dim, self.size_px, self.bfloat16 = weights, dim, size_px, bfloat16

    def features(self, images: Tensor) -> Tensor:
        """Return the normalised patch tokens of the last layer."""
        inputs = normalise(resized(images, self.size_px), self.mean, self.std)
        tokens = self.patch_tokens(inputs)
        side = round(tokens.shape[1] ** 0.5)
        return tokens.mT.unflatten(-1, (side, side))

    @abstractmethod
    def patch_tokens(self, inputs: Tensor) -> Tensor:
        """Return (B, side^2, d), in raster order, for the network's input (B, 3, size_px, size_px)."""

    def check(self, width: int, patch_px: int) -> None:
        """Raise UserError unless the options fit the loaded network."""
        name = type(self).__name__
        if width != self.dim:
            raise UserError(f"{name}.dim: the network has {width} features, not {self.dim}: set it to {width}")
        if self.size_px % patch_px:
            raise UserError(f"{name}.size_px: {self.size_px} is not a multiple of {patch_px}, the side of a patch")


class Dinov2Teacher(_VisionTransformer):
    """Patch tokens of DINOv2 (arXiv:2304.07193) after its final normalisation, by default of ViT-L/14.

    Args:
        weights: model.safetensors with its config.json beside it, or their folder; None for the default folder of
            `python -m zigma_pl weights`.
        dim: width of the network: 384 for ViT-S, 768 for ViT-B, 1024 for ViT-L.
        size_px: side to which images are resized, a multiple of 14; it gives (size_px / 14)^2 tokens.
        bfloat16: run the network under bfloat16 autocast.
    """

    weights_name = "dinov2-large"
    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def load(self) -> nn.Module:
        """Return the transformer with position embeddings for `size_px`."""
        from transformers import Dinov2Model

        path = find_weights(self.weights_name, self.weights)
        network = load_pretrained(Dinov2Model, "Dinov2Teacher", path)
        patch_px = int(network.config.patch_size)
        self.check(int(network.config.hidden_size), patch_px)
        with loading("Dinov2Teacher", path, f"see python -m zigma_pl weights check {self.weights_name}"):
            positions = positions_for(network.embeddings.position_embeddings, self.size_px // patch_px)
        network.embeddings.position_embeddings = nn.Parameter(positions)
        return network

    def patch_tokens(self, inputs: Tensor) -> Tensor:
        """Return all tokens except the class token."""
        return self.network(inputs).last_hidden_state[:, 1:]


class CLIPTeacher(_VisionTransformer):
    """Patch tokens of CLIP's image encoder (arXiv:2103.00020) after its final normalisation, by default of ViT-L/14.

    Args:
        weights: model.safetensors with its config.json beside it, or their folder; None for the default folder of
            `python -m zigma_pl weights`.
        dim: width of the image encoder.
        size_px: side to which images are resized; must be the image size of the network.
        bfloat16: run the network under bfloat16 autocast.
    """

    weights_name = "clip-vit-large-patch14"
    mean, std = CLIP_MEAN, CLIP_STD

    def load(self) -> nn.Module:
        """Return the image encoder."""
        from transformers import CLIPModel

        network = load_pretrained(CLIPModel, "CLIPTeacher", find_weights(self.weights_name, self.weights))
        config = network.config.vision_config
        self.check(int(config.hidden_size), int(config.patch_size))
        if self.size_px != config.image_size:
            raise UserError(f"CLIPTeacher.size_px: this network takes images of {config.image_size} px: set it to that")
        encoder: nn.Module = network.vision_model
        return encoder

    def patch_tokens(self, inputs: Tensor) -> Tensor:
        """Return all tokens except the class token."""
        tokens = self.network(pixel_values=inputs).last_hidden_state[:, 1:]
        return self.network.post_layernorm(tokens)  # type: ignore[operator]


class LiteTeacher(Teacher):
    """Feature maps of EfficientNet-Lite0 trained on ImageNet, whose weights are a Python package (`zigma_pl[lite]`).

    Args:
        stride: 8 for 40 features per 8 x 8 pixels of the resized image, 16 for 112 features per 16 x 16 pixels.
        size_px: side to which images are resized; the network was trained with 224.
        weights: weight file; None for that of the package.
        bfloat16: run the network under bfloat16 autocast.
    """

    # Last block of each stride, and its channels.
    _blocks_and_channels = {8: (5, 40), 16: (11, 112)}  # noqa: RUF012  never modified

    def __init__(
        self, stride: Literal[8, 16] = 16, size_px: int = 224, weights: str | None = None, *, bfloat16: bool = False
    ) -> None:
        if stride not in self._blocks_and_channels:
            raise UserError(f"LiteTeacher.stride: must be 8 or 16, got {stride}")
        check_whole_numbers("LiteTeacher", least=16, size_px=size_px)
        self.stride, self.size_px, self.weights, self.bfloat16 = stride, size_px, weights, bfloat16
        self.num_blocks, self.dim = self._blocks_and_channels[stride]

    def load(self) -> nn.Module:
        """Return the layers up to `stride`."""
        network: Any = Lite(self.weights).network
        stem = (network._conv_stem, network._bn0, network._swish)
        return nn.Sequential(*stem, *network._blocks[: self.num_blocks])

    def features(self, images: Tensor) -> Tensor:
        """Return the output of the last block, standardised per position.

        The outputs of these blocks are linear and not normalised. Without standardisation, a few channels with a large
        mean would determine every cosine similarity.
        """
        maps = self.network((resized(images, self.size_px) - 127) / 128)
        return F.layer_norm(maps.movedim(1, -1).float(), (self.dim,)).movedim(-1, 1)


def resized(images: Tensor, size_px: int) -> Tensor:
    """Resize images (B, 3, height, width) uint8 to squares of `size_px`, float32 in [0, 255], with antialiasing."""
    values = images.float()
    if images.shape[-2:] == (size_px, size_px):
        return values
    return F.interpolate(values, size=(size_px, size_px), mode="bicubic", antialias=True).clamp(0, 255)
