import torch

from zigma_pl.models.layers.mlp import MLP


def test_perceptron_is_the_tanh_gelu_between_two_linear_layers():
    torch.manual_seed(0)
    mlp, x = MLP(8, ratio=4.5).double(), torch.randn(2, 3, 8, dtype=torch.float64)
    hidden = mlp.hidden(x)
    assert hidden.shape[-1] == 36
    gelu = 0.5 * hidden * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(mlp(x), mlp.out_proj(gelu))
