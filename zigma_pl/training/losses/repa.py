"""Representation alignment, REPA (arXiv:2410.06940): the network's tokens predict features of a frozen teacher.

Axes: B batch, F frames, L tokens, D width, d features of the teacher.
"""

import math
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from zigma_pl.core.errors import UserError
from zigma_pl.core.ranges import check_whole_numbers
from zigma_pl.interpolant.loss_terms import LossInputs, LossTerm
from zigma_pl.training.losses.teachers import Teacher


class REPA(LossTerm):
    """One minus the cosine similarity of projected tokens and the teacher's features, averaged over the tokens.

    The tokens of one layer, computed from the noisy latents, are projected by an MLP. The teacher sees the clean
    images, and its feature maps are resampled to the token grid. Videos are aligned frame by frame.

    Args:
        teacher: frozen network.
        layer: number of blocks before the tap, from 1 to the depth of the backbone; None for a third of the depth.
        hidden_width: width of the two hidden layers of the MLP.
        weight: factor of the term in the total loss.
        start_step: first optimiser step in which the term is active.
        end_step: first optimiser step in which it is no longer active; None to keep it active.
        averaged: include the MLP in the exponential moving average.
    """

    needs_images: ClassVar[bool] = True
    parameter_roles: ClassVar[dict[str, str]] = {"head.4.weight": "projection"}

    def __init__(
        self,
        teacher: Teacher,
        layer: int | None = None,
        hidden_width: int = 2048,
        weight: float = 0.5,
        start_step: int = 0,
        end_step: int | None = None,
        averaged: bool = False,
    ) -> None:
        super().__init__(weight, start_step, end_step, averaged=averaged)
        check_whole_numbers("REPA", layer=layer, hidden_width=hidden_width)
        self.teacher = teacher
        self.layer = layer
        self.hidden_width = hidden_width

    def attach(self, backbone: nn.Module) -> None:
        """Choose the layer, and build the MLP.

        Raises: UserError if the backbone has no token grid or fewer blocks.
        """
        found: Any = backbone
        try:
            width, self.grid, depth = int(found.width), tuple(found.grid), len(found.blocks)
        except AttributeError as error:
            raise UserError(
                f"REPA: {type(backbone).__name__} has no attribute {error.name!r}: add its `width`, the `grid` of its "
                "tokens and its `blocks`"
            ) from error
        layer = self.layer or math.ceil(depth / 3)
        if layer > depth:
            raise UserError(f"REPA.layer: the backbone has {depth} blocks, got {layer}: lower it")
        self.layers = (f"blocks.{layer - 1}",)
        self.head = nn.Sequential(
            *(nn.Linear(width, self.hidden_width), nn.SiLU()),
            *(nn.Linear(self.hidden_width, self.hidden_width), nn.SiLU()),
            nn.Linear(self.hidden_width, self.teacher.dim),
        )

    def prepare(self) -> None:
        """Load the teacher, so that missing weights raise before training starts."""
        assert self.teacher.network is not None

    def targets(self, images: Tensor) -> Tensor:
        """Return the teacher's features on the token grid, (B, L, d), (B, F L, d) for videos, without gradients."""
        maps = self.teacher(images.flatten(0, -4))
        if maps.shape[-2:] != self.grid:
            maps = F.interpolate(maps, size=self.grid, mode="bilinear", antialias=True)
        return maps.flatten(2).mT.reshape(len(images), -1, maps.shape[1])

    def forward(self, inputs: LossInputs) -> Tensor:
        """Return the term of each sample, (B,)."""
        if inputs.batch.images is None:
            raise UserError("REPA needs images, but the batches of this data set have none: add them in `encode`")
        targets = self.targets(inputs.batch.images)
        tokens = inputs.features[self.layers[0]][:, -targets.shape[1] :]  # U-ViT's other tokens come first
        similarity = F.cosine_similarity(self.head(tokens).float(), targets, dim=-1)
        return 1 - similarity.mean(1)
