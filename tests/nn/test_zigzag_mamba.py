import pytest
import torch

import zigma_pl
from zigma_pl.core.errors import UserError
from zigma_pl.mixers import Mamba, SelfAttention, Visit
from zigma_pl.scan.paths import visit_order
from zigma_pl.scan.schedule import ScanConfig


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_block_scans_any_grid_along_its_order(grid):
    torch.manual_seed(0)
    block = zigma_pl.ZigzagMamba(16, order_index=11)
    tokens = torch.randn(2, grid[0] * grid[1], 16)
    order = torch.as_tensor(visit_order("zigzag", *grid, index=11 % 8))
    out = block(tokens, grid)
    assert out.shape == tokens.shape
    torch.testing.assert_close(out, block.mixer(tokens, Visit(torch.empty(0), order.int())))


def test_square_grid_is_the_default_and_others_are_refused():
    block = zigma_pl.ZigzagMamba(16, scan=ScanConfig(scheme="sweep", num_orders=1))
    tokens = torch.randn(1, 9, 16)
    torch.testing.assert_close(block(tokens), block.mixer(tokens, Visit(torch.empty(0))))
    with pytest.raises(UserError, match=r"10 tokens do not fill a 3 x 3 grid"):
        block(torch.randn(1, 10, 16))


def test_the_mixer_is_an_option():
    torch.manual_seed(0)
    assert zigma_pl.ZigzagMamba(16, mixer=Mamba(state_size=4)).mixer.state_size == 4
    block, tokens = zigma_pl.ZigzagMamba(16, mixer=SelfAttention(rotary=True)), torch.randn(1, 6, 16)
    assert not torch.allclose(block(tokens, (2, 3)), block(tokens, (3, 2)))  # positions of another grid
