"""Root-mean-square normalisation as a module."""

from torch import Tensor, nn

from zigma_pl.ops.rms_norm import rms_norm


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm` that returns the type of its input, also under autocast (arXiv:1910.07467)."""

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise (..., width)."""
        return rms_norm(rows, self.weight, self.eps)
