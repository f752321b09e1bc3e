"""SSD and its adjoint as matrix products over chunks of tokens (arXiv:2405.21060, section 6), in plain PyTorch.

Within a chunk of Q tokens, the scan is masked attention with decay: y = M X, where X[j] = d[j] x[j] and
M[i, j] = exp(s[i] - s[j]) C[i] . B[j] for j <= i, with s the sum of the log decays d A up to a token. Between chunks, a
state (N, P) per head is passed on. The sequence is processed in tiles of a few chunks, which bound the memory of M.

Decays are exponentials of differences s[i] - s[j] <= 0, so nothing overflows. The sums are float64, and their
differences are computed from two float32 halves: next to a log decay of -30, one of -1e-6 would be lost in float32.

Axes: b samples of a block, h heads, g groups, c chunks of a tile, q tokens of a chunk, N states, P width of a head.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Elements of M in a tile, so that a tile stays in the cache.
TILE_ELEMENTS = 1 << 19
CHUNK = 64  # largest number of tokens of a chunk


def chunk_length(num_tokens: int) -> int:
    """Return the number of tokens per chunk, which makes all chunks about equally long."""
    return -(-num_tokens // num_chunks(num_tokens))


def num_chunks(num_tokens: int) -> int:
    """Return the number of chunks of a sequence."""
    return -(-num_tokens // CHUNK)


class Rows(NamedTuple):
    """The arguments of the recurrence, in raster order: step sizes (B, L, H), the others as in `ssd`."""

    x: Tensor
    step: Tensor
    B: Tensor
    C: Tensor


def scan(rows: Rows, A: Tensor, order: Tensor | None, inverse: Tensor | None, states: Tensor) -> Tensor:
    """Return y, (B, L, H, P) in raster order and A's dtype, and write the state before each chunk to `states`.

    Args:
        rows: arguments in any floating-point dtype.
        A: (H,), in the dtype of all computations.
        order, inverse: (L,) visit order and its inverse; None for raster order.
        states: (B, H, number of chunks, N, P), or empty if they are not needed.
    """
    y = A.new_empty(rows.x.shape)
    for block in _blocks(rows):
        arranged = y[block] if order is None else torch.empty_like(y[block])
        carry: Tensor | None = None
        for span in _spans(rows):
            tile = _Tile(_load(rows, block, span, order, A.dtype), A)
            if span.is_whole:
                found = tile.mix()
            else:
                found, starts, carry = tile.mix_with_states(carry)
                if states.numel():
                    states[block, :, span.chunks] = starts
            arranged[:, span.tokens] = _token_major(found, span)
        if inverse is not None:
            torch.index_select(arranged, 1, inverse, out=y[block])
    return y


def scan_backward(
    dy: Tensor, rows: Rows, A: Tensor, order: Tensor | None, inverse: Tensor | None, states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, the step sizes, A, B and C, in A's dtype; see `scan`."""
    gradients = Rows(*(A.new_empty(raster.shape) for raster in rows))
    dA = torch.zeros_like(A)
    for block in _blocks(rows):
        carry: Tensor | None = None
        arranged = Rows(*(g[block] if order is None else torch.empty_like(g[block]) for g in gradients))
        for span in reversed(_spans(rows)):
            tile = _Tile(_load(rows, block, span, order, A.dtype), A)
            dy_tile = _load_rows(dy[block], span, order, A.dtype)
            if span.is_whole:
                found, dlog = tile.adjoint(dy_tile)
            else:
                found, dlog, carry = tile.adjoint_with_states(dy_tile, states[block, :, span.chunks], carry)
            dA += (dlog * tile.step).sum((0, 2, 3))
            for target, gradient in zip(arranged, found, strict=True):
                target[:, span.tokens] = _token_major(gradient, span)
        if inverse is not None:
            for source, gradient in zip(arranged, gradients, strict=True):
                torch.index_select(source, 1, inverse, out=gradient[block])
    return gradients.x, gradients.step, dA, gradients.B, gradients.C


# ------------------------------------------------------------------------------------------------------------- tiles
class _Span(NamedTuple):
    """Consecutive chunks of a sequence: slices of its chunks and tokens, and the length of a chunk."""

    chunks: slice
    tokens: slice
    length: int
    is_whole: bool  # the sequence is a single chunk, so there are no states

    @property
    def shape(self) -> tuple[int, int]:
        return self.chunks.stop - self.chunks.start, self.length


def _tile_sizes(rows: Rows) -> tuple[int, int]:
    """Return the numbers of samples and chunks per tile."""
    batch_size, num_tokens, num_heads, _ = rows.x.shape
    per_chunk = num_heads * chunk_length(num_tokens) ** 2
    most = max(1, TILE_ELEMENTS // per_chunk)
    count = num_chunks(num_tokens)
    return max(1, min(batch_size, most // count)), min(count, most)


def _blocks(rows: Rows) -> Iterator[slice]:
    size, batch_size = _tile_sizes(rows)[0], len(rows.x)
    for start in range(0, batch_size, size):
        yield slice(start, min(start + size, batch_size))


def _spans(rows: Rows) -> list[_Span]:
    num_tokens, size = rows.x.shape[1], _tile_sizes(rows)[1]
    length, count = chunk_length(num_tokens), num_chunks(num_tokens)
    spans = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        tokens = slice(start * length, min(stop * length, num_tokens))
        spans.append(_Span(slice(start, stop), tokens, length, count == 1))
    return spans


def _load(rows: Rows, block: slice, span: _Span, order: Tensor | None, dtype: torch.dtype) -> Rows:
    return Rows(*(_load_rows(raster[block], span, order, dtype) for raster in rows))


def _load_rows(raster: Tensor, span: _Span, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Gather the rows of a span from (b, L, h, ...) to a contiguous tensor (b, h, c, q, ...), filled up with zeros."""
    head_major = raster.transpose(1, 2)
    start, stop = span.tokens.start, span.tokens.stop
    rows = head_major[:, :, start:stop] if order is None else head_major.index_select(2, order[start:stop])
    num_missing = math.prod(span.shape) - (stop - start)
    if num_missing:
        rows = torch.cat([rows, rows.new_zeros((*rows.shape[:2], num_missing, *rows.shape[3:]))], dim=2)
    return rows.to(dtype).contiguous().unflatten(2, span.shape)


def _token_major(rows: Tensor, span: _Span) -> Tensor:
    """Return (b, h, c, q, ...) as a view (b, L, h, ...), without the zeros at the end."""
    return rows.flatten(2, 3)[:, :, : span.tokens.stop - span.tokens.start].transpose(1, 2)


def _product(first: Tensor, second: Tensor) -> Tensor:
    """Return the product of matrices with any number of equal batch axes, each flattened without a copy."""
    found = torch.bmm(first.flatten(0, -3), second.flatten(0, -3))
    return found.view(*first.shape[:-1], second.shape[-1])


def _add_product(out: Tensor, first: Tensor, second: Tensor) -> None:
    out.flatten(0, -3).baddbmm_(first.flatten(0, -3), second.flatten(0, -3))


class _Tile:
    """A few chunks of a few samples: x (b, h, c, q, P), step (b, h, c, q), B and C (b, g, c, q, N).

    within: (b, h, c, q, q), decay from token j to token i; 1 above the diagonal.
    scores: (b, g, c, q, q), C[i] . B[j]; 0 above the diagonal.
    """

    def __init__(self, rows: Rows, A: Tensor) -> None:
        self.x, self.step, self.B, self.C = rows
        self.A = A.view(-1, 1, 1)
        # In powers of two, as PyTorch's exp2 is several times faster on the CPU than its exp.
        total = (self.step * (self.A / math.log(2))).cumsum(-1, dtype=torch.float64)
        self.high = total.to(A.dtype)
        self.low = (total - self.high).to(A.dtype)
        self.x_step = self.x * self.step.unsqueeze(-1)
        self.scores = _product(self.C, self.B.mT).tril_()
        self.within = self._within()

    def _within(self) -> Tensor:
        log2 = self.high.unsqueeze(-1) - self.high.unsqueeze(-2)
        if self.high.dtype != torch.float64:
            log2.add_(self.low.unsqueeze(-1)).sub_(self.low.unsqueeze(-2))
        return log2.clamp_(max=0).exp2_()

    def by_group(self, per_head: Tensor) -> Tensor:
        """View (b, h, ...) as (b, g, h / g, ...)."""
        return per_head.unflatten(1, (self.B.shape[1], -1))

    def weighted(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return rows of a group, (b, g, c, q, N), times weights (b, h, c, q), as (b, h, c, q, N)."""
        return (rows.unsqueeze(2) * self.by_group(weights).unsqueeze(-1)).flatten(1, 2)

    def mix(self) -> Tensor:
        """Return M X, the outputs without a state from earlier chunks."""
        mixing = self.by_group(self.within).mul_(self.scores.unsqueeze(2)).flatten(1, 2)
        return _product(mixing, self.x_step)

    # ------------------------------------------------------------------------------------------------------- states
    def from_start(self) -> Tensor:
        """Decay of the state from the start of the chunk to each token, (b, h, c, q)."""
        return self.high.exp2()

    def to_end(self) -> Tensor:
        """Decay from each token to the end of the chunk, (b, h, c, q)."""
        return (self.high[..., -1:] - self.high).add_(self.low[..., -1:] - self.low).clamp_(max=0).exp2_()

    def over_chunk(self) -> Tensor:
        """Decay over the whole chunk, (b, h, c, 1, 1)."""
        return self.high[..., -1:, None].exp2()

    def mix_with_states(self, carry: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs, the state before each chunk, (b, h, c, N, P), and the state after the last one.

        Args:
            carry: (b, h, N, P), the state before the first chunk; None for zero.
        """
        y = self.mix()
        added = _product(self.weighted(self.B, self.to_end()).mT, self.x_step)
        starts, carry = _accumulate(added, self.over_chunk(), carry, range(added.shape[2]))
        _add_product(y, self.weighted(self.C, self.from_start()), starts)
        return y, starts, carry

    # ------------------------------------------------------------------------------------------------------ adjoint
    def adjoint(self, dy: Tensor) -> tuple[Rows, Tensor]:
        """Return the gradients of x, step, B and C, and that of the log decays, (b, h, c, q), without states."""
        dx_step, dB, dC, dlog = self._adjoint_within(dy)
        return self._finish(dx_step, dB, dC, dlog), dlog

    def adjoint_with_states(self, dy: Tensor, starts: Tensor, carry: Tensor | None) -> tuple[Rows, Tensor, Tensor]:
        """Return the same as `adjoint`, and the gradient of the state before the first chunk, (b, h, N, P).

        Args:
            dy: (b, h, c, q, P), gradient of the outputs.
            starts: (b, h, c, N, P), the state before each chunk.
            carry: (b, h, N, P), gradient of the state after the last chunk; None for zero.
        """
        dx_step, dB, dC, dlog = self._adjoint_within(dy)
        from_start, to_end, over_chunk = self.from_start(), self.to_end(), self.over_chunk()
        read = _product(self.weighted(self.C, from_start).mT, dy)
        dends, carry = _accumulate(read, over_chunk, carry, range(read.shape[2] - 1, -1, -1))
        keys = self.weighted(self.B, to_end)
        _add_product(dx_step, keys, dends)
        starts = starts.contiguous()

        dqueries = _product(dy, starts.mT).mul_(from_start.unsqueeze(-1))
        dkeys = _product(self.x_step, dends.mT).mul_(to_end.unsqueeze(-1))
        dC += self.by_group(dqueries).sum(2)
        dB += self.by_group(dkeys).sum(2)
        # A log decay acts on what tokens at or after it read from the start of the chunk, on what tokens before it
        # write to the end, and on the state that passes through the chunk.
        reads = self.by_group(dqueries).mul_(self.C.unsqueeze(2)).sum(-1).flatten(1, 2)
        writes = self.by_group(dkeys).mul_(self.B.unsqueeze(2)).sum(-1).flatten(1, 2)
        dlog += reads.flip(-1).cumsum(-1).flip(-1)
        dlog[..., 1:] += writes.cumsum(-1)[..., :-1]
        dlog += dends.mul_(starts).sum((-2, -1)).mul_(over_chunk[..., 0, 0]).unsqueeze(-1)
        return self._finish(dx_step, dB, dC, dlog), dlog, carry

    def _adjoint_within(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of X, B, C and the log decays through the products within chunks."""
        dmixing = _product(dy, self.x_step.mT)
        dmixing.mul_(self.within)
        dscores = self.by_group(dmixing).sum(2).tril_()
        mixing = self.by_group(self.within).mul_(self.scores.unsqueeze(2)).flatten(1, 2)
        dx_step = _product(mixing.mT, dy)
        # The log decay of token k acts on all pairs j < k <= i. Differences of sums over rows and columns would cancel
        # and leave the rounding errors of much larger numbers, so the sum over j is a product with a triangle of ones.
        dlog_pairs = self.by_group(dmixing).mul_(self.scores.unsqueeze(2)).flatten(1, 2)
        length = dlog_pairs.shape[-1]
        earlier = dlog_pairs.new_ones(length, length).triu_(1)
        dlog = (dlog_pairs.flatten(0, -2) @ earlier).view(dlog_pairs.shape).tril_().sum(-2)
        return dx_step, _product(dscores.mT, self.C), _product(dscores, self.B), dlog

    def _finish(self, dx_step: Tensor, dB: Tensor, dC: Tensor, dlog: Tensor) -> Rows:
        dstep = (dx_step * self.x).sum(-1).addcmul_(dlog, self.A)
        return Rows(dx_step.mul_(self.step.unsqueeze(-1)), dstep, dB, dC)


def _accumulate(added: Tensor, decay: Tensor, carry: Tensor | None, chunks: range) -> tuple[Tensor, Tensor]:
    """Return the state before each chunk and after the last one, of state = decay[c] state + added[c].

    Args:
        added: (b, h, c, N, P); overwritten by the result.
        decay: (b, h, c, 1, 1).
        carry: (b, h, N, P), the first state; None for zero.
        chunks: the chunks in the order of the recurrence.
    """
    state = torch.zeros_like(added[:, :, 0]) if carry is None else carry
    for chunk in chunks:
        after = torch.addcmul(added[:, :, chunk], decay[:, :, chunk], state)
        added[:, :, chunk] = state
        state = after
    return added, state
