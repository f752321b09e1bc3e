"""Root-mean-square normalisation in one kernel, also under autocast.

PyTorch's fused kernel needs rows and weight of one type; otherwise it computes in float32 with several passes.
"""

from torch import Tensor, nn
from torch.nn import functional


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` that returns the type of its input, also under autocast (arXiv:1910.07467)."""

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise (..., width)."""
        return functional.rms_norm(rows, tuple(self.normalized_shape), self.weight.to(rows.dtype), self.eps)
