"""What backbones over patch tokens have in common: embeddings of the patches, positions, time and conditions.

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
from zigma_pl.models.layers.cross_attention import CrossAttention
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
    """A backbone that cuts x_t into patches, runs layers over their tokens, and puts the patches back.

    A subclass calls `hold_orders` with its layers' mixers before it builds them.

    Args:
        width: D.
        config: the constructor's options by name. Read from it: in_channels, latent_height, latent_width, patch_size,
            latent_frames, position_embedding, num_classes, caption_dim, gradient_checkpointing.
        conditioners: how it is conditioned, by name; see `all_conditioners`.
    """

    def __init__(self, width: int, config: dict[str, Any], conditioners: Mapping[str, ConditionerOptions]) -> None:
        frame_shape = (config["in_channels"], config["latent_height"], config["latent_width"])
        if None in frame_shape:
            raise UserError(
                "a backbone made in Python needs in_channels, latent_height and latent_width (and for videos "
                "latent_frames): only the command line takes them from the data module"
            )
        num_frames: int | None = config["latent_frames"]
        num_tokens = math.prod(frame_shape[1:]) // config["patch_size"] ** 2 * (num_frames or 1)
        if num_tokens > MAX_TOKENS:
            raise UserError(
                f"latent_height, latent_width and latent_frames give {num_tokens:,} tokens, more than the "
                f"{MAX_TOKENS:,} that a scan can be over: lower them or raise patch_size"
            )
        latent_shape = frame_shape if num_frames is None else (num_frames, *frame_shape)
        super().__init__(latent_shape)
        self.num_frames = num_frames
        self.patch_size: int = config["patch_size"]
        self.gradient_checkpointing: bool = config["gradient_checkpointing"]
        num_beside = sum(options.channels_beside_x_t() for options in conditioners.values())
        self.patch_embedding = PatchEmbedding(frame_shape[0] + num_beside, *frame_shape[1:], self.patch_size, width)
        self.position_embedding = PositionEmbedding(config["position_embedding"], self.grid, width)
        if num_frames is not None:
            self.frame_position_embedding = PositionEmbedding(config["position_embedding"], (num_frames,), width)
        self.time_embedding = TimeEmbedding(width)
        sizes = Sizes(width, latent_shape, config["num_classes"], config["caption_dim"])
        self.conditioners = nn.ModuleDict({name: options.build(sizes) for name, options in conditioners.items()})

    def hold_orders(self, mixers: Sequence[MixerOptions], scan: ScanConfig) -> None:
        """Keep the orders that the mixers of the layers take, and the places of their tokens."""
        # Derived from the configuration, so never saved: an order in a checkpoint could be averaged or go stale.
        taken = [mixer.num_orders for mixer in mixers]
        orders, self.layer_orders = scan.layer_orders(taken, *self.grid, self.num_frames)
        for index, order in enumerate(orders):
            held = torch.as_tensor(order, dtype=torch.int32)
            self.register_buffer(f"visit_order_{index}", held, persistent=False)
            self.register_buffer(f"visit_inverse_{index}", inverse_order(held).int(), persistent=False)
        for axis in {layer.axis for layer in self.layer_orders}:
            self.register_buffer(f"places_{axis or 'all'}", self._places(axis), persistent=False)

    def _places(self, axis: Axis | None) -> Tensor:
        frames = () if self.num_frames is None else (self.num_frames,)
        sizes = {"space": self.grid, "time": frames, None: (*frames, *self.grid)}[axis]
        return torch.cartesian_prod(*(torch.arange(size) for size in sizes)).view(-1, len(sizes)).float()

    def visit(self, layer: int) -> Visit:
        """Return what the mixer of a layer is told: its order or orders, and where the tokens lie."""
        axis, order = self.layer_orders[layer]
        places: Tensor = getattr(self, f"places_{axis or 'all'}")
        if order is None:
            return Visit(places)
        return Visit(places, getattr(self, f"visit_order_{order}"), getattr(self, f"visit_inverse_{order}"))

    def sequences(self, layer: LayerOrder) -> Sequences | None:
        """Return what a layer cuts clips into, None where it takes all tokens as one sequence."""
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
        """Numbers in one patch of the prediction."""
        return self.patch_size**2 * self.latent_shape[-3]

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        conditions: Conditions | None = None,
        dropped: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict (B, C, H, W), of videos (B, F, C, H, W); see Backbone.forward for the arguments."""
        self.check_inputs(x_t)
        check_shape(type(self).__name__, "t", t, "(B,)", len(x_t))
        entries = self.embed_conditions(conditions, dropped, x_t)
        channels = [entry.channels.to(x_t.dtype) for entry in entries if entry.channels is not None]
        tokens = self.embed_tokens(torch.cat([x_t, *channels], dim=-3) if channels else x_t)
        patches = self.run_layers(tokens, t, entries)
        patches = patches.reshape(-1, math.prod(self.grid), self.patch_features)
        return unpatchify(patches, self.grid, self.patch_size).reshape(x_t.shape)

    def embed_tokens(self, x_t: Tensor) -> Tensor:
        """Cut x_t into patches and embed them with their positions: (B, L, D), of videos (B, F L, D).

        x_t has the channels of conditions beside its own.
        """
        # In x_t's dtype, float32 under autocast too: the residual stream adds up small updates over many layers.
        tokens = self.position_embedding(self.patch_embedding(x_t.flatten(0, -4)).to(x_t.dtype))
        if self.num_frames is None:
            return tokens
        places = tokens.unflatten(0, (-1, self.num_frames)).transpose(1, 2)  # (B, L, F, D), a view
        return self.frame_position_embedding(places).transpose(1, 2).flatten(1, 2)

    @abstractmethod
    def run_layers(self, x: Tensor, t: Tensor, entries: list[Entry]) -> Tensor:
        """Turn tokens (B, L, D) into patches of the prediction, (B, L, patch_features); of videos F L for L.

        Args:
            x: tokens.
            t: (B,) times.
            entries: what the conditioners give.
        """

    def run_block(self, block: nn.Module, *arguments: Any) -> Any:
        """Call the block; with gradient checkpointing, keep its inputs only and run it again in the backward pass.

        A block draws no random numbers: the state of the generators is not kept for the second run.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *arguments, use_reentrant=False, preserve_rng_state=False)
        return block(*arguments)

    def block_conditions(self, t: Tensor, entries: list[Entry]) -> BlockConditions:
        """Return what the blocks are conditioned on: time, and the conditions that modulate or are attended to."""
        modulation = self.time_embedding(t)
        for entry in entries:
            modulation = modulation if entry.modulation is None else modulation + entry.modulation
        return BlockConditions(modulation, *joined_tokens(entries))


def all_conditioners(
    config: Mapping[str, Any], given: Mapping[str, ConditionerOptions] | None
) -> dict[str, ConditionerOptions]:
    """Return the conditioners of a backbone: a class and a caption where the data have them, and those given.

    Args:
        config: of the backbone. Read from it: num_classes, caption_dim, null_condition.
        given: by name; those named "class" and "caption" take the place of the plain ones.

    Raises: UserError for a name that a module cannot have.
    """
    conditioners: dict[str, ConditionerOptions] = {}
    if config["num_classes"] is not None:
        conditioners[CLASS] = ClassLabel(null=config["null_condition"])
    if config["caption_dim"] is not None:
        conditioners[CAPTION] = Caption(null=config["null_condition"])
    for name in given or {}:
        if not name.isidentifier() or hasattr(nn.ModuleDict, name):
            raise UserError(f"conditioners: {name!r} cannot be the name of a condition: use letters, digits and _")
    return conditioners | dict(given or {})


def make_cross_attention(
    width: int, config: Mapping[str, Any], conditioners: Mapping[str, ConditionerOptions]
) -> CrossAttention | None:
    """Build a block's attention to the tokens of conditions, None where none has any; `config` has attention_*."""
    if not gives_tokens(conditioners):
        return None
    return CrossAttention(width, config["attention_heads"], config["attention_head_dim"])


def gives_tokens(conditioners: Mapping[str, ConditionerOptions]) -> bool:
    """Whether any of the conditions has tokens to attend to."""
    return any(options.gives_tokens for options in conditioners.values())
