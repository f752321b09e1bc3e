"""The recurrence of the selective scan and its adjoint in plain PyTorch, without an autograd graph over time.

The memory layout determines the speed. Rows are gathered through the visit order into time-major tensors with the
channel axis innermost, and the state of one step is a plane (rows, N, E). Steps are processed in tiles that stay in the
cache; the only Python loop is the recurrence itself, one fused multiply-add per step. The forward pass stores the state
at the start of each tile; the backward pass recomputes the states within the tile and runs the adjoint recurrence

    g[k] = C[k] dy[k] + exp(delta[k+1] A) g[k+1]

in reverse. exp(delta A) is computed as exp2(delta (A / ln 2)), since PyTorch's exp2 is several times faster on the CPU
than its exp and does not become slower when the result underflows.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from zigma_pl.ops.rows import RowMover
from zigma_pl.ops.threads import threads_that_pay

# Elements of a plane and of a tile. A forward pass works on two tiles and a backward pass on three, which should stay
# in the L2 cache, 1 to 2 MB. The optimum is broad.
STEP_ELEMENTS = 1 << 14
TILE_ELEMENTS = 1 << 17


def tiling(num_rows: int, num_steps: int, num_channels: int, num_states: int) -> tuple[int, int]:
    """Return the numbers of batch rows and steps per tile."""
    plane = num_channels * num_states
    num_blocks = -(-num_rows // max(1, min(num_rows, STEP_ELEMENTS // plane)))
    rows = -(-num_rows // num_blocks)  # blocks of about equal size, without a small remainder
    return rows, max(1, min(num_steps, TILE_ELEMENTS // (rows * plane)))


def num_tiles(num_steps: int, steps: int) -> int:
    """Return the number of tiles of `steps` steps that cover num_steps steps."""
    return (num_steps + steps - 1) // steps


class _Tile:
    """Scratch memory for `steps` steps: decay[k] = exp(delta[k] A), state[k + 1] = h[k], state[0] = initial state."""

    def __init__(self, scratch: Tensor, steps: int, rows: int, num_states: int, num_channels: int) -> None:
        self.matrices = (steps * rows, num_states, num_channels)
        size = steps * rows * num_states * num_channels
        plane = size // steps
        self.decay, self.adjoint = (flat[:size].view(steps, rows, num_states, num_channels) for flat in scratch[1:])
        self.state = scratch[0, : size + plane].view(steps + 1, rows, num_states, num_channels)
        # Views of single steps, created once instead of once per tile and step.
        self.decays, self.states, self.adjoints = self.decay.unbind(), self.state.unbind(), self.adjoint.unbind()

    def advance(self, delta: Tensor, x: Tensor, B: Tensor, log2_rate: Tensor) -> None:
        torch.mul(delta.unsqueeze(2), log2_rate, out=self.decay)
        self.decay.exp2_()
        torch.mul(x.unsqueeze(2), B.unsqueeze(3), out=self.state[1:])
        for k, decay in enumerate(self.decays):
            self.states[k + 1].addcmul_(decay, self.states[k])

    def advance_adjoint(self, dy: Tensor, C: Tensor, carry: Tensor) -> None:
        torch.mul(dy.unsqueeze(2), C.unsqueeze(3), out=self.adjoint)
        self.adjoints[-1].add_(carry)
        for k in range(len(self.adjoints) - 2, -1, -1):
            self.adjoints[k].addcmul_(self.decays[k + 1], self.adjoints[k + 1])

    def contract_states(self, planes: Tensor, weights: Tensor, out: Tensor) -> None:
        """out[e] = sum over n of weights[n] planes[n, e], for each step and row."""
        count, num_states, num_channels = self.matrices
        planes = planes.view(self.matrices)
        torch.bmm(weights.view(count, 1, num_states), planes, out=out.view(count, 1, num_channels))

    def contract_channels(self, planes: Tensor, weights: Tensor, out: Tensor) -> None:
        """out[n] = sum over e of weights[e] planes[n, e], for each step and row."""
        count, num_states, num_channels = self.matrices
        planes = planes.view(self.matrices).transpose(1, 2)
        torch.bmm(weights.view(count, 1, num_channels), planes, out=out.view(count, 1, num_states))


class _Tiles:
    """The tiles of one scan, which share the same scratch memory."""

    def __init__(self, like: Tensor, num_states: int) -> None:
        num_rows, self.num_steps, self.num_channels = like.shape
        self.num_states, self.num_rows = num_states, num_rows
        self.rows, self.steps = tiling(num_rows, self.num_steps, self.num_channels, num_states)
        size = (self.steps + 1) * self.rows * self.num_channels * num_states
        self._scratch = like.new_empty(3, size)
        self._made: dict[tuple[int, int], _Tile] = {}

    def row_blocks(self) -> Iterator[slice]:
        for start in range(0, self.num_rows, self.rows):
            yield slice(start, min(start + self.rows, self.num_rows))

    def step_blocks(self) -> list[slice]:
        starts = range(0, self.num_steps, self.steps)
        return [slice(start, min(start + self.steps, self.num_steps)) for start in starts]

    def get(self, steps: int, rows: int) -> _Tile:
        if (steps, rows) not in self._made:
            self._made[steps, rows] = _Tile(self._scratch, steps, rows, self.num_states, self.num_channels)
        return self._made[steps, rows]


@threads_that_pay()
def recur(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, states: Tensor) -> Tensor:
    """Return y = C . h in raster order, and write the state before each tile to states (tiles, B, N, E), if any."""
    rows, tiles, y = RowMover(order), _Tiles(u, A.shape[1]), u.new_empty(u.shape)
    log2_rate = (A / math.log(2)).t().contiguous()
    for block in tiles.row_blocks():
        delta_k, B_k, C_k = (rows.gather(raster[block]) for raster in (delta, B, C))
        x_k = rows.gather(u[block]).mul_(delta_k)
        y_k, carry = torch.empty_like(x_k), x_k.new_zeros(x_k.shape[1], A.shape[1], A.shape[0])
        for i, span in enumerate(tiles.step_blocks()):
            tile = tiles.get(*x_k[span].shape[:2])
            tile.states[0].copy_(carry)
            if states.numel():
                states[i, block] = carry
            tile.advance(delta_k[span], x_k[span], B_k[span], log2_rate)
            tile.contract_states(tile.state[1:], C_k[span], out=y_k[span])
            carry = tile.states[-1]
        rows.scatter(y_k, out=y[block])
    return y


@threads_that_pay()
def recur_backward(
    dy: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Tensor | None, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta (after softplus), A, B and C."""
    rows, tiles = RowMover(order), _Tiles(u, A.shape[1])
    A_t = A.t().contiguous()
    du, ddelta, dB, dC = (raster.new_empty(raster.shape) for raster in (u, delta, B, C))
    dA_t = torch.zeros_like(A_t)
    for block in tiles.row_blocks():
        inputs = [rows.gather(raster[block]) for raster in (dy, u, delta, B, C)]
        gradients = _block_backward(tiles, inputs, A_t, states[:, block], dA_t)
        for gradient, out in zip(gradients, (du, ddelta, dB, dC), strict=True):
            rows.scatter(gradient, out=out[block])
    return du, ddelta, dA_t.t(), dB, dC


def _block_backward(tiles: _Tiles, inputs: list[Tensor], A_t: Tensor, states: Tensor, dA_t: Tensor) -> list[Tensor]:
    """Return time-major gradients of u, delta, B, C for one block of batch rows, and add that of A to dA_t."""
    dy, u, delta, B, C = inputs
    x, log2_rate = delta * u, A_t / math.log(2)
    dx, ddelta, dB, dC = (torch.empty_like(t) for t in (u, delta, B, C))
    carry = torch.zeros_like(states[0])
    for i, span in reversed(list(enumerate(tiles.step_blocks()))):
        tile = tiles.get(*x[span].shape[:2])
        tile.states[0].copy_(states[i])
        tile.advance(delta[span], x[span], B[span], log2_rate)
        tile.advance_adjoint(dy[span], C[span], carry)
        tile.contract_channels(tile.state[1:], dy[span], out=dC[span])
        tile.contract_channels(tile.adjoint, x[span], out=dB[span])
        tile.contract_states(tile.adjoint, B[span], out=dx[span])
        # d(delta A) = g[k] exp(delta[k] A) h[k-1]; the product of its first two factors is also added to g[k-1].
        through_decay = tile.decay.mul_(tile.adjoint)
        carry.copy_(tile.decays[0])
        through_decay.mul_(tile.state[:-1])
        torch.sum(torch.mul(through_decay, A_t, out=tile.adjoint), 2, out=ddelta[span])
        flat = through_decay.mul_(delta[span].unsqueeze(2)).view(-1, A_t.numel())
        dA_t.view(-1).addmv_(flat.t(), flat.new_ones(len(flat)))
    ddelta.addcmul_(dx, u)
    return [dx.mul_(delta), ddelta, dB, dC]
