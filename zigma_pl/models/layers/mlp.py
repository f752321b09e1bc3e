"""The MLP of a transformer block."""

from torch import Tensor, nn

from zigma_pl.models.layers.linear import Linear


class MLP(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between them: (B, L, D) -> (B, L, D).

    Args:
        width: D.
        ratio: hidden width divided by D.
    """

    def __init__(self, width: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = round(ratio * width)
        self.hidden = Linear(width, hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.out_proj = Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform each token of (B, L, D)."""
        return self.out_proj(self.activation(self.hidden(tokens)))
