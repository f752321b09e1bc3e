"""Base class of backbones over patch tokens: embeddings of patches, positions, time and conditions.

Axes: B batch, F frames (videos only), C channels, H W latent grid, L tokens of a frame, T caption tokens, D width.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zigma_pl.core.batch import CAPTION, CLASS, Conditions
from zigma_pl.core.errors import UserError
from zigma_pl.models.backbones.base import Backbone
from zigma_pl.models.block import BlockConditions
from zigma_pl.models.conditioners import Caption, ClassLabel, ConditionerOptions, Entry, Sizes
from zigma_pl.models.conditioners.base import joined_tokens
from zigma_pl.models.layers.cross_attention import CrossAttention, masked_caption
from zigma_pl.models.layers.embeddings import (
    PatchEmbedding,
    PositionEmbedding,
    TimeEmbedding,
    unpatchify,
)
from zigma_pl.models.layers.shapes import check_shape
from zigma_pl.models.mixers import MixerOptions, Visit
from zigma_pl.models.mixers.sequences import Sequences
from zigma_pl.ops.rows import inverse_order
from zigma_pl.scan.schedule import Axis, LayerOrder, ScanConfig

MAX_TOKENS = 2**22


class TokenBackbone(Backbone):
    """A backbone that cuts x_t into patches, runs layers over the tokens, and reassembles the patches.

    Subclasses call `register_orders` with the mixers of their layers before they build the layers.

    Args:
        width: D.
        config: the constructor's options by name. Uses in_channels, latent_height, latent_width, patch_size,
            latent_frames, position_embedding, num_classes, caption_dim and gradient_checkpointing.
        conditioners: by name of the condition; see `all_conditioners`.
    """

    def __init__(self, width: int, config: dict[str, Any], conditioners: Mapping[str, ConditionerOptions]) -> None:
        frame_shape = (config["in_channels"], config["latent_height"], config["latent_width"])
        if None in frame_shape:
            raise UserError(
                "in_channels, latent_height or latent_width is missing: set them (and latent_frames for videos) in "
                "Python, as only the command line takes them from the data module"
            )
        num_frames: int | None = config["latent_frames"]
        num_tokens = math.prod(frame_shape[1:]) // config["patch_size"] ** 2 * (num_frames or 1)
        if num_tokens > MAX_TOKENS:
            raise UserError(
                f"latent_height, latent_width and latent_frames give {num_tokens:,} tokens, more than the maximum of "
                f"{MAX_TOKENS:,}: lower them or raise patch_size"
            )
        latent_shape = frame_shape if num_frames is None else (num_frames, *frame_shape)
        super().__init__(latent_shape)
        self.width = width
        self.num_frames = num_frames
        self.patch_size: int = config["patch_size"]
        self.gradient_checkpointing: bool = config["gradient_checkpointing"]
        num_channels = frame_shape[0] + sum(options.num_input_channels() for options in conditioners.values())
        self.patch_embedding = PatchEmbedding(num_channels, *frame_shape[1:], self.patch_size, width)
        self.position_embedding = PositionEmbedding(config["position_embedding"], self.grid, width)
        if num_frames is not None:
            self.frame_position_embedding = PositionEmbedding(config["position_embedding"], (num_frames,), width)
        self.time_embedding = TimeEmbedding(width)
        sizes = Sizes(width, latent_shape, config["num_classes"], config["caption_dim"])
        self.conditioners = nn.ModuleDict({name: options.build(sizes) for name, options in conditioners.items()})

    def register_orders(self, mixers: Sequence[MixerOptions], scan: ScanConfig) -> None:
        """Register buffers with the visit orders of the layers' mixers and the positions of the tokens."""
        # Not persistent, since they follow from the options: orders in a checkpoint could be averaged or outdated.
        num_orders = [mixer.num_orders for mixer in mixers]
        orders, self.layer_orders = scan.layer_orders(num_orders, *self.grid, self.num_frames)
        for index, order in enumerate(orders):
            tensor = torch.as_tensor(order, dtype=torch.int32)
            self.register_buffer(f"visit_order_{index}", tensor, persistent=False)
            self.register_buffer(f"visit_inverse_{index}", inverse_order(tensor).int(), persistent=False)
        for axis in {layer.axis for layer in self.layer_orders}:
            self.register_buffer(f"positions_{axis or 'all'}", self._positions(axis), persistent=False)

    def _positions(self, axis: Axis | None) -> Tensor:
        frames = () if self.num_frames is None else (self.num_frames,)
        sizes = {"space": self.grid, "time": frames, None: (*frames, *self.grid)}[axis]
        return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes)).float()

    def visit(self, layer: int) -> Visit:
        """Return the `Visit` for the mixer of a layer: its order or orders, and the positions of the tokens."""
        axis, order = self.layer_orders[layer]
        positions: Tensor = getattr(self, f"positions_{axis or 'all'}")
        if order is None:
            return Visit(positions)
        return Visit(positions, getattr(self, f"visit_order_{order}"), getattr(self, f"visit_inverse_{order}"))

    def sequences(self, layer: LayerOrder) -> Sequences | None:
        """Return how a layer splits clips into sequences, None if all tokens are one sequence."""
        if layer.axis is None:
            return None
        assert self.num_frames is not None
        return Sequences(layer.axis, self.num_frames)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's token grid."""
        return self.patch_embedding.grid

    @property
    def patch_features(self) -> int:
        """Number of values in one patch of the prediction."""
        return self.patch_size**2 * self.latent_shape[-3]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W), (B, F, C, H, W) for videos; see `Backbone.forward` for the arguments."""
        self.check_inputs(x_t)
        check_shape(type(self).__name__, "t", t, "(B,)", len(x_t))
        entries = self.embed_conditions(conditions, dropped, x_t)
        channels = [entry.channels.to(x_t.dtype) for entry in entries if entry.channels is not None]
        tokens = self.embed_tokens(torch.cat([x_t, *channels], dim=-3) if channels else x_t)
        patches = self.run_layers(tokens, t, entries)
        patches = patches.reshape(-1, math.prod(self.grid), self.patch_features)
        return unpatchify(patches, self.grid, self.patch_size).reshape(x_t.shape)

    def embed_tokens(self, x_t: Tensor) -> Tensor:
        """Cut x_t into patches and embed them with their positions: (B, L, D), (B, F L, D) for videos.

        The channels of x_t include those of channel conditions.
        """
        # In x_t's dtype, so float32 also under autocast: the residual stream accumulates small updates of many layers.
        tokens = self.position_embedding(self.patch_embedding(x_t.flatten(0, -4)).to(x_t.dtype))
        if self.num_frames is None:
            return tokens
        by_position = tokens.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # (B, L, F, D), a view
        return self.frame_position_embedding(by_position).transpose(1, 2).flatten(1, 2)

    @abstractmethod
    def run_layers(self, x: Tensor, t: Tensor, entries: list[Entry]) -> Tensor:
        """Map tokens (B, L, D) to patches of the prediction, (B, L, patch_features), with F L tokens for videos.

        Args:
            x: tokens.
            t: (B,) times.
            entries: embedded conditions.
        """

    def run_block(self, block: nn.Module, *arguments: Any) -> Any:
        """Call a block; with gradient checkpointing, store only its inputs and recompute it in the backward pass.

        Blocks must not draw random numbers, as the state of the generators is not restored for the recomputation.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)

    def block_conditions(self, t: Tensor, entries: list[Entry]) -> BlockConditions:
        """Combine the time embedding and the embedded conditions to the conditions of the blocks."""
        modulation = self.time_embedding(t)
        for entry in entries:
            modulation = modulation if entry.modulation is None else modulation + entry.modulation
        tokens, mask = joined_tokens(entries)
        if tokens is None:
            return BlockConditions(modulation)
        return BlockConditions(modulation, *masked_caption(tokens, mask))


def all_conditioners(
    config: Mapping[str, Any], given: Mapping[str, ConditionerOptions] | None
) -> dict[str, ConditionerOptions]:
    """Return the conditioners of a backbone: for class and caption if the data have them, and those given.

    Args:
        config: options of the backbone. Uses num_classes, caption_dim and null_condition.
        given: by name of the condition; "class" and "caption" replace the default conditioners.

    Raises: UserError for a name that a module cannot have.
    """
    conditioners: dict[str, ConditionerOptions] = {}
    if config["num_classes"] is not None:
        conditioners[CLASS] = ClassLabel(null=config["null_condition"])
    if config["caption_dim"] is not None:
        conditioners[CAPTION] = Caption(null=config["null_condition"])
    for name in given or {}:
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(f"conditioners: {name!r} is not a valid name for a condition: use letters, digits and _")
    return conditioners | dict(given or {})


def make_cross_attention(
    width: int, config: Mapping[str, Any], conditioners: Mapping[str, ConditionerOptions]
) -> CrossAttention | None:
    """Build the cross-attention of a block from the options attention_*; None if no condition has tokens."""
    if not gives_tokens(conditioners):
        return None
    return CrossAttention(width, config["attention_heads"], config["attention_head_dim"])


def gives_tokens(conditioners: Mapping[str, ConditionerOptions]) -> bool:
    """Return whether any condition has tokens to attend to."""
    return any(options.gives_tokens for options in conditioners.values())
